"""Which checkpoints of a sweep stay on the disk."""

from typing import Literal

from trainables.settings import Settings

Keep = Literal["best", "all"]


class CheckpointConfig(Settings):
    """Checkpoints of trials that have ended. A trial that goes on has its last two in any case."""

    keep: Keep = "best"
    """Which trials keep their states after they have ended: `best`, those of the five best configurations, of configurations that
    ran on several seeds, references and confirmations; or `all`, for which `--dry-run` says how much space they take."""
