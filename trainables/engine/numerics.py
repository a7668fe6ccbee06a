"""How numbers are rounded: autocast in the backbone, and a GPU's switches.

Switches of torch that hold for a whole process are set while a trial computes, and put back afterwards.
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from trainables.config import ComputeConfig

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
"""The environment variable that fixes the memory cuBLAS works in. Both cuBLAS and torch read it once, at their first product."""
FIXED_WORKSPACES = (":4096:8", ":16:8")
"""Its values with which products are the same in every run."""


@contextmanager
def numerics(compute: ComputeConfig, device: torch.device) -> Iterator[None]:
    """Inside this block the arithmetic is what `compute.precision` and `compute.deterministic` say. Nothing changes on a CPU.

    Raises:
        ValueError: when the trial is to be deterministic and the environment forbids it.
    """
    if device.type != "cuda":
        yield
        return
    # For trials that need no determinism too: a later one in this process may, and then it is too late.
    workspace = os.environ.setdefault(WORKSPACE, FIXED_WORKSPACES[0])
    if compute.deterministic and workspace not in FIXED_WORKSPACES:
        raise ValueError(
            f"compute.deterministic is true, but the environment variable {WORKSPACE} is {workspace!r}; allowed: "
            f"{' or '.join(FIXED_WORKSPACES)}, or unset it"
        )
    with tf32(compute.precision == "tf32"), deterministic(compute.deterministic):
        yield


def autocast_type(compute: ComputeConfig) -> torch.dtype | None:
    """The type to which torch.autocast rounds inside the backbone, in training and in evaluations; None: no autocast."""
    return torch.bfloat16 if compute.precision == "bf16" else None


def autocasting(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """torch.autocast to `dtype`; no autocast for None."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype, cache_enabled=False)


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Whether float32 products and convolutions may round their factors to TF32. By default torch allows that in convolutions."""
    # torch has an older and a newer name for these switches. The newer ones can always be read; after their use, reading an older
    # one may raise an error, also inside torch.compile. So the older ones are set, and both are put back.
    matmul: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    parts = (matmul, cudnn.conv, cudnn.rnn)
    before = [part.fp32_precision for part in parts]
    older = [(part, value) for part in (matmul, cudnn) if (value := _allow_tf32(part)) is not None]
    matmul.allow_tf32 = cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        for part, value in older:
            part.allow_tf32 = value
        for part, precision in zip(parts, before, strict=True):
            part.fp32_precision = precision


def _allow_tf32(part: Any) -> bool | None:
    """The older switch; None when the caller has used the newer names in a way that it cannot tell."""
    try:
        return bool(part.allow_tf32)
    except RuntimeError:
        return None


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Whether every operation takes the same algorithm in every run.

    Raises:
        ValueError: when it is wanted, and an operation has no such algorithm.
    """
    if not wanted:
        yield
        return
    cudnn = torch.backends.cudnn
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    cudnn.benchmark = False  # it times algorithms, and takes the fastest of this run
    try:
        yield
    except RuntimeError as error:
        reason, torchs_advice, _ = str(error).partition(", but you set")
        if not torchs_advice:
            raise
        raise ValueError(f"compute.deterministic is true, but {reason}; allowed for this trial on a GPU: false") from error
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        cudnn.benchmark = benchmark
