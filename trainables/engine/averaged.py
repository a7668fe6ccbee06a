"""The average of phi over the steps, which is evaluated and exported in place of phi where `optim.ema` is set."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from trainables.engine.meta_gradient import named_trained, trained
from trainables.models.classifier import Classifier
from trainables.stacks import column, stack_parameters


class Averaged:
    """An exponential moving average of a classifier's trained parameters.

    It begins as phi. Each `update` does average <- decay * average + (1 - decay) * phi. The classifier's other tensors are not
    averaged: `classifier` shares its buffers, such as BatchNorm's running statistics, and its frozen parameters.

    Args:
        classifier: has the parameters phi. Its tensors must stay the same, as when a CUDA graph writes to them.
        decay: in (0, 1).
    """

    def __init__(self, classifier: Classifier, decay: float) -> None:
        averaged = {id(parameter) for parameter in trained(classifier)}
        tensors: list[Tensor] = [*classifier.parameters(), *classifier.buffers()]
        shared = {id(tensor): tensor for tensor in tensors if id(tensor) not in averaged}
        self.classifier: Classifier = copy.deepcopy(classifier, shared)
        """The classifier with the average as its parameters."""
        self.decay = decay
        self._average, self._phi = trained(self.classifier), trained(classifier)

    @torch.no_grad()
    def update(self) -> None:
        """Takes phi into the average; called after each step."""
        torch._foreach_lerp_(self._average, self._phi, 1 - self.decay)

    def state(self) -> dict[str, Tensor]:
        """The average of each trained parameter, by the parameter's name."""
        return {name: average.detach() for name, average in named_trained(self.classifier).items()}

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        """Goes on from the average of a `state`."""
        for name, average in named_trained(self.classifier).items():
            average.copy_(state[name])


class StackedAverages:
    """The averages of several trials as one. In a trial that keeps none, phi itself stands in its place.

    Args:
        averages: of each trial, or None. Their parameters become views of `stacks`.
        parameters: phi of each trial.
        phi: stacks (K, ...) of these parameters.
    """

    def __init__(
        self, averages: Sequence[Averaged | None], parameters: Sequence[Sequence[Tensor]], phi: Sequence[Tensor]
    ) -> None:
        given = [
            trained(average.classifier) if average else [parameter.detach().clone() for parameter in of]
            for average, of in zip(averages, parameters, strict=True)
        ]
        self.stacks, self._phi = stack_parameters(given), phi
        """Stacks (K, ...) of the averages."""
        shares = [1 - average.decay if average else 1.0 for average in averages]
        self._shares = [column(shares, whole) for whole in phi]

    @torch.no_grad()
    def update(self) -> None:
        """Takes phi into the averages; called after each step."""
        for average, phi, share in zip(self.stacks, self._phi, self._shares, strict=True):
            average.lerp_(phi, share)
