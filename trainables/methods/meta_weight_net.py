"""Meta-Weight-Net: a small network maps each sample's loss to its weight.

Source: Shu et al., "Meta-Weight-Net: Learning an Explicit Mapping For Sample Weighting", NeurIPS 2019, Eq. 3-8.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from trainables.method_config import MetaWeightNetConfig
from trainables.methods.base import Head, Method, Task


class MetaWeightNet(Method):
    """Sample weights w_i = V(CE_i; theta). V is a network with one hidden layer; its inputs, the losses, are detached."""

    def __init__(self, config: MetaWeightNetConfig, task: Task) -> None:
        super().__init__()
        self.weight_scale = config.weight_scale
        self.meta_lr = config.meta_lr
        self.meta_optimizer = config.meta_optimizer
        self.network = nn.Sequential(
            nn.Linear(1, config.hidden_width), nn.ReLU(), nn.Linear(config.hidden_width, 1), nn.Sigmoid()
        )

    def begin_batch(self, labels: Tensor, losses: Tensor) -> Tensor:
        """The weights of the batch, (B,), on theta's tape."""
        weights: Tensor = self.network(losses.unsqueeze(1)).squeeze(1)
        return weights / weights.mean() if self.weight_scale == "mean_one" else weights

    def train_loss(self, head: Head, features: Tensor, labels: Tensor, state: Tensor) -> Tensor:
        """(1/B) sum_i w_i CE_i, ()."""
        return (state * F.cross_entropy(head(features), labels, reduction="none")).mean()
