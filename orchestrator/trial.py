"""One Tune trial: hands an epoch at a time to a trial run, in a process that serves one trial after another."""

import os
import time
from pathlib import Path
from typing import Any, NamedTuple

from ray import tune

from trainables.config import TrialConfig
from trainables.trial_run import TrialRun
from trainables.vitals import TrialEnded


class Slots(NamedTuple):
    """The processes that serve trials side by side: how many, and a folder in which each says that it is up."""

    number: int
    folder: Path

    def wait_for_all(self, timeout_s: float = 60) -> None:
        """Reports this process and waits for the others, at most `timeout_s`.

        Tune gives a waiting trial the first process that comes free and drops the one that was starting for it. Where trials are
        shorter than the start of a process, the second slot would never come up.
        """
        (self.folder / str(os.getpid())).touch()
        deadline = time.monotonic() + timeout_s
        while len(list(self.folder.iterdir())) < self.number and time.monotonic() < deadline:
            time.sleep(0.05)


class Trial(tune.Trainable):
    """Drives a TrialRun. The configuration is {"trial_id", "variant", "trial"}, the last one a TrialConfig as a mapping."""

    def setup(self, config: dict[str, Any], slots: Slots) -> None:
        """Starts the process's first trial, when all processes are up."""
        self._run = TrialRun()
        self._start(config)
        slots.wait_for_all()

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Starts the next trial in this process; data that fit are kept."""
        self._start(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """One epoch: its metrics, its arrays by class, and whether it was the last."""
        progress = {"epoch": self._run.epoch + 1, "epochs": self._trial.epochs}
        try:
            metrics = self._run.run_epoch()
        except TrialEnded as reason:
            return {**progress, "objective": float("nan"), "ended": reason.status, "reason": str(reason), "done": True}
        best = self._run.best
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
        """Writes the trial run's state; Tune carries the folder away."""
        self._run.save(Path(checkpoint_dir))

    def load_checkpoint(self, checkpoint_dir: str | dict[str, Any]) -> None:
        """Continues from a folder that `save_checkpoint` has filled."""
        self._run.load(Path(str(checkpoint_dir)), self._trial)

    def _start(self, config: dict[str, Any]) -> None:
        self._trial = TrialConfig.model_validate(config["trial"])
        self._run.start(self._trial)
