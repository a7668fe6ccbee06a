"""The optimisers of phi and theta, and the schedule of the step size alpha."""

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
    """The optimiser of phi. A captured step needs alpha as a tensor, and only SGD's fused kernel reads alpha from the device."""
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
    """alpha at `step` (from 0): constant `lr`, or half a cosine from `lr` at step 0 to 0 at `total_steps`."""
    return config.lr if config.schedule == "constant" else config.lr * (1 + math.cos(math.pi * step / total_steps)) / 2


def set_step_size(optimizer: Optimizer, alpha: float) -> None:
    """Sets alpha for the next step. A tensor is changed in place, because a captured step reads its memory."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(alpha)
        else:
            group["lr"] = alpha


def load_state(optimizer: Optimizer, saved: dict[str, Any]) -> None:
    """Loads momenta and averages from `saved`, but keeps the optimiser's own settings.

    The saved settings may not fit: a captured step needs others than a plain step, and a trial may go on with another step size
    of theta.
    """
    own = optimizer.state_dict()["param_groups"]
    # A deep copy: torch would reuse the given tensors, and the trial that they come from may still be running.
    optimizer.load_state_dict({"state": copy.deepcopy(saved["state"]), "param_groups": own})
