"""Settings of the methods, which turn a batch into a training loss. Each method has its own settings class, chosen by name.

Every loss of loss_config.py is a method, too.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from trainables.loss_config import (
    LOSS_SETTINGS,
    BalancedSoftmaxConfig,
    CrossEntropyConfig,
    LDAMConfig,
    LossConfig,
    MethodSettings,
)
from trainables.registry import OneOf


class WeightingSettings(MethodSettings):
    """Settings of methods that weigh or change a loss."""

    base_loss: LossConfig = CrossEntropyConfig()
    """The loss of each image that the method weighs or changes. Any loss: `{name: balanced_softmax}`."""


class MetaLossSettings(WeightingSettings):
    """Settings of methods that learn from the meta set by a meta-gradient."""

    perturbs: ClassVar[bool] = False
    """Whether the method differentiates the meta loss by a perturbation of each batch. Then every step needs its own gradient."""
    meta_loss: LossConfig = CrossEntropyConfig()
    """The loss of each image of the meta batch. The released code of Difficulty-Net for ImageNet-LT takes its training loss,
    balanced softmax, here too, although the meta set is balanced."""


class MetaSettings(MetaLossSettings):
    """Settings of methods with a weighting network: how the network, theta, is trained."""

    meta_lr: float = Field(1e-3, gt=0)
    """Step size of the weighting network; beta in the papers. `meta_schedule` scales it."""
    meta_optimizer: Literal["adam", "sgd"] = "adam"
    """Optimiser of the weighting network."""
    meta_weight_decay: float = Field(0.0, ge=0)
    """L2 weight decay of the weighting network: this number times a parameter is added to the parameter's gradient, with `adam`
    too, as in the released code. 0 means no weight decay."""
    meta_momentum: float = Field(0.0, ge=0, lt=1)
    """Momentum of `meta_optimizer: sgd`; 0 means no momentum. With `adam` only 0 is allowed."""
    meta_schedule: Literal["constant", "cosine", "follow"] = "constant"
    """How the step size of the weighting network changes. `constant`: the step size stays at `meta_lr`. `cosine`: the step size
    falls from `meta_lr` to 0 over all steps of the trial, along a half cosine. `follow`: the step size is `meta_lr` times the
    factor by which `optim.schedule` and `optim.warmup_epochs` scale the classifier's."""

    @model_validator(mode="after")
    def _momentum_has_effect(self) -> "MetaSettings":
        if self.meta_momentum > 0 and self.meta_optimizer != "sgd":
            raise ValueError(
                f"meta_momentum is {self.meta_momentum:g}, but meta_optimizer is {self.meta_optimizer}, which has averages of "
                "its own; allowed: meta_momentum 0, or meta_optimizer sgd"
            )
        return self


class ClassBalancedConfig(WeightingSettings):
    """Class-balanced loss (Cui et al., CVPR 2019): weights by the effective number of each class's images."""

    name: Literal["class_balanced"] = "class_balanced"
    """Name of the method."""
    beta: float = Field(0.9999, ge=0, lt=1)
    """Weights are proportional to (1 - beta) / (1 - beta^n_c), with mean 1 over the classes. 0 gives equal weights, values close
    to 1 the inverse class frequency."""
    defer_until: float = Field(0.0, ge=0, le=1)
    """Share of the training without weights before they apply (deferred re-weighting, Cao et al., 2019): 0.8 for the last 40 of
    200 epochs."""


class LDAMDRWConfig(ClassBalancedConfig):
    """LDAM with deferred re-weighting (Cao et al., NeurIPS 2019): margins from the start, class weights late. For the cosine
    head.
    """

    name: Literal["ldam_drw"] = "ldam_drw"  # type: ignore[assignment]
    """Name of the method."""
    base_loss: LossConfig = LDAMConfig()
    """The loss of each image that the method weighs."""
    defer_until: float = Field(0.8, ge=0, le=1)
    """Share of the training without weights before they apply; in LDAM's code the first 160 of 200 epochs."""


