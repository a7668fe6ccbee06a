"""One Tune trial: hands an epoch at a time to a trial run, in a process that serves one trial after another."""

import os
import time
from pathlib import Path
from typing import Any, NamedTuple

from ray import tune

from trainables.config import TrialConfig
from trainables.trial_run import TrialRun
from trainables.vitals import TrialEnded
from trainables.worker_group import GroupConfig, WorkerGroup


class Slots(NamedTuple):
    """The processes that serve trials side by side: how many, a folder, and their workers, if they have any."""

    number: int
    folder: Path
    group: GroupConfig | None = None

    def wait_for_all(self, timeout_s: float = 60) -> bool:
        """Reports this process and waits for the others, at most `timeout_s`; returns whether all are up.

        Tune gives a waiting trial the first process that comes free and drops the one that was starting for it. Where trials are
        shorter than the start of a process, the second slot would never come up.
        """
        (self.folder / f"{os.getpid()}.up").touch()
        deadline = time.monotonic() + timeout_s
        while not (all_up := len(list(self.folder.glob("*.up"))) >= self.number) and time.monotonic() < deadline:
            time.sleep(0.05)
        return all_up


class Trial(tune.Trainable):
    """Drives a trial run or a group of workers. The configuration is {"trial_id", "variant", "trial"}, the last one a TrialConfig
    as a mapping.
    """

    def setup(self, config: dict[str, Any], slots: Slots) -> None:
        """Starts the process's first trial, when all processes are up."""
        self._epoch = 0
        self._ended: Exception | None = None
        self._run = WorkerGroup(slots.group, slots.folder) if slots.group else TrialRun()
        self._start(config)
        slots.wait_for_all(slots.group.start_s if slots.group else 60)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Starts the next trial in this process; data that fit are kept."""
        self._start(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """One epoch: its metrics, its arrays by class, whether it was the last, and what happened to the workers meanwhile."""
        epoch = self._epoch + 1
        try:
            if not self._ended:
                metrics = self._run.run_epoch()
        except (TrialEnded, ValueError) as reason:
            self._ended = reason
        progress = {"epoch": epoch, "epochs": self._trial.epochs, "events": self._new_events()}
        if self._ended:
            status = getattr(self._ended, "status", "failed")
            return {**progress, "objective": float("nan"), "ended": status, "reason": str(self._ended), "done": True}
        self._epoch, best = self._run.epoch, self._run.best
        assert best is not None
        return {
            **progress,
            "metrics": metrics,
            "classes": self._run.class_table(),
            "best_epoch": best.epoch,
            "objective": best.metrics[self._trial.select_by],
            "done": self._run.epoch >= self._trial.epochs,
        }

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Writes the trial run's state, if the last thing was a whole epoch; Tune carries the folder away."""
        if self._epoch and not self._ended:
            self._run.save(Path(checkpoint_dir))

    def load_checkpoint(self, checkpoint_dir: str | dict[str, Any]) -> None:
        """Continues from a folder that `save_checkpoint` has filled."""
        self._run.load(Path(str(checkpoint_dir)), self._trial)
        self._epoch = self._run.epoch

    def cleanup(self) -> None:
        """Ends the workers."""
        if isinstance(self._run, WorkerGroup):
            self._run.close()

    def _start(self, config: dict[str, Any]) -> None:
        self._trial, self._epoch = TrialConfig.model_validate(config["trial"]), 0
        self._ended = None
        try:
            self._run.start(self._trial)
        except (TrialEnded, ValueError) as reason:  # the process is as good as before: its next trial may fare better
            self._ended = reason

    def _new_events(self) -> list[dict[str, Any]]:
        if not isinstance(self._run, WorkerGroup):
            return []
        events, self._run.events = self._run.events, []
        return events
