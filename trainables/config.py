"""What one trial is: TrialConfig and its parts, frozen and checked. Read without torch and without Ray, in well under a second.

A method, a data source and a classifier are chosen by name, and each name has exactly its own settings: the tables
METHOD_SETTINGS, DATA_SETTINGS and CLASSIFIER_SETTINGS hold these. Plug-ins add rows (plugins.py).
"""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from trainables.data_config import DataConfig, DigitsConfig
from trainables.method_config import DifficultyNetConfig, MethodConfig
from trainables.registry import OneOf, load_plugins
from trainables.settings import Settings, absolute

MUTABLE = frozenset({"method.driver_weight", "method.meta_lr"})
"""lambda and beta: the settings that may differ between a saved state and the trial that goes on from it. Neither decides what a
state consists of, and what was trained under one value can go on under another, as in population-based training."""


class ClassifierSettings(Settings):
    """What all classifiers have: a name and a head."""

    name: str
    """Which classifier. First here, so that it stays first where a classifier narrows it."""
    head: Literal["linear", "cosine"] = "linear"
    """From features to logits: `linear` has a weight and a bias for each class; `cosine` compares the directions of the feature
    vector and of a class vector, so that no class wins by the length of its own."""
    scale: float = Field(30.0, gt=0)
    """What a cosine is multiplied by to give a logit; s = 30 in the code of LDAM. Nothing for the linear head."""

    def backbone(self) -> dict[str, Any]:
        """The settings that decide the backbone's architecture: neither the head nor the values of weights."""
        return self.model_dump(exclude={"head", "scale", "weights"})


class SmallCNNConfig(ClassifierSettings):
    """Two 3x3 convolutions with BatchNorm (the second with stride 2) and a head on all positions: for small images."""

    name: Literal["small_cnn"] = "small_cnn"
    """Which classifier."""
    widths: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=2, max_length=2)] = Field([16, 32])
    """Channels of the two convolutions."""


class ResNetCifarConfig(ClassifierSettings):
    """The ResNet of the CIFAR papers (He et al., 2016): three stages of 16, 32 and 64 channels, shortcuts without parameters."""

    name: Literal["resnet_cifar"] = "resnet_cifar"
    """Which classifier."""
    depth: Literal[20, 32, 44, 56] = 32
    """Layers with weights; 32 in the long-tail papers."""


class ResNetConfig(ClassifierSettings):
    """torchvision's ResNet, for images of about 224 pixels: He et al. (2016), with the stride in the 3x3 convolutions."""

    name: Literal["resnet"] = "resnet"
    """Which classifier."""
    depth: Literal[10, 18, 34, 50, 101, 152] = 50
    """Layers with weights. The long-tail papers use 10 and 50 on ImageNet-LT, 152 on Places-LT; 10 is OLTR's."""
    weights: str | None = None
    """A local file with the weights that the backbone starts from, under torchvision's names: .safetensors, or a torch file of
    tensors alone. Its own head is left out. None starts from random weights. Kept as an absolute path, because trials run in
    folders of their own."""

    @field_validator("weights")
    @classmethod
    def _absolute(cls, weights: str | None) -> str | None:
        return None if weights is None else absolute(weights)