class CDBConfig(WeightingSettings):
    """CDB-CE (Sinha et al., ACCV 2020): weights are a fixed function of the classes' accuracies."""

    name: Literal["cdb_ce"] = "cdb_ce"
    """Name of the method."""
    exponent: Literal["fixed", "dynamic"] = "fixed"
    """`fixed`: the exponent is `tau`. `dynamic`: it follows the gap between the best and the worst class, from 1 for equal
    classes up to 2."""
    tau: float = Field(1.0, ge=0)
    """Exponent of the difficulty. 0 gives equal weights. Only with `exponent: fixed`."""
    difficulty: Literal["linear", "logarithm", "inverse", "exponential"] = "linear"
    """Difficulty of a class with accuracy a: `linear` is 1 - a as in the paper, `logarithm` -log a, `inverse` 1 / a - 1,
    `exponential` e^-a. Figure 1 of the Difficulty-Net paper compares four decreasing functions and names only the first."""
    accuracy_from: Literal["meta", "train"] = "meta"
    """Where accuracies are measured: on the balanced meta set, or on the training set before each epoch."""
    refresh_interval: float = Field(1.0, gt=0)
    """Epochs between two measurements of the accuracies on the meta set; on the training set it is always 1."""

    @model_validator(mode="after")
    def _settings_have_effect(self) -> "CDBConfig":
        if self.exponent == "dynamic" and self.tau != 1:
            raise ValueError(f"tau is {self.tau:g}, but exponent is dynamic; allowed: leave tau out, or exponent fixed")
        if self.accuracy_from == "train" and self.refresh_interval != 1:
            raise ValueError(
                f"refresh_interval is {self.refresh_interval:g}, but accuracy_from is train; allowed: leave refresh_interval "
                "out, or accuracy_from meta"
            )
        return self


class DifficultyNetConfig(MetaSettings):
    """Difficulty-Net (Sinha & Ohashi, WACV 2023): class weights predicted from class accuracies, learned by a meta-gradient."""

    name: Literal["difficulty_net"] = "difficulty_net"
    """Name of the method."""
    driver_weight: float = Field(0.3, ge=0)
    """Weight of the driver loss in the meta loss; lambda in the paper. 0 switches the driver loss off. Adam, the default of
    `meta_optimizer`, divides each gradient by its own size: once the driver loss dominates the meta loss, larger values change
    little. With `sgd` the size counts."""
    hidden_width: int = Field(128, ge=1)
    """Width of the weighting network's two hidden layers; H in the paper. The paper takes the smallest power of two above the
    number of classes."""
    refresh_interval: float = Field(1.0, gt=0)
    """Epochs between two measurements of the class accuracies A_C. 1 as in the paper; 0.25 measures four times per epoch."""
    difficulty: Literal["relative", "absolute", "sample", "fixed"] = "relative"
    """What the difficulty is predicted from; the arms of the paper's Table 4. `relative`: the difficulties of all classes, from
    the accuracies of all classes. `absolute`: each class's from its own accuracy, by one network for all classes; with
    `driver_weight: 0` this is the arm CDB-CE + MWN. `sample`: the difficulties of a batch's images, from their losses. `fixed`:
    no network, the difficulty is the driver loss's target, 1 - relative accuracy, and the settings of the network have no
    effect."""
    weight_scale: Literal["mean_one", "none"] = "mean_one"
    """Scale of the class weights. `mean_one` scales the weights to mean 1, as in the released code. `none` takes the weights as
    they are (Eq. 4)."""
    meta_optimizer: Literal["adam", "sgd"] = "adam"
    """Optimiser of the weighting network. `adam` as in the released code. `sgd` as in Eq. 10, without momentum: steps are in
    proportion to the gradient, so that lambda counts and beta has to be larger, 0.3 on the digits in place of Adam's 1e-3."""


class MetaWeightNetConfig(MetaSettings):
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


class L2RWConfig(MetaLossSettings):
    """L2RW, learning to reweight (Ren et al., ICML 2018): an image's weight is how much it helps the meta set in one step."""

    perturbs: ClassVar[bool] = True
    name: Literal["l2rw"] = "l2rw"
    """Name of the method."""


class CBDAConfig(MetaLossSettings):
    """CB-DA, class-balanced loss as domain adaptation (Jamal et al., CVPR 2020): class weights plus a learned weight for each
    image.
    """

    perturbs: ClassVar[bool] = True
    name: Literal["cb_da"] = "cb_da"
    """Name of the method."""
    beta: float = Field(0.9999, ge=0, lt=1)
    """As `beta` of `class_balanced`: the class weights."""
    weight_lr: float = Field(0.01, ge=0)
    """Step size of each image's own weight, from 0 along the meta-gradient by the weight of the image in the sum over the batch;
    so it does not depend on the batch size. 0.01 is that of the authors' code. 0 leaves the class weights alone."""
    meta_from: float = Field(0.8, ge=0, le=1)
    """Share of the training with plain cross-entropy before weights apply; in the authors' code the first 160 of 200 epochs."""


