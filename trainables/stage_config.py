"""Settings of the stages of a trial. The first stage trains the whole classifier; later stages train heads on frozen features."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from trainables.loss_config import CrossEntropyConfig, LabelAwareSmoothingConfig, MethodSettings
from trainables.method_config import MetaSamplerConfig, MethodConfig
from trainables.optim_config import OptimConfig
from trainables.registry import OneOf
from trainables.settings import Settings


class StageSettings(Settings):
    """Settings that all stages have: a name."""

    name: str
    """Name of the stage."""


class RepresentationConfig(StageSettings):
    """The first stage: the whole classifier learns, as `trial.method`, `trial.optim` and `trial.bilevel` say, in all epochs that
    the later stages leave.
    """

    name: Literal["representation"] = "representation"
    """Name of the stage."""


class HeadOptimConfig(OptimConfig):
    """How a head is trained on frozen features: with balanced classes, as in the decoupling papers."""

    lr: float = Field(0.1, gt=0)
    """Step size; `schedule` and `warmup_epochs` scale it."""
    weight_decay: float = Field(5e-4, ge=0)
    """Weight decay: L2 with `sgd`, decoupled with `adamw`."""
    sampler: Literal["instance", "class_balanced", "square_root", "progressively_balanced"] = "class_balanced"
    """How the images of an epoch are drawn, as for the first stage."""

    @model_validator(mode="after")
    def _trains_a_head_alone(self) -> "HeadOptimConfig":
        if self.head_lr is not None:
            raise ValueError(
                f"head_lr is {self.head_lr:g}, but a later stage trains the head alone; allowed: lr, which is the head's"
            )
        return self


class InstanceHeadOptimConfig(HeadOptimConfig):
    """How a head is trained on frozen features by a method that does the balancing itself."""

    sampler: Literal["instance", "class_balanced", "square_root", "progressively_balanced"] = "instance"
    """How the images of an epoch are drawn, as for the first stage."""


class HeadStageSettings(StageSettings):
    """Settings of all stages after the first. The features of all images are computed once, without augmentation."""

    epochs: int = Field(10, ge=1)
    """Epochs of this stage, as part of `trial.epochs`."""
    start_from: Literal["last", "best"] = "last"
    """Which classifier the stage starts from: that of the last epoch before it, or of the best epoch so far. If the best epoch
    belongs to an earlier stage than the one before, or to the trial that a population's member was forked from, it is the last.
    """
    batch_norm: Literal["eval", "shift"] = "eval"
    """How BatchNorm computes the frozen features. `eval`: with the running statistics of the stage before. `shift`: with
    statistics that have first seen an epoch of class-balanced batches (MiSLAS, CVPR 2021)."""


class TrainedHeadSettings(HeadStageSettings):
    """Settings of stages that train their head by gradient steps."""

    optim: HeadOptimConfig = HeadOptimConfig()
    """How the head is trained."""
    method: MethodConfig = CrossEntropyConfig()
    """The method, which turns a batch of features into a training loss."""


class CRTConfig(TrainedHeadSettings):
    """cRT, classifier re-training (Kang et al., ICLR 2020): a new head with class-balanced batches."""

    name: Literal["crt"] = "crt"
    """Name of the stage."""


class LWSConfig(TrainedHeadSettings):
    """LWS, learnable weight scaling (Kang et al., ICLR 2020): the head stays, and each class's logit gets a learned factor."""

    name: Literal["lws"] = "lws"
    """Name of the stage."""


class LASConfig(TrainedHeadSettings):
    """LAS, label-aware smoothing (MiSLAS, CVPR 2021): as `lws`, but the head learns on too, slowly, with smoothed labels."""

    name: Literal["las"] = "las"
    """Name of the stage."""
    method: MethodConfig = LabelAwareSmoothingConfig()
    """The method, which turns a batch of features into a training loss."""
    head_lr_factor: float = Field(0.2, gt=0)
    """Step size of the head as a multiple of that of the factors. MiSLAS: 0.2 for CIFAR-100-LT with imbalance factor 100, 0.1 for
    50 and 10, 0.05 for ImageNet-LT and Places-LT."""


class TauNormConfig(HeadStageSettings):
    """tau-normalisation (Kang et al., ICLR 2020): class vectors are divided by their length to the power tau, and the head's bias
    is left out. Val chooses tau, by the trial's `select_by`.
    """

    name: Literal["tau_norm"] = "tau_norm"
    """Name of the stage."""
    epochs: Literal[1] = 1
    """One epoch, in which nothing is trained."""
    max_tau: float = Field(2.0, gt=0)
    """The largest power that is tried. The smallest is 0, which leaves the class vectors as they are."""
    points: int = Field(21, ge=2)
    """Number of powers that are tried, evenly spaced: 21 up to 2.0 are steps of 0.1, as in the paper."""


class BALMSConfig(TrainedHeadSettings):
    """BALMS (Ren et al., NeurIPS 2020): a new head with balanced softmax and batches from the meta sampler."""

    name: Literal["balms"] = "balms"
    """Name of the stage."""
    optim: InstanceHeadOptimConfig = InstanceHeadOptimConfig()
    """How the head is trained."""
    method: MethodConfig = MetaSamplerConfig()
    """The method, which turns a batch of features into a training loss."""


STAGE_SETTINGS: dict[str, type[StageSettings]] = {
    "representation": RepresentationConfig,
    "crt": CRTConfig,
    "lws": LWSConfig,
    "las": LASConfig,
    "tau_norm": TauNormConfig,
    "balms": BALMSConfig,
}
"""The settings class of each stage, by name. STAGE_HEADS in models/stage_heads.py has the function that makes each stage's head.
"""

StageConfig = Annotated[StageSettings, OneOf(STAGE_SETTINGS, "name")]
"""The settings of one stage, chosen by its name."""


def method_of(stage: HeadStageSettings) -> MethodSettings:
    """The method of a later stage; cross-entropy for a stage that trains nothing."""
    return stage.method if isinstance(stage, TrainedHeadSettings) else CrossEntropyConfig()
