"""The Slurm script, run as Slurm would run it, on one node: `srun` and `scontrol` are stand-ins, everything else is real."""

import os
import subprocess
from pathlib import Path

from tools import need

from benchmarks.fake_cluster import NAMESPACE, unavailable
from orchestrator.ledger.ledger import read_ledger

ROOT = Path(__file__).parents[2]
STAND_INS = {"srun": 'exec "$@"', "scontrol": "hostname -i | cut -d' ' -f1"}
SHORT = [
    "search.trials=3", "search.references={}", "trial.epochs=2", "scheduler.grace_epochs=1", "trial.data.n_max=20",
    "trial.data.imbalance_factor=5", "trial.classifier.widths=[4, 8]", "tracking.mlflow=false",
]  # fmt: skip


def test_a_job_runs_a_sweep_on_a_ray_of_its_own_which_wants_a_token(tmp_path: Path) -> None:
    need(unavailable())
    for name, command in STAND_INS.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{command}\n")
        (tmp_path / name).chmod(0o755)
    job = {
        "SLURM_SUBMIT_DIR": str(ROOT),
        "SLURM_JOB_NODELIST": "this",
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_CPUS_PER_TASK": "2",
    }
    environment = os.environ | job | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    # A namespace: at its end the script stops every Ray that it sees.
    command = [*NAMESPACE, str(ROOT / "clusters" / "slurm.sh"), "--results", str(tmp_path / "results"), *SHORT]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 trials in" in done.stdout
    events = list(read_ledger(tmp_path / "results" / "digits_lt"))
    assert sum(event["event"] == "trial_end" for event in events) == 3
    assert (tmp_path / "results" / "digits_lt" / "best" / "model.safetensors").is_file()
