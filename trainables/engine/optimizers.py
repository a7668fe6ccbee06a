"""The optimisers of phi and theta, and the step size alpha over a trial."""

import copy
import math
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from trainables.config import OptimConfig
from trainables.methods.base import Method
from trainables.models.classifier import Classifier


def build_optimizer(config: OptimConfig, classifier: Classifier, captured: bool) -> Optimizer:
    """The optimiser of phi. In a captured step alpha has to be a tensor, and only SGD's fused kernel reads it from the device."""
    phi = list(classifier.parameters())
    alpha = torch.tensor(config.lr, device=phi[0].device) if captured else config.lr
    return torch.optim.SGD(phi, alpha, config.momentum, weight_decay=config.weight_decay, fused=captured or None)


def build_meta_optimizer(method: Method, captured: bool) -> Optimizer | None:
    """The optimiser of theta, or None for a method without parameters."""
    theta = list(method.parameters())
    if not theta:
        return None
    if method.meta_optimizer == "sgd":
        return torch.optim.SGD(theta, method.meta_lr)
    return torch.optim.Adam(theta, method.meta_lr, capturable=captured)


def learning_rate(config: OptimConfig, step: int, total_steps: int) -> float:
    """alpha at `step` (from 0): `lr`, or half a cosine from `lr` towards 0 after the last step."""
    return config.lr if config.schedule == "constant" else config.lr * (1 + math.cos(math.pi * step / total_steps)) / 2


def set_step_size(optimizer: Optimizer, alpha: float) -> None:
    """Sets alpha for the next step, in place where a captured step reads it."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(alpha)
        else:
            group["lr"] = alpha


def load_state(optimizer: Optimizer, saved: dict[str, Any]) -> None:
    """Takes momenta and averages from `saved`, but keeps its own settings: those of a captured step do not fit a plain one, and a
    trial may go on with another step size of theta.
    """
    own = optimizer.state_dict()["param_groups"]
    # A copy, because torch goes on with the very tensors that it is given: they may be those of a trial that goes on as well.
    optimizer.load_state_dict({"state": copy.deepcopy(saved["state"]), "param_groups": own})
