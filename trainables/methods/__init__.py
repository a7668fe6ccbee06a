"""METHODS: a method turns a batch into a loss. A method needs a row here and settings in method_config.py. Plug-ins add rows."""

from collections.abc import Callable
from typing import Any

import torch

from trainables.method_config import MethodConfig
from trainables.methods.advisor import Advisor
from trainables.methods.base import Method
from trainables.methods.context import Context, Task, task_of
from trainables.methods.difficulty_net import DifficultyNet
from trainables.methods.loss_alone import LossAlone
from trainables.methods.losses import LOSSES, Loss
from trainables.methods.meta_sampler import MetaSampler
from trainables.methods.meta_weight_net import MetaWeightNet
from trainables.methods.perturbed import CBDA, GDW, L2RW
from trainables.methods.weighted import CDB, ClassBalanced
from trainables.registry import lookup
from trainables.seeds import derive_seed

METHODS: dict[str, Callable[[Any, Task], Method]] = {
    **dict.fromkeys(LOSSES, LossAlone),
    "class_balanced": ClassBalanced,
    "ldam_drw": ClassBalanced,
    "cdb_ce": CDB,
    "difficulty_net": DifficultyNet,
    "meta_weight_net": MetaWeightNet,
    "l2rw": L2RW,
    "cb_da": CBDA,
    "gdw": GDW,
    "meta_sampler": MetaSampler,
    "mfrw": Advisor,
    "mes": Advisor,
    "mfrw_mes": Advisor,
}


def build_method(config: MethodConfig, task: Task, seed: int) -> Method:
    """A method for `task`. Its initial theta depends on `seed` only."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "theta"))
        return lookup(METHODS, config.name, "method")(config, task)


__all__ = ["LOSSES", "METHODS", "Context", "Loss", "LossAlone", "Method", "Task", "build_method", "task_of"]
