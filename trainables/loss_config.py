"""Settings of the losses, which turn logits and labels into one number for each image. Each loss has its own settings class,
chosen by name.

Every loss is also a method of its own, under the same name: all images have the same weight, and there is no meta step.
"""

from typing import Annotated, Literal

from pydantic import Field

from trainables.registry import OneOf
from trainables.settings import Settings


class MethodSettings(Settings):
    """Settings that all methods and losses have: a name."""

    name: str
    """Name of the method or loss."""


class LossSettings(MethodSettings):
    """Base class of a loss's settings."""


class CrossEntropyConfig(LossSettings):
    """Plain cross-entropy. As a method: all images have the same weight, and there is no meta step."""

    name: Literal["cross_entropy"] = "cross_entropy"
    """Name of the loss."""


class FocalConfig(LossSettings):
    """Focal loss (Lin et al., ICCV 2017): images that the classifier already knows count less."""

    name: Literal["focal"] = "focal"
    """Name of the loss."""
    gamma: float = Field(1.0, ge=0)
    """Exponent of 1 - p, where p is the probability of the label. 0 gives cross-entropy. 1 as in the code of the long-tail
    papers, 2 in the original paper."""
    detach_modulation: bool = False
    """Whether the factor (1 - p)^gamma is a constant for the gradient, as in the released code of Difficulty-Net. In the paper
    and in LDAM's code it is not."""


class LDAMConfig(LossSettings):
    """LDAM (Cao et al., NeurIPS 2019): rare classes have to win by a larger margin. Made for the cosine head."""

    name: Literal["ldam"] = "ldam"
    """Name of the loss."""
    max_margin: float = Field(0.5, ge=0)
    """Margin of the rarest class, in units of the cosine; the others follow n_c^(-1/4). 0 gives cross-entropy. With the linear
    head the margin is in units of the logits."""


class EqualizationConfig(LossSettings):
    """Equalization loss in its softmax form (Tan et al., CVPR 2020): images of other classes do not push rare classes down."""

    name: Literal["equalization"] = "equalization"
    """Name of the loss."""
    ignore_probability: float = Field(0.9, ge=0, le=1)
    """How often a rare class is spared; gamma in the paper. 0 gives cross-entropy."""
    rare_below: float = Field(0.005, ge=0, le=1)
    """Classes with a smaller share of the training images are rare; lambda in the paper. 0.005 as in the code for CIFAR-100-LT.
    With 10 classes, a share that is rare there is about 0.05."""
    draws: Literal["entry", "batch"] = "entry"
    """What is drawn at random. `entry`: each pair of an image and a class on its own. `batch`: one draw for the whole batch, as
    in the released code of Difficulty-Net."""


class BalancedSoftmaxConfig(LossSettings):
    """Balanced softmax (Ren et al., NeurIPS 2020): cross-entropy of the logits plus the logarithm of the class counts."""

    name: Literal["balanced_softmax"] = "balanced_softmax"
    """Name of the loss."""


class LogitAdjustmentConfig(LossSettings):
    """Logit adjustment (Menon et al., ICLR 2021): logits are shifted by the classes' shares, in training or in prediction."""

    name: Literal["logit_adjustment"] = "logit_adjustment"
    """Name of the loss."""
    tau: float = Field(1.0, ge=0)
    """Factor of the logarithm of the classes' shares. 0 gives cross-entropy, 1 is the theory's value."""
    where: Literal["loss", "prediction"] = "loss"
    """`loss`: the training loss adds tau log pi to the logits. `prediction`: training is plain cross-entropy, and predictions,
    those of the exported model too, subtract tau log pi (post-hoc adjustment)."""


class LabelAwareSmoothingConfig(LossSettings):
    """Label-aware smoothing (Zhong et al., MiSLAS, CVPR 2021): labels of frequent classes are smoothed more."""

    name: Literal["label_aware_smoothing"] = "label_aware_smoothing"
    """Name of the loss."""
    head_smoothing: float = Field(0.4, ge=0, lt=1)
    """Smoothing of the most frequent class. 0.4 as for CIFAR-100-LT with imbalance factor 100."""
    tail_smoothing: float = Field(0.1, ge=0, lt=1)
    """Smoothing of the rarest class. The classes between follow a quarter of a sine in their counts."""


LOSS_SETTINGS: dict[str, type[LossSettings]] = {
    "cross_entropy": CrossEntropyConfig,
    "focal": FocalConfig,
    "ldam": LDAMConfig,
    "equalization": EqualizationConfig,
    "balanced_softmax": BalancedSoftmaxConfig,
    "logit_adjustment": LogitAdjustmentConfig,
    "label_aware_smoothing": LabelAwareSmoothingConfig,
}
"""The settings class of each loss, by name. LOSSES in methods/losses.py has the class or function that builds each loss."""

LossConfig = Annotated[LossSettings, OneOf(LOSS_SETTINGS, "name")]
"""The settings of one loss, chosen by its name."""
