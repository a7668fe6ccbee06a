"""Meta-Weight-Net: a small network maps each sample's loss to its weight.

Source: Shu et al., "Meta-Weight-Net: Learning an Explicit Mapping For Sample Weighting", NeurIPS 2019, Eq. 3-8.
"""

from torch import Tensor, nn

from trainables.method_config import MetaWeightNetConfig
from trainables.methods.context import Context, Task
from trainables.methods.weighted import Weighted


class MetaWeightNet(Weighted):
    """Sample weights w_i = V(L_i; theta), where L_i is the image's base loss.

    V is a network with one hidden layer; its inputs, the losses, are detached.
    """

    def __init__(self, config: MetaWeightNetConfig, task: Task) -> None:
        super().__init__(config, task)
        self.weight_scale = config.weight_scale
        self.network = weight_of_loss(config.hidden_width)

    def begin_batch(self, context: Context) -> Tensor:
        """The weights of the batch, (B,), on theta's tape."""
        weights: Tensor = self.network(context.losses.unsqueeze(1)).squeeze(1)
        self.outputs.add(weights.unsqueeze(1), context)
        return weights / weights.mean() if self.weight_scale == "mean_one" else weights


def weight_of_loss(hidden_width: int) -> nn.Module:
    """V: losses (B, 1) -> weights (B, 1) in (0, 1), with one hidden layer."""
    return nn.Sequential(nn.Linear(1, hidden_width), nn.ReLU(), nn.Linear(hidden_width, 1), nn.Sigmoid())
