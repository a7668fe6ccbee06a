"""The optimisers of phi and theta, and the schedules of their step sizes alpha and beta.

Each parameter group keeps its step size without schedule as `initial_lr`; `lr` is the current one, on the GPU of a captured step
a tensor that the step reads.
"""

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from trainables.method_config import MetaSettings
from trainables.methods.base import Method
from trainables.models.classifier import Classifier
from trainables.optim_config import OptimConfig


def build_optimizer(config: OptimConfig, classifier: Classifier, captured: bool) -> Optimizer:
    """The optimiser of phi, without the parameters that do not require a gradient.

    Args:
        config: the settings of phi's training.
        classifier: has the parameters phi.
        captured: whether steps are captured as CUDA graphs.

    Returns: SGD or AdamW; its `step` first clips the gradient if `clip_norm` is set.
    """
    groups = _parameter_groups(config, classifier, captured)
    optimizer: Optimizer
    if config.optimizer == "adamw":
        optimizer = torch.optim.AdamW(groups, capturable=captured)
    else:
        # A captured step needs alpha as a tensor, and only SGD's fused kernel reads alpha from the device.
        optimizer = torch.optim.SGD(groups, momentum=config.momentum, nesterov=config.nesterov, fused=captured or None)
    if (largest := config.clip_norm) is not None:
        phi = [parameter for group in groups for parameter in group["params"]]
        optimizer.register_step_pre_hook(lambda *_: _clip(phi, largest))
    return optimizer


def build_meta_optimizer(method: Method, captured: bool) -> Optimizer | None:
    """The optimiser of theta, or None for a method without parameters.

    Raises:
        ValueError: when the method has parameters, but no settings of their training.
    """
    theta, meta = list(method.parameters()), method.meta
    if not theta:
        return None
    if meta is None:
        raise ValueError(
            f"{type(method).__name__}.meta is None, but the method has parameters; allowed: settings that inherit from "
            "MetaSettings. Set `self.meta = config` in the method's __init__"
        )
    # A step size that stays is part of the captured step. Only a step size that changes has to be a tensor.
    changes = captured and meta.meta_schedule != "constant"
    groups = [_group(theta, meta.meta_lr, meta.meta_weight_decay, changes)]
    if meta.meta_optimizer == "adam":
        return torch.optim.Adam(groups, capturable=captured)
    optimizer = torch.optim.SGD(groups, momentum=meta.meta_momentum, fused=changes or None)
    if changes:
        optimizer.register_step_pre_hook(lambda *_: _lay_out(theta))
    return optimizer


