"""A sweep's driver without a sweep, to be killed: writes a ledger at the pace of a sweep, and sends it to MLflow.

python tests/mlflow_driver.py FOLDER URI
"""

import sys
import time
from pathlib import Path

from recorded import DIGITS, lively

from orchestrator.config.sweep_config import TrackingConfig, read_sweep
from orchestrator.decide.virtual_sweep import run
from orchestrator.ledger.events import Kind
from orchestrator.ledger.ledger import Ledger
from orchestrator.outcome.tables import write_tables
from orchestrator.tracking.tracker import Tracker
from trainables.config_file import dump_yaml

PACE_S = 0.03
"""Seconds between two events."""


def main(folder: Path, uri: str) -> None:
    """Goes on after the events that the ledger holds. The sweep is the same in each process."""
    confirm = "search.confirm={top: 2, seeds: 3}"
    config = read_sweep(DIGITS, ["search.trials=24", "trial.epochs=16", "scheduler.grace_epochs=4", confirm])
    done = [event for event in run(config, lively, 2).events if event["event"] != Kind.CHECKPOINT]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sweep.yaml").write_text(dump_yaml(config.model_dump()))
    begin = {"split_sha256": "", "split": {}, "class_counts": [], "git_commit": None, "versions": {}}
    with Ledger(folder) as ledger:
        past = ledger.past
        there = sum(event["event"] not in (Kind.SWEEP_START, Kind.SWEEP_RESUME) for event in past)
        tracker = Tracker(TrackingConfig(uri=uri), folder.parent, folder.name, print, past)
        ledger.listen(tracker)
        if past:
            ledger.append(Kind.SWEEP_RESUME, segment=2, config=config.model_dump(), git_commit=None, versions={})
        else:
            ledger.append(Kind.SWEEP_START, config=config.model_dump(), **begin)
        for event in done[there:]:
            ledger.append(event["event"], **{key: value for key, value in event.items() if key not in ("event", "n", "time")})
            time.sleep(PACE_S)
        winner = max((event for event in done if event["event"] == Kind.TRIAL_END), key=lambda event: event.get("best_value", 0))
        (folder / "best").mkdir()
        (folder / "best" / "config.yaml").write_text("epochs: 16\n")
        numbers = {"best/val/acc": winner["best_value"], "test/acc": 0.8}
        ledger.append(Kind.EXPORT, trial_id=winner["trial_id"], path=str((folder / "best").resolve()), metrics=numbers)
        write_tables(folder, ledger.events)
        ledger.append(Kind.SWEEP_END, status="finished", reason=None, complete=True, decisions_sha256="")
    tracker.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