class OptimConfig(Settings):
    """SGD for the classifier."""

    lr: float = Field(0.05, gt=0)
    """Step size at the first step; alpha in the papers. The virtual step uses its current value."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum of the actual step; the virtual step has none (Eq. 9)."""
    weight_decay: float = Field(0.0, ge=0)
    """L2 decay of the actual step; the virtual step has none."""
    batch_size: int = Field(32, ge=1)
    """Images per training batch, b."""
    sampler: Literal["instance", "class_balanced", "square_root"] = "instance"
    """How an epoch's images are drawn: `instance` takes each once; the others draw as many with replacement, so that classes come
    equally often, or in proportion to the square root of their size (Kang et al., ICLR 2020)."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """`cosine` falls from `lr` to 0 over all steps of the trial; `constant` stays."""


class BilevelConfig(Settings):
    """How the weighting network gets its gradient. Costs are operations of a whole step over those of a plain one (ResNet-32,
    batch 128, meta batch 100).
    """

    meta_gradient: Literal["exact", "finite_difference", "double_backward", "none"] = "exact"
    """`exact` differentiates the meta loss through the virtual step by one forward-mode pass (3.1); `finite_difference` takes
    that pass's derivative as a one-sided difference (2.8, an approximation); `double_backward` is the textbook's way, the same
    number as `exact` (4.1, and more memory); `none` trains the weighting network by its regulariser (the driver loss) alone, as
    the released Difficulty-Net code does (1.0)."""
    meta_batch_size: int = Field(100, ge=1)
    """Images per meta batch, m; the whole meta set when that is smaller."""
    meta_interval: int = Field(1, ge=1)
    """Training steps from one update of the weighting network to the next, k. Costs 1 + 2.1 / k."""
    actual_step: Literal["fresh", "stale"] = "fresh"
    """`fresh` computes the actual step's gradient with the updated weighting network (Eq. 11); `stale` takes the virtual step's
    gradient for it and saves a backward pass (0.67)."""
    memory: Literal["fast", "lean"] = "fast"
    """`fast` keeps the virtual step's activations for the actual step; `lean` frees them while the meta batch is looked at and
    computes them again (0.33 more, and the memory of about one plain step)."""
    check_interval: int = Field(0, ge=0)
    """Updates of the weighting network from one comparison with double backward to the next, reported as `meta/grad_cosine`; 0
    never compares. A comparison costs about 3 plain steps."""


class ComputeConfig(Settings):
    """How the machine computes; part of the result as far as rounding goes."""

    precision: Literal["float32", "bf16", "float64"] = "float32"
    """`bf16` runs the backbone's convolutions under torch.autocast; weights, features, head, losses and all that concerns the
    weighting network stay float32. `float64` computes everything in double, from the normalised images on: slow, for comparing
    ways to the same numbers."""
    batch_norm: Literal["local", "sync"] = "local"
    """Whose statistics BatchNorm takes when several workers share a batch: `local` each its own share's, with running statistics
    averaged over workers before they are read; `sync` those of the whole batch, so that a trial's numbers do not depend on how
    many workers it has, at the price of a message for each BatchNorm in each pass. With one worker both are the same."""
    channels_last: bool = False
    """Whether images and convolutions lie in memory with the channels last; often faster, on CPUs too."""
    compile: bool = False
    """Whether the backbone's programs go through torch.compile, half a minute each on first use in a process. Without a working
    compiler the trial warns once and goes on. Programs with `batch_norm: sync` over several workers run as they are: a compiler
    might put their messages into another order on each."""
    readers: int = Field(2, ge=0)
    """Processes that read and decode streamed images (`data.loading: stream`), at most one for each core: so many for training
    batches, as many for meta batches and for measuring, when there are any; 0 reads between the steps. Each worker of a trial has
    as many. The images and their order do not depend on it."""
    cuda_graphs: bool = False
    """Whether a whole step is captured once and replayed, which frees the GPU from waiting for Python; nothing on a CPU, and
    nothing with several workers, whose steps run as they are."""


CLASSIFIER_SETTINGS: dict[str, type[ClassifierSettings]] = {
    "small_cnn": SmallCNNConfig,
    "resnet_cifar": ResNetCifarConfig,
    "resnet": ResNetConfig,
}
"""The settings of each classifier by name; CLASSIFIERS in models/__init__.py holds what the names stand for."""

ClassifierConfig = Annotated[ClassifierSettings, OneOf(CLASSIFIER_SETTINGS, "name")]
"""The settings of one classifier, chosen by its name."""

ValMetric = Literal["val/acc", "val/acc_many", "val/acc_medium", "val/acc_few"]
"""What epochs and trials may be judged by. Test metrics cannot be chosen."""


class TrialConfig(Settings):
    """Everything that decides one trial's result."""

    # The first field, because fields are checked in this order: the names below may come from these modules.
    plugins: list[str] = Field([], exclude_if=lambda plugins: not plugins)
    """Python modules that add methods, classifiers or data sources, by dotted name, for instance `my_methods`. Python looks for
    them in the folder that the program is started from and among installed packages. Written to files only when not empty."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Decides the split, the initial weights and the order of the batches."""
    epochs: int = Field(40, ge=1)
    """Passes over the training set."""
    threads: int = Field(1, ge=1)
    """CPU threads of the trial. Part of the result: floating-point sums depend on how they are divided."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes the GPU when the trial has one."""
    select_by: ValMetric = "val/acc"
    """The validation metric that picks the best epoch and, in a sweep, the best trial."""
    data: DataConfig = DigitsConfig()
    """The images, their long tail and their split."""
    classifier: ClassifierConfig = SmallCNNConfig()
    """The network phi."""
    method: MethodConfig = DifficultyNetConfig()
    """How a batch becomes a loss."""
    optim: OptimConfig = OptimConfig()
    """How phi is trained."""
    bilevel: BilevelConfig = BilevelConfig()
    """How theta is trained."""
    compute: ComputeConfig = ComputeConfig()
    """How the machine computes."""

    @field_validator("plugins")
    @classmethod
    def _load(cls, plugins: list[str]) -> list[str]:
        load_plugins(plugins)  # here, so that every process that reads a trial knows the names that the trial uses
        return plugins

    def selection(self) -> str:
        """What tables call `select_by`; where the meta set serves as val, they say so."""
        return f"{self.select_by} (val = meta)" if self.data.val == "meta" else self.select_by