class GDWConfig(MetaSettings):
    """GDW, generalized data weighting (Chen et al., NeurIPS 2021): weights for each class of each image's gradient."""

    perturbs: ClassVar[bool] = True
    name: Literal["gdw"] = "gdw"
    """Name of the method."""
    meta_weight_decay: float = Field(1e-4, ge=0)
    """L2 weight decay of the weighting network, as in the authors' code."""
    hidden_width: int = Field(100, ge=1)
    """Width of the weighting network's hidden layer."""
    weight_lr: float = Field(0.1, ge=0)
    """Step size of the class-level weights along their meta-gradient, which is divided by its mean absolute value. The authors'
    code divides by the sum and takes 100 for 10 classes and 1000 for 100, which is 0.1 here for their batches of 100."""
    max_change: float = Field(0.2, ge=0)
    """The largest change of a class-level weight by that step."""


class MetaSamplerConfig(MetaSettings):
    """The meta sampler of BALMS (Ren et al., NeurIPS 2020): sampling rates of the classes, learned by the meta-gradient."""

    name: Literal["meta_sampler"] = "meta_sampler"
    """Name of the method."""
    base_loss: LossConfig = BalancedSoftmaxConfig()
    """The loss of each image that the method draws."""
    initial_power: float = Field(0.0, ge=0)
    """The rates start in proportion to n_c^-initial_power. 0, equal rates, for CIFAR; the authors' code has 0.1 for ImageNet-LT
    and 0.3 for Places-LT."""


class AdvisorSettings(MetaSettings):
    """Settings of the advisor networks (Ricci et al., 2023). Only training uses the advisor, predictions do without."""

    meta_lr: float = Field(1e-4, gt=0)
    """Step size of the advisor network. `meta_schedule` scales it."""
    hidden_width: int = Field(100, ge=1)
    """Width of each of the advisor network's two embeddings, one of the features and one of the loss."""
    detach_inputs: bool = True
    """Whether the advisor network's inputs are detached, so that the classifier gets no gradient through them. The paper leaves
    it open."""


class MFRWConfig(AdvisorSettings):
    """Meta feature re-weighting (Ricci et al., advisor networks, 2023): an advisor network masks features in training only."""

    name: Literal["mfrw"] = "mfrw"
    """Name of the method."""


class MESConfig(AdvisorSettings):
    """Meta equalised softmax (Ricci et al., advisor networks, 2023): an advisor network spares the logits of other classes."""

    name: Literal["mes"] = "mes"
    """Name of the method."""
    equalise_probability: float = Field(0.9, ge=0, le=1)
    """How often the advisor's weights apply; rho in the paper. 0 gives cross-entropy."""
    draws: Literal["image", "batch", "entry"] = "image"
    """What is drawn at random: one draw for each image, for the whole batch, or for each pair of an image and a class. The paper
    leaves it open."""


class MFRWMESConfig(MESConfig):
    """Both advisors in one network: masked features and the equalised softmax (Ricci et al., 2023)."""

    name: Literal["mfrw_mes"] = "mfrw_mes"  # type: ignore[assignment]
    """Name of the method."""


METHOD_SETTINGS: dict[str, type[MethodSettings]] = {
    **LOSS_SETTINGS,
    "class_balanced": ClassBalancedConfig,
    "ldam_drw": LDAMDRWConfig,
    "cdb_ce": CDBConfig,
    "difficulty_net": DifficultyNetConfig,
    "meta_weight_net": MetaWeightNetConfig,
    "l2rw": L2RWConfig,
    "cb_da": CBDAConfig,
    "gdw": GDWConfig,
    "meta_sampler": MetaSamplerConfig,
    "mfrw": MFRWConfig,
    "mes": MESConfig,
    "mfrw_mes": MFRWMESConfig,
}
"""The settings class of each method, by name. METHODS in methods/__init__.py has the class or function that builds each
method."""

MethodConfig = Annotated[MethodSettings, OneOf(METHOD_SETTINGS, "name")]
"""The settings of one method, chosen by its name."""
