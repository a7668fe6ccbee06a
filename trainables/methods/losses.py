"""LOSSES: a loss turns logits and labels into one number for each image. Plug-ins add rows.

In the formulas, z are the logits, p = softmax(z), y is the label, n_c the number of training images of class c by the labels
that the trainer sees, and pi_c = n_c / sum n.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.loss_config import (
    EqualizationConfig,
    FocalConfig,
    LabelAwareSmoothingConfig,
    LDAMConfig,
    LogitAdjustmentConfig,
    LossSettings,
)
from trainables.methods.context import LOSS_DRAWS, Context, Task
from trainables.registry import lookup


class Loss(nn.Module):
    """A loss of each image. Its numbers depend on the task and the settings; it learns nothing."""

    def __init__(self, config: LossSettings, task: Task) -> None:
        super().__init__()

    def forward(self, logits: Tensor, labels: Tensor, context: Context) -> Tensor:
        """The loss of each image, (B,), from logits (B, num_classes) and labels (B,).

        `labels` need not be those of the context: the meta batch and mixed images have others. The context gives random numbers
        and the moment of the training.
        """
        raise NotImplementedError

    def predict(self, logits: Tensor) -> Tensor:
        """The logits that predictions are made from, (B, num_classes); most losses leave them as they are."""
        return logits

    def constant(self, name: str, values: Tensor) -> None:
        """Keeps `values`, which follow from task and settings, on the loss's device, outside the saved state."""
        self.register_buffer(name, values, persistent=False)


class CrossEntropy(Loss):
    """-log p_y."""

    def forward(self, logits: Tensor, labels: Tensor, context: Context) -> Tensor:
        """As Loss."""
        return F.cross_entropy(logits, labels, reduction="none")


class Focal(Loss):
    """-(1 - p_y)^gamma log p_y. Source: Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, Eq. 4."""

    def __init__(self, config: FocalConfig, task: Task) -> None:
        super().__init__(config, task)
        self.gamma, self.detach_modulation = config.gamma, config.detach_modulation

    def forward(self, logits: Tensor, labels: Tensor, context: Context) -> Tensor:
        """As Loss."""
        losses = F.cross_entropy(logits, labels, reduction="none")
        # 1 - p from the loss itself: exact where p is close to 1. At 1 - p = 0 a power below 1 has no derivative.
        others = -torch.expm1(-losses.detach() if self.detach_modulation else -losses)
        return others.clamp_min(torch.finfo(others.dtype).tiny) ** self.gamma * losses


class LDAM(Loss):
    """Cross-entropy in which the label's logit is lower by s * m_y, with m_c proportional to n_c^(-1/4) and s the head's scale.

    Source: Cao et al., "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss", NeurIPS 2019, Eq. 13 and code.
    """

    margins: Tensor

    def __init__(self, config: LDAMConfig, task: Task) -> None:
        super().__init__(config, task)
        inverse = task.class_counts.clamp_min(1).double() ** -0.25
        self.constant("margins", task.head_scale * config.max_margin * inverse / inverse.max())

    def forward(self, logits: Tensor, labels: Tensor, context: Context) -> Tensor:
        """As Loss."""
        return F.cross_entropy(logits - F.one_hot(labels, logits.shape[1]) * self.margins, labels, reduction="none")


class Equalization(Loss):
    """-log(e^{z_y} / sum_k w_k e^{z_k}) with w_k = 1 - b T_k (1 - y_k): b is 1 with probability gamma, T_k is 1 for rare classes.

    Source: Tan et al., "Equalization Loss for Long-Tailed Object Recognition", CVPR 2020, section 3.3 (softmax form).
    """

    rare: Tensor

    def __init__(self, config: EqualizationConfig, task: Task) -> None:
        super().__init__(config, task)
        self.ignore_probability, self.draws = config.ignore_probability, config.draws
        self.constant("rare", task.class_counts.double() / task.num_images < config.rare_below)

    def forward(self, logits: Tensor, labels: Tensor, context: Context) -> Tensor:
        """As Loss."""
        shape = logits.shape if self.draws == "entry" else (1, 1)
        drawn = context.uniform(*shape, stream=LOSS_DRAWS) < self.ignore_probability
        others = F.one_hot(labels, logits.shape[1]) == 0
        return F.cross_entropy(logits.masked_fill(drawn & others & self.rare, -math.inf), labels, reduction="none")


class LogitAdjustment(Loss):
    """Cross-entropy of z + tau log pi, or, with `where: prediction`, cross-entropy of z and predictions from z - tau log pi.

    Source: Menon et al., "Long-Tail Learning via Logit Adjustment", ICLR 2021, Eq. 9 and 10. With tau 1, the loss is balanced
    softmax: Ren et al., "Balanced Meta-Softmax for Long-Tailed Visual Recognition", NeurIPS 2020, Eq. 4. The two differ in the
    papers by a constant of all logits, which no softmax sees. A class without a training image counts as one with a single
    image, because log 0 would let no gradient through.
    """

    shift: Tensor

    def __init__(self, config: LossSettings, task: Task) -> None:
        super().__init__(config, task)
        adjustment = config if isinstance(config, LogitAdjustmentConfig) else LogitAdjustmentConfig()
        self.in_loss = adjustment.where == "loss"
        counts = task.class_counts.clamp_min(1).double()
        self.constant("shift", adjustment.tau * torch.log(counts / counts.sum()))

    def forward(self, logits: Tensor, labels: Tensor, context: Context) -> Tensor:
        """As Loss."""
        return F.cross_entropy(logits + self.shift if self.in_loss else logits, labels, reduction="none")

    def predict(self, logits: Tensor) -> Tensor:
        """As Loss."""
        return logits if self.in_loss else logits - self.shift


class LabelAwareSmoothing(Loss):
    """(1 - e_y) (-log p_y) + e_y mean_k (-log p_k), with e_c = tail + (head - tail) sin(pi/2 (n_c - n_min) / (n_max - n_min)).

    Source: Zhong et al., "Improving Calibration for Long-Tailed Recognition" (MiSLAS), CVPR 2021, Eq. 3 and 4 in the form of the
    released code, whose mean includes the label itself. With equal counts, all classes have the head's smoothing.
    """

    smoothing: Tensor

    def __init__(self, config: LabelAwareSmoothingConfig, task: Task) -> None:
        super().__init__(config, task)
        counts = task.class_counts.double()
        spread = counts.max() - counts.min()
        place = (counts - counts.min()) / spread if spread > 0 else torch.ones_like(counts)
        span = config.head_smoothing - config.tail_smoothing
        self.constant("smoothing", config.tail_smoothing + span * torch.sin(math.pi / 2 * place))

    def forward(self, logits: Tensor, labels: Tensor, context: Context) -> Tensor:
        """As Loss."""
        surprise = -logits.log_softmax(1)
        smoothing = self.smoothing[labels]
        return (1 - smoothing) * surprise.gather(1, labels[:, None])[:, 0] + smoothing * surprise.mean(1)


LOSSES: dict[str, Callable[[Any, Task], Loss]] = {
    "cross_entropy": CrossEntropy,
    "focal": Focal,
    "ldam": LDAM,
    "equalization": Equalization,
    "balanced_softmax": LogitAdjustment,
    "logit_adjustment": LogitAdjustment,
    "label_aware_smoothing": LabelAwareSmoothing,
}


def build_loss(config: LossSettings, task: Task) -> Loss:
    """The loss that `config` names, for `task`."""
    return lookup(LOSSES, config.name, "loss")(config, task)
