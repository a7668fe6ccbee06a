"""A sweep as its ledger has it, written out."""

import itertools
import math
from pathlib import Path
from typing import Any

from rich.console import Console

from orchestrator.config.sweep_config import SweepConfig, read_sweep
from orchestrator.decide.virtual_sweep import Virtual, run
from orchestrator.ledger.events import Kind
from orchestrator.ledger.ledger import Ledger
from orchestrator.terminal.display import Display
from orchestrator.terminal.progress import Progress
from trainables.config_file import dump_yaml
from trainables.method_config import CrossEntropyConfig

DIGITS = Path(__file__).parents[1] / "search_spaces" / "digits_lt.yaml"


def record(folder: Path, config: SweepConfig, console: Console, statuses: dict[str, str]) -> None:
    """A sweep in which each of some variants ended with a status; the later ones are better. Each event takes a second."""
    (folder / "sweep.yaml").write_text(dump_yaml(config.model_dump()))
    clock = itertools.count()
    with Ledger(folder, clock=lambda: float(next(clock))) as ledger, Progress(config, "demo", Display(console)) as progress:
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


def record_virtual(folder: Path, config: SweepConfig, done: Virtual, end: dict[str, Any] | None = None) -> None:
    """A sweep that has run in virtual time; `end`: of its last event, which it lacks otherwise."""
    folder.mkdir(parents=True, exist_ok=True)
    with Ledger(folder) as ledger:
        begin = {"split_sha256": "", "split": {}, "class_counts": [], "git_commit": None, "versions": {}}
        ledger.append(Kind.SWEEP_START, config=config.model_dump(), **begin)
        for event in (event for event in done.events if event["event"] != Kind.CHECKPOINT):
            ledger.append(event["event"], **{key: value for key, value in event.items() if key not in ("event", "n", "time")})
        if end is not None:
            ledger.append(Kind.SWEEP_END, reason=None, decisions_sha256="", **end)


def lively(settings: dict[str, Any], epoch: int) -> float:
    """A learning curve that depends on the settings."""
    return 0.5 + 0.2 * math.exp(-abs(math.log10(settings.get("method.meta_lr", 0.3)) + 2)) - 0.1 / epoch


def sweep_in(results: Path, *changes: str) -> Path:
    """A sweep of the default space that MLflow knows nothing of, in results/demo."""
    config = read_sweep(DIGITS, ["search.trials=6", *changes])
    folder = results / "demo"
    record_virtual(folder, config, run(config, lively, 2), {"status": "finished", "complete": True})
    (folder / "sweep.yaml").write_text(dump_yaml(config.model_dump()))
    return folder
