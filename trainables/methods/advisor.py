"""Advisor networks: MFRW, meta feature re-weighting; MES, meta equalised softmax; and both in one network.

Source: Ricci et al., "Meta-learning Advisor Networks for Long-tail and Noisy Labels in Social Image Classification", ACM TOMM
2023. The advisor Psi(f, L; theta) sees an image's features f and its loss L. Only training uses the advisor: predictions come
from the classifier alone. The paper's four phases: the losses at phi (context.losses), virtual step, meta step, actual step.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.method_config import AdvisorSettings, MESConfig, MFRWConfig, MFRWMESConfig
from trainables.methods.base import DEAD_AFTER, Head, Method
from trainables.methods.context import Context, Task
from trainables.methods.outputs import Outputs


class Advisor(Method):
    """The advisor network, with a head for the mask of the features, or for the logits of other classes, or for both.

    With the mask, the classifier's head sees f * W, W in (0, 1)^D. With the equalised softmax, the loss is that of the
    probabilities p_j = e^{z_j} / sum_k w_k e^{z_k} with w_k = 1 - b s_k (1 - y_k), s in (0, 1)^C and b ~ Bernoulli(rho).
    """

    def __init__(self, config: AdvisorSettings, task: Task) -> None:
        super().__init__(config, task)
        self.detach_inputs = config.detach_inputs
        self.embed_features = nn.Linear(task.num_features, config.hidden_width)
        self.embed_loss = nn.Linear(1, config.hidden_width)
        self.masks, self.equalises = isinstance(config, MFRWConfig | MFRWMESConfig), isinstance(config, MESConfig)
        if self.masks:
            self.to_mask = nn.Linear(2 * config.hidden_width, task.num_features)
        if isinstance(config, MESConfig):
            self.to_softmax = nn.Linear(2 * config.hidden_width, task.num_classes)
            self.equalise_probability, self.draws = config.equalise_probability, config.draws
            if not self.masks:
                self.dead_after = self._dead_after(task)
        self.class_counts = task.class_counts
        self.suppressions = Outputs()
        """Of s; `outputs` is of the mask."""

    def _dead_after(self, task: Task) -> int | None:
        """Of MES alone, a batch whose draws are all 0 has no meta-gradient, and so many in a row must not come by chance."""
        number = {"image": task.batch_size, "batch": 1, "entry": task.batch_size * task.num_classes}[self.draws]
        if self.equalise_probability == 0:
            return None
        if self.equalise_probability == 1:
            return DEAD_AFTER
        chance = number * math.log1p(-self.equalise_probability)  # logarithm of the probability that all draws are 0
        return max(DEAD_AFTER, math.ceil(math.log(1e-9) / chance))

    def begin_batch(self, context: Context) -> Tensor:
        """The embedded losses, (B, hidden_width), on theta's tape."""
        state = F.relu(self.embed_loss(context.losses.unsqueeze(1)))
        with torch.no_grad():  # for reports; here and not in `train_loss`, which is also called at other features and on tapes
            embedded = self._embedded(context.features, state)
            if self.masks:
                self.outputs.add(torch.sigmoid(self.to_mask(embedded)), context)
            if self.equalises:
                self.suppressions.add(torch.sigmoid(self.to_softmax(embedded)), context)
        return state

    def begin_epoch(self) -> None:
        """Forgets the masks and suppressions of the epoch before."""
        super().begin_epoch()
        self.suppressions.clear()

    def output_extremes(self) -> tuple[float, float | None] | None:
        """Of masks and suppressions together."""
        found = [extremes for extremes in (self.outputs.extremes(), self.suppressions.extremes()) if extremes is not None]
        widest = [width for _, width in found if width is not None]
        return (max(liveliest for liveliest, _ in found), max(widest) if widest else None) if found else None

    def metrics(self) -> dict[str, float]:
        """Of all entries of the epoch's masks: mean, standard deviation, and share below 1/2 (Fig. 7). Of the classes' mean
        suppressions s: the mean absolute difference to the class sizes, both scaled to [0, 1] (Fig. 9).
        """
        found = {}
        if moments := self.outputs.moments():
            found = dict(zip(("mask/mean", "mask/std", "mask/below_half"), moments, strict=True))
        suppression = self.suppressions.means()
        if suppression is not None:
            sizes = self.class_counts.to(suppression)
            found["suppression/size_error"] = float((to_unit(suppression) - to_unit(sizes)).abs().mean())
        return found

    def train_loss(self, head: Head, features: Tensor, context: Context, state: Tensor) -> Tensor:
        """Mean base loss of the masked features, or of the equalised softmax, or of both, ()."""
        embedded = self._embedded(features, state)
        if self.masks:
            features = torch.sigmoid(self.to_mask(embedded)) * features
        logits = head(features)
        if self.equalises:
            # log w = b (1 - y) log(1 - s): the factors are 0 or 1. 1 - s itself would round to 0 for large outputs.
            log_rest = F.logsigmoid(-self.to_softmax(embedded))
            logits = logits + self._drawn(context) * self._others(context) * log_rest
        return self.sample_losses(logits, context).mean()

    def _embedded(self, features: Tensor, embedded_losses: Tensor) -> Tensor:
        """The two embeddings, (B, 2 * hidden_width)."""
        # With detached inputs phi's gradient flows through the product f * W only, not through the mask W.
        seen = features.detach() if self.detach_inputs else features
        return torch.cat([F.relu(self.embed_features(seen)), embedded_losses], dim=1)

    def _others(self, context: Context) -> Tensor:
        """1 - y, 0 or 1, (B, num_classes). A mixed image has two labels."""
        own = F.one_hot(context.labels, self.num_classes)
        return 1 - (own if context.partners is None else own | F.one_hot(context.partners, self.num_classes))

    def _drawn(self, context: Context) -> Tensor:
        """b, 0 or 1, (B or 1, num_classes or 1)."""
        number = len(context.labels)
        shape = {"image": (number, 1), "batch": (1, 1), "entry": (number, self.num_classes)}[self.draws]
        return (context.uniform(*shape) < self.equalise_probability).to(context.features.dtype)


def to_unit(values: Tensor) -> Tensor:
    """Values (num_classes,) shifted and scaled to [0, 1]; 0 for all if all are equal."""
    lowest, highest = values.min(), values.max()
    return (values - lowest) / torch.where(highest > lowest, highest - lowest, 1)
