"""Which checkpoints of a sweep stay on the disk."""

from typing import Literal

from trainables.settings import Settings

Keep = Literal["best", "all"]


class CheckpointConfig(Settings):
    """Checkpoints of trials that have ended. A trial that goes on has its last two in any case."""

    keep: Keep = "best"
    """Which trials keep their states after they have ended: `best`, the five best ones, one of each configuration that ran on
    several seeds, references and confirmations; or `all`. `--dry-run` says how much space they take."""
