"""The optimisers of several trials as one: torch's formulas on stacks, with a step size and a weight decay of each trial.

The optimisers of the trials stay: their settings are read, and their states become views of the stacks. So a trial's state can be
saved at any time, and a trial that leaves goes on with its own optimiser.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adam import adam
from torch.optim.adamw import adamw

from trainables.stacks import column, norms, part


class StackedOptimizer:
    """A step for K trials whose optimisers are of one type.

    Args:
        optimizers: torch's SGD, Adam or AdamW, one of each trial. They differ in step size, weight decay and momentum only.
        parameters: the parameters of each trial, in the order of `stacks`.
        stacks: of the parameters, each (K, ...).
        clip_norm: largest norm of a trial's gradient; None for no limit.
    """

    def __init__(
        self,
        optimizers: Sequence[Optimizer],
        parameters: Sequence[Sequence[Tensor]],
        stacks: Sequence[Tensor],
        clip_norm: float | None = None,
    ) -> None:
        self._optimizers, self._parameters, self._stacks = optimizers, parameters, [whole.detach() for whole in stacks]
        self._clip_norm = clip_norm
        groups = [[_group(optimizer, one) for one in of] for optimizer, of in zip(optimizers, parameters, strict=True)]
        by_stack = list(zip(zip(*groups, strict=True), self._stacks, strict=True))
        self.alphas = [column([group["initial_lr"] for group in of], whole) for of, whole in by_stack]
        """Step sizes without schedule, (K, 1, ...), for each stack."""
        decays = [column([group["weight_decay"] for group in of], whole) for of, whole in by_stack]
        self._decays = [decay if bool(decay.any()) else None for decay in decays]

    def step(self, gradients: Sequence[Tensor], factor: float) -> None:
        """One step along -gradients, (K, ...), with the step sizes times `factor`."""
        if self._clip_norm is not None:
            scale = (self._clip_norm / (norms(gradients) + 1e-6)).clamp(max=1.0)
            gradients = [gradient * scale.view(-1, *[1] * (gradient.dim() - 1)) for gradient in gradients]
        with torch.no_grad():
            self._step(gradients, factor)

    def _step(self, gradients: Sequence[Tensor], factor: float) -> None:
        raise NotImplementedError

    def _state(self, name: str, wanted: Sequence[bool] | None = None) -> list[Tensor]:
        """Stacks of a state that is as large as the parameters; the trials' states, which begin with 0, become views of them."""
        found = []
        for number, whole in enumerate(self._stacks):
            kept = torch.zeros_like(whole)
            for trial, (optimizer, of) in enumerate(zip(self._optimizers, self._parameters, strict=True)):
                if wanted is None or wanted[trial]:  # a look at a state would create it
                    state, view = optimizer.state[of[number]], part(kept, trial, of[number].shape)
                    if name in state:
                        view.copy_(state[name])
                    state[name] = view
            found.append(kept)
        return found


class StackedSGD(StackedOptimizer):
    """torch.optim.SGD, with a momentum of each trial."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        momenta = [optimizer.param_groups[0]["momentum"] for optimizer in self._optimizers]
        self._nesterov = self._optimizers[0].param_groups[0]["nesterov"]
        self._momenta = [column(momenta, whole) for whole in self._stacks]
        # Without momentum, torch keeps no state.
        self._buffers = self._state("momentum_buffer", [momentum > 0 for momentum in momenta]) if any(momenta) else None

    def _step(self, gradients: Sequence[Tensor], factor: float) -> None:
        for number, (whole, gradient, alpha) in enumerate(zip(self._stacks, gradients, self.alphas, strict=True)):
            decay = self._decays[number]
            along = gradient if decay is None else torch.addcmul(gradient, decay, whole)
            if self._buffers is not None:
                momentum, buffer = self._momenta[number], self._buffers[number]
                buffer.mul_(momentum).add_(along)
                along = torch.addcmul(along, momentum, buffer) if self._nesterov else buffer
            whole.addcmul_(alpha, along, value=-factor)


class StackedAdam(StackedOptimizer):
    """torch.optim.Adam and AdamW: torch's own kernel, which passes over each trial's part of the stacks once.

    The padding takes part. Its gradient is 0, so it stays 0.
    """

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        adam_w = isinstance(self._optimizers[0], torch.optim.AdamW)
        self._update = adamw if adam_w else adam
        self._means, self._squares = self._state("exp_avg"), self._state("exp_avg_sq")
        # A count of its own for each parameter, as torch has it: a trial that leaves counts each of them on.
        self._steps = torch.zeros(len(self._stacks), len(self._optimizers), device=self._stacks[0].device)
        for trial, (optimizer, of) in enumerate(zip(self._optimizers, self._parameters, strict=True)):
            for number, parameter in enumerate(of):
                self._steps[number, trial] = float(optimizer.state[parameter].get("step", 0))
                optimizer.state[parameter]["step"] = self._steps[number, trial]
        self._parts = [self._parts_of(trial) for trial in range(len(self._optimizers))]

    def _parts_of(self, trial: int) -> list[tuple[dict[str, Any], list[int], list[list[Tensor]]]]:
        """A trial's groups of settings, with the numbers of their stacks, and the trial's parts of stacks, states and counts."""
        optimizer, of = self._optimizers[trial], self._parameters[trial]
        found = []
        for group in optimizer.param_groups:
            numbers = [number for number, parameter in enumerate(of) if _group(optimizer, parameter) is group]
            parts = [[whole[number][trial] for number in numbers] for whole in (self._stacks, self._means, self._squares)]
            found.append((group, numbers, [*parts, [self._steps[number, trial] for number in numbers]]))
        return found

    def _step(self, gradients: Sequence[Tensor], factor: float) -> None:
        by_trial = [gradient.contiguous().unbind() for gradient in gradients]
        for trial, groups in enumerate(self._parts):
            for group, numbers, (parameters, means, squares, steps) in groups:
                self._update(
                    parameters,
                    [by_trial[number][trial] for number in numbers],
                    means,
                    squares,
                    [],
                    steps,
                    fused=True,
                    amsgrad=False,
                    maximize=False,
                    lr=group["initial_lr"] * factor,
                    beta1=group["betas"][0],
                    beta2=group["betas"][1],
                    weight_decay=group["weight_decay"],
                    eps=group["eps"],
                )


def stack_optimizers(
    optimizers: Sequence[Optimizer],
    parameters: Sequence[Sequence[Tensor]],
    stacks: Sequence[Tensor],
    clip_norm: float | None = None,
) -> StackedOptimizer:
    """The optimisers of K trials as one; arguments as StackedOptimizer."""
    kind = StackedSGD if isinstance(optimizers[0], torch.optim.SGD) else StackedAdam
    return kind(optimizers, parameters, stacks, clip_norm)


def unstack(parameters: Sequence[Tensor], optimizer: Optimizer | None) -> None:
    """Gives a trial that leaves memory of its own: its parameters and the state of its optimiser."""
    for parameter in parameters:
        parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
        state = optimizer.state.get(parameter, {}) if optimizer else {}
        state.update({name: value.clone(memory_format=torch.contiguous_format) for name, value in state.items()})


def _group(optimizer: Optimizer, parameter: Tensor) -> dict[str, Any]:
    """The group of settings that a parameter belongs to."""
    return next(group for group in optimizer.param_groups if any(one is parameter for one in group["params"]))
