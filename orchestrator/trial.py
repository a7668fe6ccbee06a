"""One Tune trial: hands an epoch at a time to a trial run, in a process that serves one trial after another."""

from pathlib import Path
from typing import Any

from ray import tune

from trainables.config import TrialConfig
from trainables.trial_run import Diverged, TrialRun


class Trial(tune.Trainable):
    """Drives a TrialRun. The configuration is {"trial_id", "variant", "trial"}, the last one a TrialConfig as a mapping."""

    def setup(self, config: dict[str, Any]) -> None:
        """Starts the process's first trial."""
        self._run = TrialRun()
        self._start(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Starts the next trial in this process; data that fit are kept."""
        self._start(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """One epoch: its metrics, its arrays by class, and whether it was the last."""
        progress = {"epoch": self._run.epoch + 1, "epochs": self._trial.epochs}
        try:
            metrics = self._run.run_epoch()
        except Diverged as reason:
            return {**progress, "objective": float("nan"), "diverged": str(reason), "done": True}
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
