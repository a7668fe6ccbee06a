"""A supervisor for tests."""

import os
from pathlib import Path
from typing import Any

from orchestrator.cluster.machines import Machines
from orchestrator.config.sweep_config import SweepConfig
from orchestrator.ledger.ledger import Ledger, read_ledger
from orchestrator.run.signals import Slots
from orchestrator.run.supervisor import Supervisor
from orchestrator.run.trial import EpochReport
from trainables.workers.worker_group import GroupConfig

CLASSES: dict[str, list[float | None]] = {
    "accuracy": [0.5, 0.25],
    "meta_accuracy": [None, None],
    "difficulty": [None, None],
    "weight": [1.0, 1.0],
    "train_count": [5, 5],
}


class Desk:
    """A supervisor with a ledger, imagined slots and a clock that is told the time."""

    def __init__(
        self,
        folder: Path,
        config: SweepConfig,
        group: GroupConfig | None = None,
        machines: Machines | None = None,
        slots: int = 2,
    ) -> None:
        self.notes: list[str] = []
        self.now = 1000.0
        config = config.model_copy(update={"search": config.search.model_copy(update={"deterministic": False})})
        self.folder, self.config = folder, config
        (folder / "slots").mkdir(parents=True, exist_ok=True)
        self.ledger = Ledger(folder, clock=lambda: self.now, note=self.notes.append)
        self.ledger.append("sweep_resume" if self.ledger.past else "sweep_start", config=config.model_dump())
        processes = Slots(slots, folder / "slots", folder, checkpoint_interval=1, group=group)
        self.supervisor = Supervisor(config, self.ledger, processes, self.notes.append, clock=lambda: self.now, machines=machines)

    def begin(self) -> str:
        """A slot takes the next stint up."""
        stint = self.supervisor.next_stint()
        assert stint
        self.supervisor.on_start(stint.trial_id)
        return stint.trial_id

    def report(self, trial_id: str, epoch: int, **fields: Any) -> bool:
        place = f"checkpoints/{trial_id}/{epoch:04d}-1"
        (self.folder / place).mkdir(parents=True)
        checkpoint = {"epoch": epoch, "path": place, "sha256": "abc"}
        return self.supervisor.on_report(trial_id, EpochReport(epoch, {"val/acc": epoch / 100}, CLASSES, checkpoint, **fields))

    def wait(self, seconds: float, *signs: Path) -> None:
        """Lets time go by, looking every other second; some processes give heartbeats."""
        until = self.now + seconds
        while self.now < until:
            self.now = min(self.now + 2, until)
            for sign in signs:
                os.utime(sign, (self.now, self.now))
            self.supervisor.poll()

    def kinds(self) -> list[str]:
        return [event["event"] for event in read_ledger(self.folder)]
