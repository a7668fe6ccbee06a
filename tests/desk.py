"""A supervisor for tests."""

import os
from pathlib import Path
from typing import Any

from orchestrator.cluster.machines import Machines
from orchestrator.config.sweep_config import SweepConfig
from orchestrator.ledger.ledger import Ledger, read_ledger
from orchestrator.run.member import EpochReport
from orchestrator.run.signals import Slots
from orchestrator.run.supervisor import Supervisor
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
        self.bundles: dict[str, int] = {}
        """That of each trial's last stint."""
        self.now = 1000.0
        config = config.model_copy(update={"search": config.search.model_copy(update={"deterministic": False})})
        self.folder, self.config = folder, config
        (folder / "slots").mkdir(parents=True, exist_ok=True)
        self.ledger = Ledger(folder, clock=lambda: self.now, note=self.notes.append)
        self.ledger.append("sweep_resume" if self.ledger.past else "sweep_start", config=config.model_dump())
        fused = config.resources.fused
        processes = Slots(slots, folder / "slots", folder, checkpoint_interval=1, group=group, fused=fused)
        self.supervisor = Supervisor(config, self.ledger, processes, self.notes.append, clock=lambda: self.now, machines=machines)

    def begin(self) -> str:
        """A slot takes the next stint up."""
        [trial_id] = self.begin_bundle()
        return trial_id

    def begin_bundle(self) -> list[str]:
        """A slot takes the next bundle up."""
        stints = self.supervisor.next_stints()
        trial_ids = [stint.trial_id for stint in stints]
        self.supervisor.on_start(trial_ids)
        self.bundles |= {stint.trial_id: stint.bundle for stint in stints}
        return trial_ids

    def take(self, report: EpochReport) -> bool:
        """The process of a trial reports; whether it is free then."""
        return self.supervisor.on_reports(self.bundles[report.trial_id], [report])

    def lose(self, trial_id: str, text: str) -> None:
        """The process of a trial is gone."""
        self.supervisor.on_error(self.bundles[trial_id], [trial_id], text)

    def report(self, trial_id: str, epoch: int, **fields: Any) -> bool:
        place = f"checkpoints/{trial_id}/{epoch:04d}-1"
        (self.folder / place).mkdir(parents=True)
        checkpoint = {"epoch": epoch, "path": place, "sha256": "abc"}
        return self.take(EpochReport(trial_id, epoch, {"val/acc": epoch / 100}, CLASSES, checkpoint, **fields))

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
