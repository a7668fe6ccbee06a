"""The average of phi over the steps, which is evaluated and exported in place of phi where `optim.ema` is set."""

import copy

import torch
from torch import Tensor

from trainables.engine.meta_gradient import named_trained, trained
from trainables.models.classifier import Classifier


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
        self._average, self._phi, self._decay = trained(self.classifier), trained(classifier), decay

    @torch.no_grad()
    def update(self) -> None:
        """Takes phi into the average; called after each step."""
        torch._foreach_lerp_(self._average, self._phi, 1 - self._decay)

    def state(self) -> dict[str, Tensor]:
        """The average of each trained parameter, by the parameter's name."""
        return {name: average.detach() for name, average in named_trained(self.classifier).items()}

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        """Goes on from the average of a `state`."""
        for name, average in named_trained(self.classifier).items():
            average.copy_(state[name])
