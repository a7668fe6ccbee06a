"""A sweep as its ledger has it, written out."""

import itertools
from pathlib import Path

from rich.console import Console

from orchestrator.config.sweep_config import SweepConfig
from orchestrator.ledger.ledger import Ledger
from orchestrator.terminal.progress import Progress
from trainables.config_file import dump_yaml
from trainables.method_config import CrossEntropyConfig


def record(folder: Path, config: SweepConfig, console: Console, statuses: dict[str, str]) -> None:
    """A sweep in which each of some variants ended with a status; the later ones are better. Each event takes a second."""
    (folder / "sweep.yaml").write_text(dump_yaml(config.model_dump()))
    clock = itertools.count()
    with Ledger(folder, clock=lambda: float(next(clock))) as ledger, Progress(config, "demo", console) as progress:
        ledger.listen(progress)
        ledger.append("sweep_start")
        ledger.append("slots", slots=2, gpus_per_slot=0.5)
        for number, (variant, status) in enumerate(statuses.items()):
            trial = config.trial.model_copy(update={"method": CrossEntropyConfig()} if variant == "cross_entropy" else {})
            value, trial_id = 0.5 + number / 10, f"t{number:04d}"
            known = (
                {"role": "search", "variant": ""} if variant.startswith("search") else {"role": "reference", "variant": variant}
            )
            ledger.append("suggest", trial_id=trial_id, seed=0, config=trial.model_dump(), **known)
            ledger.append("trial_start", trial_id=trial_id, attempt=1)
            ledger.append("epoch", trial_id=trial_id, epoch=1, attempt=1, metrics={"val/acc": value})
            reason = "train/loss became nan in epoch 1" if status == "diverged" else None
            ledger.append("trial_end", trial_id=trial_id, status=status, stop_reason=reason, best_epoch=1, best_value=value)
        ledger.append("sweep_end", status="finished")
