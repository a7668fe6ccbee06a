"""CPU cores, GPUs and memory of this machine."""

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def num_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def num_gpus() -> int:
    """GPUs that torch sees in this process."""
    import torch  # imported here, because the import takes seconds and counting cores does not need it

    return torch.cuda.device_count()


def peak_resident() -> int:
    """The peak resident memory of this process so far, in bytes."""
    import resource  # imported here, because not every system has it and only out-of-memory messages need it

    # macOS reports bytes, Linux KiB.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def choose_device(name: str) -> "torch.device":
    """The device for `auto`, `cpu` or `cuda`.

    Raises:
        ValueError: when a GPU is asked for and there is none.
    """
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda, but torch sees no GPU here; allowed: auto, cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
