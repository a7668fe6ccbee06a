"""Settings of one trial: TrialConfig and its parts, frozen and validated.

Importing this module needs neither torch nor Ray and takes well under a second.

A method, a data source and a classifier are chosen by name. Each name has its own settings class; the tables METHOD_SETTINGS,
DATA_SETTINGS and CLASSIFIER_SETTINGS map names to these classes. Plug-ins add rows (plugins.py).
"""

import itertools
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from trainables.classifier_config import ClassifierConfig, SmallCNNConfig
from trainables.classifier_config import ClassifierSettings as ClassifierSettings  # plug-ins may import it from here
from trainables.data_config import DataConfig, DigitsConfig, EncodedConfig
from trainables.method_config import DifficultyNetConfig, MetaLossSettings, MethodConfig
from trainables.optim_config import OptimConfig
from trainables.registry import load_plugins
from trainables.settings import Settings, differences
from trainables.stage_config import HeadStageSettings, RepresentationConfig, StageConfig, TrainedHeadSettings

MUTABLE = frozenset({"method.driver_weight", "method.meta_lr"})
"""lambda and beta: the settings that may differ between a saved state and the trial that continues from the state. Neither
setting changes what a state consists of. A state trained under one value can continue under another, as in population-based
training."""
UNDECIDING = frozenset(
    {
        "bilevel.check_interval",
        "bilevel.memory",
        "compute.keep_gib",
        "compute.readers",
        "compute.system_metrics",
        "data.download",
        "data.root",
        "read_test",
    }
)
"""Settings that decide no result, only how, and from where, it is computed. A trial may continue with other values."""
ROUNDING = frozenset(
    {
        "device",
        "threads",
        "compute.augment_on",
        "compute.channels_last",
        "compute.compile",
        "compute.cuda_graphs",
        "compute.decode_on",
        "compute.deterministic",
    }
)
"""Settings that decide how numbers are rounded, also those of pixels, and nothing else. A trial may continue with other values,
but then no longer equals an undisturbed trial bit for bit."""


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

    @model_validator(mode="after")
    def _comparisons_have_a_gradient(self) -> "BilevelConfig":
        if self.check_interval > 0 and self.meta_gradient in ("none", "double_backward"):
            raise ValueError(
                f"check_interval is {self.check_interval}, but meta_gradient is {self.meta_gradient!r}, which leaves nothing to "
                "compare; allowed: check_interval 0, or meta_gradient exact or finite_difference"
            )
        return self


