"""Settings of the methods: how a batch becomes a loss. Each method has exactly its own settings, found by its name."""

from typing import Annotated, Literal

from pydantic import Field

from trainables.registry import OneOf
from trainables.settings import Settings


class MethodSettings(Settings):
    """What all methods have: a name."""

    name: str
    """Which method."""


class CrossEntropyConfig(MethodSettings):
    """Plain cross-entropy: every image weighs the same; no meta step."""

    name: Literal["cross_entropy"] = "cross_entropy"
    """Which method."""


class DifficultyNetConfig(MethodSettings):
    """Difficulty-Net (Sinha & Ohashi, WACV 2023): class weights predicted from class accuracies, learned by a meta-gradient."""

    name: Literal["difficulty_net"] = "difficulty_net"
    """Which method."""
    driver_weight: float = Field(0.3, ge=0)
    """Weight of the driver loss in the meta loss; lambda in the paper. 0 switches it off."""
    meta_lr: float = Field(1e-3, gt=0)
    """Step size of the weighting network; beta in the paper."""
    hidden_width: int = Field(128, ge=1)
    """Width of the weighting network's two hidden layers; H in the paper: the smallest power of two above the class count."""
    refresh_interval: float = Field(1.0, gt=0)
    """Epochs between two measurements of the class accuracies A_C: 1 is the paper's, 0.25 measures four times an epoch."""
    weight_scale: Literal["mean_one", "none"] = "mean_one"
    """`mean_one` scales the class weights to mean 1, as the released code does; `none` takes them as they are (Eq. 4)."""
    meta_optimizer: Literal["adam", "sgd"] = "adam"
    """Optimiser of the weighting network: `adam` as in the released code, `sgd` is Eq. 10."""


class MetaWeightNetConfig(MethodSettings):
    """Meta-Weight-Net (Shu et al., NeurIPS 2019): each sample's weight is a learned function of its loss."""

    name: Literal["meta_weight_net"] = "meta_weight_net"
    """Which method."""
    meta_lr: float = Field(1e-3, gt=0)
    """Step size of the weighting network; beta in the papers. 1e-3 as in the authors' code for noisy labels."""
    hidden_width: int = Field(100, ge=1)
    """Width of the weighting network's hidden layer."""
    weight_scale: Literal["mean_one", "none"] = "none"
    """`none` takes the weights as they are, in (0, 1), as the authors' code for noisy labels does; `mean_one` scales them to mean
    1 over the batch, as their code for long tails does."""
    meta_optimizer: Literal["adam", "sgd"] = "adam"
    """Optimiser of the weighting network."""


class MFRWConfig(MethodSettings):
    """Meta feature re-weighting (Ricci et al., advisor networks, 2023): a network masks the features, while training only."""

    name: Literal["mfrw"] = "mfrw"
    """Which method."""
    meta_lr: float = Field(1e-4, gt=0)
    """Step size of the advisor network."""
    hidden_width: int = Field(100, ge=1)
    """Width of each of its two embeddings: of the features and of the loss."""
    detach_inputs: bool = True
    """Whether the classifier gets no gradient through the advisor's inputs; the paper leaves it open."""
    meta_optimizer: Literal["adam", "sgd"] = "adam"
    """Optimiser of the advisor network; Adam in the paper."""


METHOD_SETTINGS: dict[str, type[MethodSettings]] = {
    "cross_entropy": CrossEntropyConfig,
    "difficulty_net": DifficultyNetConfig,
    "meta_weight_net": MetaWeightNetConfig,
    "mfrw": MFRWConfig,
}
"""The settings of each method by name; METHODS in methods/__init__.py holds what the names stand for."""

MethodConfig = Annotated[MethodSettings, OneOf(METHOD_SETTINGS, "name")]
"""The settings of one method, chosen by its name."""