def schedule_factor(config: OptimConfig, step: int, total_steps: int, steps_per_epoch: int) -> float:
    """The factor in [0, 1] by which the schedule and the warm-up scale every step size of phi. alpha is `lr` times the factor.

    Args:
        config: the settings of phi's training.
        step: counted from 0 over the whole trial.
        total_steps: of the trial; half a cosine reaches 0 at this step, which is no longer made.
        steps_per_epoch: turns the epochs of `milestones` and `warmup_epochs` into steps, rounded to whole ones.
    """
    warmup = round(config.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return (step + 1) / warmup
    if config.schedule == "cosine":
        return _half_cosine(step - warmup, total_steps - warmup)
    passed = [milestone for milestone in config.milestones if step >= round(milestone * steps_per_epoch)]
    return config.decay ** len(passed)  # 1 for a constant step size, which has no milestones


def meta_schedule_factor(meta: MetaSettings, step: int, total_steps: int, of_phi: float) -> float:
    """The factor in [0, 1] by which the schedule of theta scales beta.

    Args:
        meta: the settings of theta's training.
        step: counted from 0 over the whole trial.
        total_steps: of the trial.
        of_phi: the `schedule_factor` of this step.
    """
    if meta.meta_schedule == "follow":
        return of_phi
    return _half_cosine(step, total_steps) if meta.meta_schedule == "cosine" else 1.0


def set_step_size(optimizer: Optimizer, factor: float) -> None:
    """Scales the step size of every group for the next step: `initial_lr` times `factor`.

    A tensor is changed in place, because a captured step reads its memory.
    """
    for group in optimizer.param_groups:
        alpha = group["initial_lr"] * factor
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(alpha)
        else:
            group["lr"] = alpha


def step_sizes(optimizer: Optimizer, classifier: Classifier) -> list[Tensor]:
    """The current step size of each trained parameter, in the classifier's order, without waiting for the GPU.

    Returns: () tensors in float64 on the parameters' device. float64 holds a step size that is a Python float exactly, and a ()
        tensor does not promote float32 gradients. Parameters of one group share a tensor.
    """
    of: dict[int, Tensor] = {}
    for group in optimizer.param_groups:
        alpha, device = group["lr"], group["params"][0].device
        # `full` instead of `tensor`: the number travels with the kernel, not as a copy from memory that the GPU waits for.
        tensor = alpha.double() if isinstance(alpha, Tensor) else torch.full((), alpha, dtype=torch.float64, device=device)
        of |= {id(parameter): tensor for parameter in group["params"]}
    return [of[id(parameter)] for parameter in classifier.parameters() if parameter.requires_grad]


def load_state(optimizer: Optimizer, saved: dict[str, Any]) -> None:
    """Loads momenta and averages from `saved`, but keeps the optimiser's own settings.

    The saved settings may not fit: a captured step needs others than a plain step, and a trial may go on with another step size
    of theta.
    """
    own = optimizer.state_dict()["param_groups"]
    # A deep copy: torch would reuse the given tensors, and the trial that they come from may still be running.
    optimizer.load_state_dict({"state": copy.deepcopy(saved["state"]), "param_groups": own})


def _parameter_groups(config: OptimConfig, classifier: Classifier, captured: bool) -> list[dict[str, Any]]:
    """One group of all parameters, in their order; or several if parameters differ in step size or weight decay."""
    of_head = {id(parameter) for parameter in classifier.head.parameters()}
    factors = getattr(classifier.head, "step_factors", {})
    slower = {
        id(parameter): factor
        for start, factor in factors.items()
        for name, parameter in classifier.head.named_parameters()
        if name.startswith(start)
    }
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for parameter in classifier.parameters():
        if parameter.requires_grad:
            alpha = config.head_lr if config.head_lr is not None and id(parameter) in of_head else config.lr
            alpha *= slower.get(id(parameter), 1)
            decays = config.weight_decay_biases or parameter.ndim > 1
            groups.setdefault((alpha, config.weight_decay if decays else 0.0), []).append(parameter)
    return [_group(phi, alpha, weight_decay, captured) for (alpha, weight_decay), phi in groups.items()]


def _group(parameters: list[Any], alpha: float, weight_decay: float, as_tensor: bool) -> dict[str, Any]:
    lr = torch.tensor(alpha, device=parameters[0].device) if as_tensor else alpha
    return {"params": parameters, "lr": lr, "initial_lr": alpha, "weight_decay": weight_decay}


def _half_cosine(step: int, total_steps: int) -> float:
    return (1 + math.cos(math.pi * step / total_steps)) / 2


def _clip(parameters: Sequence[Tensor], largest: float) -> None:
    """Scales the gradient of all parameters together down to the Euclidean norm `largest`, without waiting for the GPU.

    As torch's `clip_grad_norm_`, but not in place: a compiler may return one tensor as the gradient of two parameters, for
    example of the biases of two BatchNorms whose outputs are added, and this tensor would be scaled twice.
    """
    gradients = {parameter: parameter.grad for parameter in parameters if parameter.grad is not None}
    norm = torch.nn.utils.get_total_norm(gradients.values())
    scale = (largest / (norm + 1e-6)).clamp(max=1.0)
    for parameter, gradient in gradients.items():
        parameter.grad = gradient * scale


def _lay_out(parameters: Sequence[Tensor]) -> None:
    """Gives gradients the memory layout of their parameters, which fused optimisers need."""
    for parameter in parameters:
        if parameter.grad is not None and parameter.grad.stride() != parameter.stride():
            parameter.grad = torch.empty_like(parameter).copy_(parameter.grad)
