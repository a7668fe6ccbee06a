"""Settings of one trial: TrialConfig and its parts, frozen and validated.

Importing this module needs neither torch nor Ray and takes well under a second.

A method, a data source and a classifier are chosen by name. Each name has its own settings class; the tables METHOD_SETTINGS,
DATA_SETTINGS and CLASSIFIER_SETTINGS map names to these classes. Plug-ins add rows (plugins.py).
"""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from trainables.data_config import DataConfig, DigitsConfig
from trainables.method_config import DifficultyNetConfig, MethodConfig
from trainables.registry import OneOf, load_plugins
from trainables.settings import Settings, absolute, differences

MUTABLE = frozenset({"method.driver_weight", "method.meta_lr"})
"""lambda and beta: the settings that may differ between a saved state and the trial that continues from the state. Neither
setting changes what a state consists of. A state trained under one value can continue under another, as in population-based
training."""
UNDECIDING = frozenset({"bilevel.check_interval", "bilevel.memory", "compute.readers", "data.download", "data.root"})
"""Settings that decide no result, only how, and from where, it is computed. A trial may continue with other values."""
ROUNDING = frozenset(
    {"device", "threads", "compute.channels_last", "compute.compile", "compute.cuda_graphs", "compute.deterministic"}
)
"""Settings that decide how numbers are rounded, and nothing else. A trial may continue with other values, but then no longer
equals an undisturbed trial bit for bit."""


class ClassifierSettings(Settings):
    """Settings that all classifiers have: a name and a head."""

    name: str
    """Name of the classifier. The base class declares the field, so that it stays the first field when a subclass narrows its
    type."""
    head: Literal["linear", "cosine"] = "linear"
    """How the head turns features into logits. `linear`: a weight vector and a bias for each class. `cosine`: the cosine between
    the feature vector and a class vector, times `scale`. Only the directions of the vectors count, so no class wins by the length
    of its class vector."""
    scale: float = Field(30.0, gt=0)
    """Factor that turns a cosine into a logit; s = 30 in the code of LDAM. No effect with the linear head."""

    def backbone(self) -> dict[str, Any]:
        """The settings that decide the backbone's architecture, without those of the head and of the weights' values."""
        return self.model_dump(exclude={"head", "scale", "weights"})


class SmallCNNConfig(ClassifierSettings):
    """For small images: two 3x3 convolutions with BatchNorm, the second with stride 2, and a head on the features of all
    positions.
    """

    name: Literal["small_cnn"] = "small_cnn"
    """Name of the classifier."""
    widths: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=2, max_length=2)] = Field([16, 32])
    """Output channels of the two convolutions."""


class ResNetCifarConfig(ClassifierSettings):
    """The ResNet of the CIFAR papers (He et al., 2016): three stages of 16, 32 and 64 channels, shortcuts without parameters."""

    name: Literal["resnet_cifar"] = "resnet_cifar"
    """Name of the classifier."""
    depth: Literal[20, 32, 44, 56] = 32
    """Number of layers with weights; 32 in the long-tail papers."""


class ResNetConfig(ClassifierSettings):
    """torchvision's ResNet (He et al., 2016) for images of about 224 pixels, with the stride in the 3x3 convolutions."""

    name: Literal["resnet"] = "resnet"
    """Name of the classifier."""
    depth: Literal[10, 18, 34, 50, 101, 152] = 50
    """Number of layers with weights. The long-tail papers use 10 and 50 on ImageNet-LT, and 152 on Places-LT. The ResNet-10 is
    OLTR's."""
    weights: str | None = None
    """A local file with the backbone's initial weights, under torchvision's names: .safetensors, or a torch file that contains
    only tensors. The weights of the file's own head are ignored. None: random initial weights. The path is stored as an absolute
    path, because trials run in their own folders."""

    @field_validator("weights")
    @classmethod
    def _absolute(cls, weights: str | None) -> str | None:
        return None if weights is None else absolute(weights)


