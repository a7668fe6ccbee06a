"""Settings of the methods, which turn a batch into a training loss. Each method has its own settings class, chosen by name."""

from typing import Annotated, Literal

from pydantic import Field

from trainables.registry import OneOf
from trainables.settings import Settings


class MethodSettings(Settings):
    """Settings that all methods have: a name."""

    name: str
    """Name of the method."""


class CrossEntropyConfig(MethodSettings):
    """Plain cross-entropy: all images have the same weight, and there is no meta step."""

    name: Literal["cross_entropy"] = "cross_entropy"
    """Name of the method."""


class DifficultyNetConfig(MethodSettings):
    """Difficulty-Net (Sinha & Ohashi, WACV 2023): class weights predicted from class accuracies, learned by a meta-gradient."""

    name: Literal["difficulty_net"] = "difficulty_net"
    """Name of the method."""
    driver_weight: float = Field(0.3, ge=0)
    """Weight of the driver loss in the meta loss; lambda in the paper. 0 switches the driver loss off. Adam, the default of
    `meta_optimizer`, divides each gradient by its own size: once the driver loss dominates the meta loss, larger values change
    little. With `sgd` the size counts."""
    meta_lr: float = Field(1e-3, gt=0)
    """Step size of the weighting network; beta in the paper."""
    hidden_width: int = Field(128, ge=1)
    """Width of the weighting network's two hidden layers; H in the paper. The paper takes the smallest power of two above the
    number of classes."""
    refresh_interval: float = Field(1.0, gt=0)
    """Epochs between two measurements of the class accuracies A_C. 1 as in the paper; 0.25 measures four times per epoch."""
    weight_scale: Literal["mean_one", "none"] = "mean_one"
    """Scale of the class weights. `mean_one` scales the weights to mean 1, as in the released code. `none` takes the weights as
    they are (Eq. 4)."""
    meta_optimizer: Literal["adam", "sgd"] = "adam"
    """Optimiser of the weighting network. `adam` as in the released code. `sgd` as in Eq. 10, without momentum: steps are in
    proportion to the gradient, so that lambda counts and beta has to be larger, 0.3 on the digits in place of Adam's 1e-3."""


class MetaWeightNetConfig(MethodSettings):
    """Meta-Weight-Net (Shu et al., NeurIPS 2019): the weight of each sample is a learned function of the sample's loss."""

    name: Literal["meta_weight_net"] = "meta_weight_net"
    """Name of the method."""
    meta_lr: float = Field(1e-3, gt=0)
    """Step size of the weighting network; beta in the papers. 1e-3 as in the authors' code for noisy labels."""
    hidden_width: int = Field(100, ge=1)
    """Width of the weighting network's hidden layer."""
    weight_scale: Literal["mean_one", "none"] = "none"
    """Scale of the sample weights. `none` takes the weights as they are, in (0, 1), as in the authors' code for noisy labels.
    `mean_one` scales the weights to mean 1 over the batch, as in the authors' code for long tails."""
    meta_optimizer: Literal["adam", "sgd"] = "adam"
    """Optimiser of the weighting network."""


class MFRWConfig(MethodSettings):
    """Meta feature re-weighting (Ricci et al., advisor networks, 2023): an advisor network masks features in training only."""

    name: Literal["mfrw"] = "mfrw"
    """Name of the method."""
    meta_lr: float = Field(1e-4, gt=0)
    """Step size of the advisor network."""
    hidden_width: int = Field(100, ge=1)
    """Width of each of the advisor network's two embeddings, one of the features and one of the loss."""
    detach_inputs: bool = True
    """Whether the advisor network's inputs are detached, so that the classifier gets no gradient through them. The paper leaves
    it open."""
    meta_optimizer: Literal["adam", "sgd"] = "adam"
    """Optimiser of the advisor network; Adam in the paper."""


METHOD_SETTINGS: dict[str, type[MethodSettings]] = {
    "cross_entropy": CrossEntropyConfig,
    "difficulty_net": DifficultyNetConfig,
    "meta_weight_net": MetaWeightNetConfig,
    "mfrw": MFRWConfig,
}
"""The settings class of each method, by name. METHODS in methods/__init__.py has the class or function that builds each
method."""

MethodConfig = Annotated[MethodSettings, OneOf(METHOD_SETTINGS, "name")]
"""The settings of one method, chosen by its name."""
