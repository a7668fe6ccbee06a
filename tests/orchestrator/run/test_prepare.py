from pathlib import Path

from orchestrator.config.sweep_config import SweepConfig
from orchestrator.ledger.ledger import Ledger
from orchestrator.run.prepare import read_warm_start


def test_a_warm_start_from_trials_with_other_settings_says_so(tmp_path: Path, config: SweepConfig) -> None:
    other = config.trial.model_copy(update={"epochs": 30})
    with Ledger(tmp_path) as ledger:
        ledger.append("sweep_start", config=config.model_copy(update={"trial": other}).model_dump())
        ledger.append("suggest", trial_id="t0000", role="search", variant="", seed=0, config=other.model_dump())
        ledger.append("trial_end", trial_id="t0000", status="diverged", stop_reason="nan")
    notes: list[str] = []
    (trial,) = read_warm_start(tmp_path, config, notes.append)
    assert trial["status"] == "diverged"
    assert [note.partition("mislead: ")[2] for note in notes] == ["trial.epochs 30 then, 40 now"]
