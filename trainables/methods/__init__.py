"""METHODS: a method turns a batch into a loss. A method needs a row here and settings in method_config.py. Plug-ins add rows."""

from collections.abc import Callable
from typing import Any

import torch

from trainables.method_config import MethodConfig
from trainables.methods.base import Method, Task
from trainables.methods.cross_entropy import CrossEntropy
from trainables.methods.difficulty_net import DifficultyNet
from trainables.methods.meta_weight_net import MetaWeightNet
from trainables.methods.mfrw import MFRW
from trainables.registry import lookup
from trainables.seeds import derive_seed

METHODS: dict[str, Callable[[Any, Task], Method]] = {
    "cross_entropy": CrossEntropy,
    "difficulty_net": DifficultyNet,
    "meta_weight_net": MetaWeightNet,
    "mfrw": MFRW,
}


def build_method(config: MethodConfig, task: Task, seed: int) -> Method:
    """A method for `task`. Its initial theta depends on `seed` only."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "theta"))
        return lookup(METHODS, config.name, "method")(config, task)


__all__ = ["METHODS", "Method", "Task", "build_method"]