class ComputeConfig(Settings):
    """How the machine computes. These settings affect a trial's result through rounding only, except `batch_norm` with several
    workers, and `micro_batch` for a classifier whose BatchNorm normalises by the batch.
    """

    precision: Literal["float32", "tf32", "bf16", "float64"] = "float32"
    """Floating-point type. `float32`: all computations, also the convolutions and matrix products of a GPU. `tf32`: as `float32`,
    but a GPU rounds the factors of convolutions and matrix products to 10 bits, which is faster, and which makes
    `bilevel.meta_gradient: finite_difference` wrong; no effect on a CPU. `bf16`: the backbone's convolutions run under
    torch.autocast, in training and when val, meta and test are evaluated; weights, features, head, losses and all computations
    for the weighting network stay float32, and exported models compute in float32. On a CPU `bf16` may be slower than `float32`.
    `float64`: all computations in double precision, from the normalised images on; slow, for comparing two ways to compute the
    same numbers."""
    batch_norm: Literal["local", "sync"] = "local"
    """Which images BatchNorm normalises over when several workers share a batch. `local`: each worker uses its own share, and
    running statistics are averaged over workers before they are read. `sync`: all workers use the whole batch, which costs one
    all-reduce per BatchNorm layer and pass. Then a trial's numbers do not depend on the number of workers. With one worker both
    are the same."""
    micro_batch: int | None = Field(None, ge=1)
    """Most images that the backbone runs at the same time; a larger batch runs in parts, as few and as equal as possible, so that
    the activations of one part at a time are in memory. Meta batches too. With several workers, images of each worker. The step
    is the same up to rounding, with the same random numbers: head, losses and weights see the whole batch, and each derivative
    runs the parts again, so `bilevel.memory` has no effect. An iteration costs 1.3 plain steps more, and 0.33 more without a
    meta step. Only BatchNorm that normalises by its batch differs: it treats a part as the share of a worker with `batch_norm:
    local`. A batch of at most this size runs at once. None: all batches do."""
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
    keep_gib: float | None = Field(None, ge=0)
    """GiB that each worker may take for images of a stream (`data.loading: stream`) that are used again and again without
    augmentation: meta, val, and train with `data.augment: []`. They are decoded once and stay as uint8, on the GPU if the trial
    has one. Images for which there is no room are decoded each time, and a note counts them. The numbers are the same either way.
    None: an eighth of the GPU's memory, or a quarter of the machine's memory for all workers that its cores have room for. 0: no
    image is kept."""
    # The next two fields are written to files only when they differ from the default.
    augment_on: Literal["readers", "device"] = Field("readers", exclude_if=lambda place: place == "readers")
    """Where the training images of a stream (`data.loading: stream`) are augmented. `readers`: in the reader processes, image by
    image. `device`: the readers apply `data.augment` up to `resized_crop`, or cut out the middle; what follows is done on the
    trial's device for a whole batch, which relieves the CPU of a machine with a GPU. Random numbers and images are the same, bit
    for bit if the device is a CPU; a GPU may round a pixel to the next value. The default is not written to files."""
    decode_on: Literal["readers", "device"] = Field("readers", exclude_if=lambda place: place == "readers")
    """Where the training images of a stream are decoded. `readers`: in the reader processes, by Pillow. `device`: the readers
    only read the files. Batches of JPEG images are decoded on the trial's device, on a GPU by nvJPEG, with small differences in
    the pixels; there they are also cropped and augmented, so `augment_on` must be `device`, too. On a GPU, torchvision must have
    nvJPEG. Images of other formats, progressive JPEG, CMYK and images that their EXIF data turn are decoded by the readers all
    the same; so are meta and val, and training images that are not cropped and that pre-trained weights expect to be framed. The
    default is not written to files."""
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
    system_metrics: bool = False
    """Whether each epoch also reports what the trial takes of its machine: `system/cpu_cores`, the CPU cores that the training
    process kept busy; `system/memory_gib`, its largest resident memory so far; and on a GPU `system/gpu_memory_gib`, the largest
    memory of the trial's tensors so far. With several workers, those of the first one."""

    @model_validator(mode="after")
    def _decoded_images_are_augmented_where_they_are(self) -> "ComputeConfig":
        if self.decode_on == "device" and self.augment_on == "readers":
            raise ValueError(
                "decode_on is 'device', but augment_on is 'readers', which would have no pixels to augment; allowed: augment_on "
                "device, or decode_on readers"
            )
        return self

    @model_validator(mode="after")
    def _parts_of_a_batch_fit(self) -> "ComputeConfig":
        if self.micro_batch is not None and self.batch_norm == "sync":
            raise ValueError(
                f"micro_batch is {self.micro_batch}, but batch_norm is 'sync', which needs the whole batch at the same time; "
                "allowed: batch_norm local, or micro_batch null"
            )
        if self.micro_batch is not None and self.cuda_graphs:
            raise ValueError(
                f"micro_batch is {self.micro_batch}, but cuda_graphs is true, which captures whole batches; allowed: cuda_graphs "
                "false, or micro_batch null"
            )
        return self


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
    """Number of passes over the training set, in all stages together."""
    threads: int = Field(1, ge=1)
    """CPU threads of the trial. The number is part of the result: a floating-point sum depends on how it is divided among
    threads."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the trial. `auto`: the GPU if the trial has one, else the CPU."""
    select_by: ValMetric = "val/acc"
    """Validation metric that selects the best epoch and, in a sweep, the best trial. `val/acc` averages the accuracy over all
    classes; `val/plain_acc` is the share of all images, which differs where val shares the tail; the others average over the
    classes with many (> 100), medium (20 to 100) or few (< 20) training images."""
    read_test: bool = Field(False, exclude_if=lambda wanted: not wanted)
    """Whether the sealed test set is read, once, at the end of the last epoch, with the models of the best and of the last epoch.
    Ablations set it for all their trials; a sweep reads the test set when it exports its best trial. `false` is not written to
    files."""
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
    stages: list[StageConfig] = Field([RepresentationConfig()])
    """The stages of the trial, one after another. The first is `representation`, which has the epochs that the others leave:
    `[{name: representation}, {name: crt, epochs: 10}]`. A stage is numbered from 0, as in `stages.1.optim.lr`."""

    @field_validator("plugins")
    @classmethod
    def _load(cls, plugins: list[str]) -> list[str]:
        load_plugins(plugins)  # so that every process that reads a trial's settings knows the names in them
        return plugins

    @model_validator(mode="after")
    def _classifier_takes_the_data(self) -> "TrialConfig":
        if self.data.source == "features" and not self.classifier.takes_vectors:
            raise ValueError(
                f"classifier.name is {self.classifier.name!r}, which takes images, but data.source is 'features'; allowed: "
                "classifier.name linear or mlp_adapter"
            )
        return self

    @model_validator(mode="after")
    def _device_has_images_to_work_on(self) -> "TrialConfig":
        data, moved = self.data, [name for name in ("decode_on", "augment_on") if getattr(self.compute, name) == "device"]
        if not moved:
            return self
        reason, allowed = "", " and ".join(f"compute.{name} readers" for name in moved)
        if not data.streamed():
            reason = f"the images of data.source {data.source} are not streamed: they are decoded and on the device already"
            if isinstance(data, EncodedConfig):
                allowed += ", or data.loading stream"
        elif not data.augment:
            reason = "data.augment is empty, and training images are decoded once and kept"
            allowed += ", or augmentations"
        elif moved == ["augment_on"] and data.augment[-1] == "resized_crop":
            reason = "data.augment ends with resized_crop, which the readers apply"
            allowed += ", or further augmentations"
        elif "decode_on" in moved and isinstance(data, EncodedConfig) and data.shrink is not None:
            reason = f"data.shrink is {data.shrink}, and the small copies are decoded already"
            moved, allowed = ["decode_on"], "compute.decode_on readers, or data.shrink left out"
        if reason:
            raise ValueError(f"compute.{moved[0]} is 'device', but {reason}; allowed: {allowed}")
        return self

    @model_validator(mode="after")
    def _stages_fit(self) -> "TrialConfig":
        names, heads = [stage.name for stage in self.stages], self.later_stages()
        if names[:1] != ["representation"] or len(heads) != len(names) - 1:
            raise ValueError(f"stages is {names}; allowed: representation first, and only first")
        if (needed := sum(stage.epochs for stage in heads)) >= self.epochs:
            raise ValueError(
                f"stages: {', '.join(names[1:])} have {needed} epochs, but epochs is {self.epochs}, and the first stage needs "
                f"one; allowed: fewer epochs there, or epochs {needed + 1} or more"
            )
        if "tau_norm" in names and {"lws", "las"} & set(names[: names.index("tau_norm")]):
            raise ValueError(
                f"stages is {names}: tau_norm needs a plain linear head, but lws and las leave a scaled one; allowed: tau_norm "
                "before them, or without them"
            )
        if "tau_norm" in names and self.classifier.head == "cosine":
            raise ValueError(
                "stages: tau_norm changes the lengths of class vectors, but classifier.head is cosine, which ignores them; "
                "allowed: classifier.head linear, or no tau_norm"
            )
        return self

    @model_validator(mode="after")
    def _perturbed_batches_have_a_fresh_gradient(self) -> "TrialConfig":
        methods = [self.method, *(stage.method for stage in self.stages if isinstance(stage, TrainedHeadSettings))]
        for method in methods:
            if not isinstance(method, MetaLossSettings) or not method.perturbs:
                continue
            name, bilevel = method.name, self.bilevel
            if bilevel.actual_step == "stale":
                raise ValueError(
                    f"bilevel.actual_step is 'stale', but method.name is {name!r}, whose weights exist only after the meta step; "
                    "allowed: bilevel.actual_step fresh"
                )
            if bilevel.meta_gradient == "none":
                raise ValueError(
                    f"bilevel.meta_gradient is 'none', but method.name is {name!r}, which takes its weights from the "
                    "meta-gradient; allowed: exact, finite_difference, double_backward"
                )
        return self

    def later_stages(self) -> list[HeadStageSettings]:
        """The stages after the first."""
        return [stage for stage in self.stages if isinstance(stage, HeadStageSettings)]

    def stage_epochs(self) -> list[range]:
        """The epochs of each stage, counted from 0 over the whole trial."""
        later = self.later_stages()
        starts = [0, self.epochs - sum(stage.epochs for stage in later)]
        for stage in later:
            starts.append(starts[-1] + stage.epochs)
        return [range(start, end) for start, end in itertools.pairwise(starts)]

    def stage_at(self, epochs: int) -> int:
        """The number of the stage that the classifier belongs to after so many epochs; 0 before the first."""
        return next((number for number, part in enumerate(self.stage_epochs()) if epochs <= part.stop), 0)

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
    for key, (then, new) in differences(before, now).items():
        if key in changeable:
            settings = _replaced(settings, key.split("."), then, new)
    return settings


def _replaced(tree: dict[str, Any], path: list[str], then: Any, new: Any) -> dict[str, Any]:
    """The tree with a new value in place of the value `then`. None stands for a setting that is missing."""
    name, *below = path
    if below:
        return tree | {name: _replaced(tree[name], below, then, new)} if isinstance(tree.get(name), dict) else tree
    if tree.get(name) != then:
        return tree
    # A setting with its default may be missing from a tree; None would be no value for it.
    return tree | {name: new} if new is not None else {key: value for key, value in tree.items() if key != name}