class OptimConfig(Settings):
    """SGD for the classifier."""

    lr: float = Field(0.05, gt=0)
    """Step size at the first step; alpha in the papers. `schedule` decides the later values. The virtual step uses the current
    value."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum of the actual step; 0 means no momentum. The virtual step has no momentum (Eq. 9)."""
    weight_decay: float = Field(0.0, ge=0)
    """L2 weight decay of the actual step; 0 means no weight decay. The virtual step has no weight decay."""
    batch_size: int = Field(32, ge=1)
    """Images per training batch; b in the papers. Several workers share a batch of this size."""
    sampler: Literal["instance", "class_balanced", "square_root"] = "instance"
    """How the images of an epoch are drawn. `instance`: each image once. `class_balanced`: with replacement, all classes equally
    often. `square_root`: with replacement, each class in proportion to the square root of its size. With replacement, an epoch
    has as many draws as the training set has images. Source: Kang et al., ICLR 2020."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """How the step size changes. `cosine`: the step size falls from `lr` to 0 over all steps of the trial, along a half cosine.
    `constant`: the step size stays at `lr`."""


class BilevelConfig(Settings):
    """How the gradient of the weighting network is computed. A cost is the number of operations of a whole training step divided
    by that of a plain cross-entropy step (ResNet-32, batch 128, meta batch 100).
    """

    meta_gradient: Literal["exact", "finite_difference", "double_backward", "none"] = "exact"
    """How the meta loss is differentiated through the virtual step. `exact`: with one forward-mode pass (cost 3.1).
    `finite_difference`: a one-sided difference approximates the derivative of that pass (2.8). `double_backward`: the textbook
    method, with the same result as `exact` (4.1, and more memory). `none`: the meta loss is not used; only the regulariser (the
    driver loss) trains the weighting network, as in the released Difficulty-Net code (1.0)."""
    meta_batch_size: int = Field(100, ge=1)
    """Images per meta batch; m in the papers. If the meta set is smaller, each meta batch is the whole meta set."""
    meta_interval: int = Field(1, ge=1)
    """Training steps from one update of the weighting network to the next, k. The cost is 1 + 2.1 / k."""
    actual_step: Literal["fresh", "stale"] = "fresh"
    """Which gradient the actual step uses. `fresh`: a new gradient, computed with the updated weighting network (Eq. 11).
    `stale`: the gradient of the virtual step, which saves a backward pass (0.67)."""
    memory: Literal["fast", "lean"] = "fast"
    """What happens to the virtual step's activations, which the actual step needs too. `fast`: the activations stay in memory.
    `lean`: the activations are freed while the meta batch is processed, and then computed again. `lean` costs 0.33 more, and
    needs the memory of about one plain step."""
    check_interval: int = Field(0, ge=0)
    """Updates of the weighting network from one comparison with double backward to the next. The comparison is reported as
    `meta/grad_cosine`, the cosine between the two meta-gradients. A comparison costs about 3 plain steps. 0: no comparisons."""


class ComputeConfig(Settings):
    """How the machine computes. These settings affect a trial's result through rounding only, except `batch_norm` with several
    workers.
    """

    precision: Literal["float32", "tf32", "bf16", "float64"] = "float32"
    """Floating-point type. `float32`: all computations, also the convolutions and matrix products of a GPU. `tf32`: as `float32`,
    but a GPU rounds the factors of convolutions and matrix products to 10 bits, which is faster, and which makes
    `bilevel.meta_gradient: finite_difference` wrong; no effect on a CPU. `bf16`: the backbone's convolutions run under
    torch.autocast; weights, features, head, losses and all computations for the weighting network stay float32. `float64`: all
    computations in double precision, from the normalised images on; slow, for comparing two ways to compute the same numbers."""
    batch_norm: Literal["local", "sync"] = "local"
    """Which images BatchNorm normalises over when several workers share a batch. `local`: each worker uses its own share, and
    running statistics are averaged over workers before they are read. `sync`: all workers use the whole batch, which costs one
    all-reduce per BatchNorm layer and pass. Then a trial's numbers do not depend on the number of workers. With one worker both
    are the same."""
    channels_last: bool = False
    """Whether images and convolutions use the channels-last memory layout; often faster, on CPUs too."""
    compile: bool = False
    """Whether torch.compile compiles the backbone's programs. Each program takes half a minute on its first use in a process.
    Without a working compiler, the trial warns once and continues uncompiled. With `batch_norm: sync` and several workers, the
    programs are not compiled: a compiler might order their all-reduces differently on each worker."""
    readers: int = Field(2, ge=0)
    """Number of processes that read and decode streamed images (`data.loading: stream`), at most one per core. Training batches
    have this number of processes. Meta batches and evaluation, if any, have the same number of processes each. 0: the training
    process reads the images between the steps. Each worker of a trial has its own processes. The images and their order do not
    depend on this number."""
    deterministic: bool = False
    """Whether a GPU computes the same numbers in every run, so that a resumed or repeated trial is equal bit for bit, as it is on
    a CPU anyway. Slower. An operation without a deterministic algorithm ends the trial with an error that names the operation.
    Without this setting a GPU may choose other algorithms and add in another order from run to run: the last digits of losses
    and gradients differ, and after some epochs accuracies may differ by as much as those of two seeds. Splits, initial weights,
    the order of batches and the augmentation do not depend on it. On another kind of GPU, another version of torch or another
    number of workers, numbers differ with this setting, too."""
    cuda_graphs: bool = False
    """Whether a whole step is captured once as a CUDA graph and then replayed, so that the GPU does not wait for Python. No
    effect on a CPU. No effect with several workers, whose steps run uncaptured."""


CLASSIFIER_SETTINGS: dict[str, type[ClassifierSettings]] = {
    "small_cnn": SmallCNNConfig,
    "resnet_cifar": ResNetCifarConfig,
    "resnet": ResNetConfig,
}
"""The settings class of each classifier, by name. CLASSIFIERS in models/__init__.py has the function that builds each
classifier."""

ClassifierConfig = Annotated[ClassifierSettings, OneOf(CLASSIFIER_SETTINGS, "name")]
"""The settings of one classifier, chosen by name."""

ValMetric = Literal["val/acc", "val/plain_acc", "val/acc_many", "val/acc_medium", "val/acc_few"]
"""The metrics that can select epochs and trials. Test metrics cannot be chosen."""


class TrialConfig(Settings):
    """Everything that decides the result of one trial."""

    # The first field, because fields are validated in this order: names in later fields may come from these modules.
    plugins: list[str] = Field([], exclude_if=lambda plugins: not plugins)
    """Python modules that add methods, classifiers or data sources, by dotted name, for example `my_methods`. Python looks for
    the modules in the folder that the program is started from and among installed packages. An empty list is not written to
    files."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Random seed. It decides the split, the initial weights and the order of the batches."""
    epochs: int = Field(40, ge=1)
    """Number of passes over the training set."""
    threads: int = Field(1, ge=1)
    """CPU threads of the trial. The number is part of the result: a floating-point sum depends on how it is divided among
    threads."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the trial. `auto`: the GPU if the trial has one, else the CPU."""
    select_by: ValMetric = "val/acc"
    """Validation metric that selects the best epoch and, in a sweep, the best trial. `val/acc` averages the accuracy over all
    classes; `val/plain_acc` is the share of all images, which differs where val shares the tail; the others average over the
    classes with many (> 100), medium (20 to 100) or few (< 20) training images."""
    data: DataConfig = DigitsConfig()
    """The images, their long tail and their split."""
    classifier: ClassifierConfig = SmallCNNConfig()
    """The classifier, with parameters phi."""
    method: MethodConfig = DifficultyNetConfig()
    """The method, which turns a batch into a training loss."""
    optim: OptimConfig = OptimConfig()
    """How the classifier, phi, is trained."""
    bilevel: BilevelConfig = BilevelConfig()
    """How the weighting network, theta, is trained."""
    compute: ComputeConfig = ComputeConfig()
    """How the machine computes."""

    @field_validator("plugins")
    @classmethod
    def _load(cls, plugins: list[str]) -> list[str]:
        load_plugins(plugins)  # so that every process that reads a trial's settings knows the names in them
        return plugins

    def selection(self) -> str:
        """The name of `select_by` in tables. If the meta set serves as val, the name says so."""
        return f"{self.select_by} (val = meta)" if self.data.val == "meta" else self.select_by


def deciding_differences(first: dict[str, Any], second: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The differences between two trials' settings that make them different trials, by dotted name."""
    return {key: pair for key, pair in differences(first, second).items() if key not in UNDECIDING | ROUNDING}


def followed(
    settings: dict[str, Any], before: dict[str, Any], now: dict[str, Any], changeable: frozenset[str] = UNDECIDING | ROUNDING
) -> dict[str, Any]:
    """The settings of a trial whose sweep goes on with other settings.

    Args:
        settings: of the trial, as its sweep proposed it.
        before: the settings that all trials of the sweep started from.
        now: the same since the sweep goes on.
        changeable: the settings that count, by dotted name.

    Returns: `settings` with the new values, except where the trial has a value of its own.
    """
    changed = {key: pair for key, pair in differences(before, now).items() if key in changeable}
    return _replaced(settings, changed) if changed else settings


def _replaced(tree: dict[str, Any], changed: dict[str, tuple[Any, Any]], prefix: str = "") -> dict[str, Any]:
    new = dict(tree)
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict):
            new[name] = _replaced(value, changed, f"{key}.")
        elif key in changed and value == changed[key][0]:
            new[name] = changed[key][1]
    return new
