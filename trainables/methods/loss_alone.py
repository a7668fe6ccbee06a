"""A loss of LOSSES as a method of its own: all images have the same weight, and there is no theta."""

from typing import Any

from torch import Tensor

from trainables.methods.base import Head, Method
from trainables.methods.context import Context


class LossAlone(Method):
    """The mean of a loss over the batch. Cross-entropy alone is the baseline of all comparisons."""

    def train_loss(self, head: Head, features: Tensor, context: Context, state: Any) -> Tensor:
        """The mean of the base loss, ()."""
        return self.sample_losses(head(features), context).mean()
