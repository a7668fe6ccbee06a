"""METHODS: how a batch becomes a loss. A row here and its settings in config.py make a method."""

from collections.abc import Callable
from typing import Any

import torch

from trainables.config import MethodConfig
from trainables.methods.base import Method
from trainables.methods.cross_entropy import CrossEntropy
from trainables.methods.difficulty_net import DifficultyNet
from trainables.registry import lookup
from trainables.seeds import derive_seed

METHODS: dict[str, Callable[[Any, int], Method]] = {"cross_entropy": CrossEntropy, "difficulty_net": DifficultyNet}


def build_method(config: MethodConfig, num_classes: int, seed: int) -> Method:
    """A method for `num_classes` classes whose initial theta depends on `seed` only."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "theta"))
        return lookup(METHODS, config.name, "method")(config, num_classes)


__all__ = ["METHODS", "Method", "build_method"]
