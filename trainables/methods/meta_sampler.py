"""The meta sampler of BALMS: theta are sampling rates of the classes, learned by the meta-gradient.

Source: Ren et al., "Balanced Meta-Softmax for Long-Tailed Visual Recognition", NeurIPS 2020, section 3.3 and code.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.method_config import MetaSamplerConfig
from trainables.methods.context import Context, Task
from trainables.methods.weighted import Weighted


class Drawn(NamedTuple):
    """The state: what was drawn."""

    weights: Tensor
    """How often each image of the batch was drawn, (B,)."""


class MetaSampler(Weighted):
    """Draws B images with replacement from the B images of a batch, each in proportion to the rate of its class.

    The draws are hard Gumbel-softmax: whole images in the forward pass, and the gradient of the probabilities. So an image's
    weight is the number of its draws. The rates are sigmoids of theta, one for each class, which start in proportion to
    n_c^-initial_power, the rarest class at 1/2.
    """

    def __init__(self, config: MetaSamplerConfig, task: Task) -> None:
        super().__init__(config, task)
        counts = task.class_counts.clamp_min(1).double()
        rates = 0.5 * (counts.min() / counts) ** config.initial_power
        self.rates = nn.Parameter(torch.log(rates / (1 - rates)).float())

    def begin_batch(self, context: Context) -> Drawn:
        """How often each image is drawn, (B,), on theta's tape."""
        number = len(context.labels)
        log_rates = F.logsigmoid(self.rates)[context.labels]
        # The logarithm of 0 is not finite. The largest number, 1 - 2^-24, stays: a sum with 2^-25 would round it to 1.
        uniform = context.uniform(number, number).to(log_rates.dtype).clamp_min(2**-25)
        gumbel = -torch.log(-torch.log(uniform))
        soft = torch.softmax(log_rates + gumbel, dim=1)
        hard = F.one_hot(soft.argmax(1), number).to(soft.dtype)
        return Drawn((hard + soft - soft.detach()).sum(0))

    @torch.no_grad()
    def class_weights(self) -> Tensor:
        """The rates, (num_classes,): an image is drawn in proportion to them, and how often it really was is up to chance."""
        return torch.sigmoid(self.rates)

    def output_extremes(self) -> tuple[float, float | None]:
        """Of the rates."""
        rates = self.class_weights()
        return float(torch.minimum(rates, 1 - rates).max()), None

    def metrics(self) -> dict[str, float]:
        """The largest rate over the smallest."""
        rates = F.logsigmoid(self.rates.detach())
        return {"sampler/rate_ratio": math.exp(float(rates.max() - rates.min()))}
