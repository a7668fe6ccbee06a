"""Settings of the data: the source of the images, their long tail, label noise, split and loading."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from trainables.registry import OneOf
from trainables.settings import Settings, absolute

SmallAugmentation = Literal["crop_flip", "autoaugment", "cutout"]
LargeAugmentation = Literal["resized_crop", "flip", "color_jitter", "rand_augment"]
VectorAugmentation = Literal["views"]
Augmentation = Literal["crop_flip", "autoaugment", "cutout", "resized_crop", "flip", "color_jitter", "rand_augment", "views"]


def refuse_unused(settings: Settings, names: Iterable[str], reason: str, allowed: str) -> None:
    """Refuses settings that have no effect. Their defaults pass: a record of all settings of a trial holds these too.

    Args:
        settings: what the settings are of.
        names: the settings that have no effect.
        reason: why, for example `kind is none`.
        allowed: with which other settings they would have one.

    Raises:
        ValueError: when one of the settings differs from its default.
    """
    for name in names:
        value = getattr(settings, name)
        if value != type(settings).model_fields[name].default:
            shown = f"{value:g}" if isinstance(value, float) else value
            raise ValueError(f"{name} is {shown}, but {reason}; allowed: {allowed}, or leave {name} out")


class NoiseConfig(Settings):
    """Wrong labels in the training set, added after its long tail is made. The meta, val and test sets stay clean."""

    kind: Literal["none", "flip", "flip2", "pairs", "symmetric"] = "none"
    """Which wrong labels the images of a class get. `none`: no wrong labels. `flip`: the label of one other class. `flip2`: the
    labels of two other classes, with half of the rate each. `pairs`: the label of a similar class: CIFAR-10's asymmetric noise,
    the next class of CIFAR-100's superclass, or the pairs in the setting `pairs`. `symmetric`: the label of any class, including
    the right one."""
    rate: float = Field(0.0, ge=0, le=1)
    """Probability that the label of an image is drawn again; p in the papers, which use 0.2 to 0.8."""
    seed: int = Field(1, ge=0, lt=2**31)
    """Random seed that draws the confused classes of `flip` and `flip2`. It is the same for every trial seed, as in the published
    code. The images that get a wrong label are drawn with the trial's seed."""
    pairs: list[Annotated[str, Field(pattern="=")]] = Field([])
    """Confused classes of `kind: pairs`, each as `old=new`. With `cat=dog`, images of cats get the label of dogs. Classes without
    a pair keep their labels. Empty: the pairs of the CIFAR sources."""

    @model_validator(mode="after")
    def _has_effect(self) -> "NoiseConfig":
        if self.kind == "none" and self.rate > 0:
            raise ValueError(f"rate is {self.rate:g}, but kind is none; allowed: rate 0, or a kind, for example flip")
        if self.kind != "pairs":
            refuse_unused(self, ["pairs"], f"kind is {self.kind}", "kind pairs")
        if self.kind not in ("flip", "flip2"):
            refuse_unused(self, ["seed"], f"kind is {self.kind}, which draws no confused classes", "kind flip or flip2")
        return self


class LongTailConfig(Settings):
    """Settings that all sources have: a long tail, label noise, three clean sets (meta, val, test) and augmentation."""

    source: str
    """Name of the data source."""
    profile: Literal["exponential", "step", "pareto", "natural"] = "exponential"
    """How the number of training images falls from class to class, from `n_max` for class 0 to `n_max / imbalance_factor` for the
    last class. `exponential`: by the same factor from each class to the next. `step`: once, in the middle. `pareto`: as a power
    of the class's position, counted from 1. `natural`: each class keeps all images that the balanced sets leave, for sources that
    are long-tailed already."""
    imbalance_factor: float = Field(100.0, ge=1)
    """Size of the largest training class divided by the size of the smallest; rho in the papers. 1 is balanced. Not with
    `profile: natural`."""
    n_max: int = Field(475, ge=1)
    """Number of images of the largest training class. Not with `profile: natural`."""
    rounding: Literal["floor", "nearest"] = "floor"
    """How the profile rounds fractions of an image. `floor`: down, as in all published code. `nearest`: to the nearest whole
    number."""
    selection: Literal["random", "first"] = "random"
    """Which images the sets take. `random`: images drawn with the trial's seed. `first`: the first images for the training set
    and the last images for the balanced sets, for every seed, as in the Difficulty-Net code."""
    split_seed: int = Field(0, ge=0, lt=2**31)
    """Draws the test set, the same for every seed of a trial. So no image that one trial was trained on or selected by is a test
    image of another one, for instance of a confirmation on fresh seeds."""
    fixed_sets: Literal["test", "held_out"] = "test"
    """Which sets are the same for every seed of a trial: `test` alone, or `held_out`, which are test, val and meta. Other sets
    are drawn with the trial's seed from the images that remain."""
    noise: NoiseConfig = NoiseConfig()
    """Wrong labels in the training set."""
    meta_per_class: int | None = Field(10, ge=1)
    """Images per class of the meta set, which drives the meta-gradient and gives the class accuracies A_C. None: all images of
    the source's own val part, or half of them if `val_per_class` is None too. Without such a part, None is an error."""
    val_per_class: int | None = Field(15, ge=1)
    """Images per class of the validation set, which selects epochs and trials and decides early stops. None: the images that
    `meta_per_class` leaves of the source's own val part. Without such a part, None is an error. Not used with `val: meta`."""
    test_per_class: int | None = Field(None, ge=1)
    """Images per class of the test set, which is read once, by the export. None: all images of the source's own test part.
    Without such a part, None is an error."""
    val: Literal["separate", "meta"] = "separate"
    """Which images serve for validation. `separate`: a set of their own. `meta`: the meta set, as in the papers; selection then
    uses images that have driven training."""
    # The next five fields are written to files only when they differ from the default, so that records from before they existed
    # still match.
    meta: Literal["separate", "from_train"] = Field("separate", exclude_if=lambda meta: meta == "separate")
    """Which images drive the meta-gradient and give A_C. `separate`: a set of their own. `from_train`: the training images, with
    the labels that the trainer sees and without augmentation; meta batches draw all classes equally often, with repetition, as
    BALMS does, and `meta_per_class` is not used. The default is not written to files."""
    meta_reserve: int | None = Field(None, ge=1, exclude_if=lambda reserve: reserve is None)
    """Images per class that are kept out of train for the meta set, which takes the first `meta_per_class` of them; val keeps its
    images out of train, too, even if `val: meta` does not use them. So trials whose meta sets differ in size or kind share train,
    test and val, and a smaller meta set is a part of a larger one. None: the meta set takes all that is kept for it. The default
    is not written to files."""
    at_least_per_class: int | None = Field(None, ge=0, exclude_if=lambda least: least is None)
    """Whether small classes may give fewer images to the meta, val and test sets than the settings ask for. None: no, a class
    that is too small is an error. A number: a class gives these sets together at most half of its images (all that the
    profile leaves, except with `natural`; all of a part that has no training images), but at least this many to each balanced
    set; if it cannot, it is an error. With 0, small classes may be absent from these sets, and a class with one image is in the
    training set only. The default is not written to files."""
    val_distribution: Literal["balanced", "long_tailed"] = Field("balanced", exclude_if=lambda kind: kind == "balanced")
    """Sizes of the classes in the validation set. `balanced`: `val_per_class` images of each. `long_tailed`: `val_per_class`
    images per class on average, divided among the classes as the training images are: by the profile, or with `natural` by the
    sizes of the source's classes. Small classes may be absent. The default is not written to files."""
    test_distribution: Literal["balanced", "long_tailed"] = Field("balanced", exclude_if=lambda kind: kind == "balanced")
    """The same for the test set and `test_per_class`. The default is not written to files."""
    augment: list[Augmentation] = Field([])
    """Augmentations of training images, applied in this order, with new random numbers for each image. `crop_flip`: shifts by up
    to 4 pixels, and mirrors with probability 1/2. `autoaugment`: the CIFAR-10 policy. `cutout`: blanks a square with half of the
    image's side. Empty: no augmentation."""
    # As above, the next four fields are written to files only when they differ from the default.
    mix: Literal["none", "mixup", "remix"] = Field("none", exclude_if=lambda mix: mix == "none")
    """Whether training images are blended with other images of their batch, after the augmentation: lambda of an image and 1 -
    lambda of its partner. `none`: no. `mixup`: the labels have the same weights as the images. `remix`: the label of a much rarer
    class has all the weight (`remix_kappa`, `remix_tau`). Lambda is drawn once for each batch, the partners are a random
    permutation of the batch. Sources: Zhang et al., ICLR 2018; Chou et al., 2020. The default is not written to files."""
    mix_alpha: float = Field(1.0, gt=0, exclude_if=lambda alpha: alpha == 1.0)
    """Lambda has the distribution Beta(alpha, alpha): 1 is uniform; towards 0, one of the two images nearly vanishes. Only with
    `mix: mixup` or `remix`. The default is not written to files."""
    remix_kappa: float = Field(3.0, ge=1, exclude_if=lambda kappa: kappa == 3.0)
    """How many times as many training images as the other class a class must have, so that its label may get the weight 0; kappa
    in the paper. Only with `mix: remix`. The default is not written to files."""
    remix_tau: float = Field(0.5, ge=0, le=1, exclude_if=lambda tau: tau == 0.5)
    """The label of the larger class gets the weight 0 only if the weight of its image is below this; tau in the paper. With 0,
    Remix is mixup. Only with `mix: remix`. The default is not written to files."""

    def origin(self) -> dict[str, Any]:
        """The settings that decide which images the source has. The other settings decide which of these images are used, and
        how.
        """
        return self.model_dump(exclude=set(LongTailConfig.model_fields) - {"source"})

    def streamed(self) -> bool:
        """Whether an image is decoded each time it is used, instead of once."""
        return False

    @model_validator(mode="after")
    def _has_effect(self) -> "LongTailConfig":
        if self.profile == "natural":
            shaped = ("imbalance_factor", "n_max", "rounding")
            refuse_unused(self, shaped, "profile is natural, which keeps all images", "profile exponential, step or pareto")
        if self.selection == "first":
            drawn = ("split_seed", "fixed_sets")
            refuse_unused(self, drawn, "selection is first, which draws no images", "selection random")
        # The sizes of a meta or val set that is not taken may be given: search spaces hold them, and `trial.data.val=meta` on the
        # command line is all that it takes to go without the set.
        if self.mix == "none":
            refuse_unused(self, ["mix_alpha"], "mix is none", "mix mixup or remix")
        if self.mix != "remix":
            refuse_unused(self, ["remix_kappa", "remix_tau"], f"mix is {self.mix}", "mix remix")
        return self

    def long_tailed_sets(self) -> list[str]:
        """The sets that share the tail of the training images."""
        return [name for name in ("test", "val") if getattr(self, f"{name}_distribution") == "long_tailed"]

    @model_validator(mode="after")
    def _measurable(self) -> "LongTailConfig":
        if self.meta == "from_train" and self.val == "meta":
            raise ValueError("val is meta, but meta is from_train, so training images would select; allowed: val separate")
        if self.val == "meta" and self.val_distribution == "long_tailed":
            raise ValueError("val_distribution is long_tailed, but val is meta, which is balanced; allowed: val separate")
        if self.meta_reserve is not None and not (self.meta_per_class and self.meta_per_class <= self.meta_reserve):
            raise ValueError(
                f"meta_per_class is {self.meta_per_class}, but meta_reserve is {self.meta_reserve}; allowed: meta_per_class 1 to "
                f"{self.meta_reserve}, or a larger meta_reserve"
            )
        for name in self.long_tailed_sets():
            if getattr(self, f"{name}_per_class") is None:
                raise ValueError(
                    f"{name}_distribution is long_tailed, but {name}_per_class is None, which takes the source's own part as it "
                    f"is; allowed: {name}_distribution balanced, or {name}_per_class a number"
                )
        return self

    def augmentations(self) -> tuple[str, tuple[str, ...]]:
        """The augmentations that there are, and the setting that decides so."""
        return "loading is memory", get_args(SmallAugmentation)

    @model_validator(mode="after")
    def _augmentable(self) -> "LongTailConfig":
        reason, allowed = self.augmentations()
        if wrong := [name for name in self.augment if name not in allowed]:
            raise ValueError(f"augment holds {wrong[0]!r}, but {reason}; allowed: [] or some of {', '.join(allowed)}")
        if repeated := {name for name in self.augment if self.augment.count(name) > 1}:
            raise ValueError(f"augment holds {min(repeated)!r} twice; allowed: each name once")
        return self


class DigitsConfig(LongTailConfig):
    """scikit-learn's digits: 1797 real 8x8 grey images, 10 classes of at least 174. The images are part of scikit-learn; nothing
    is downloaded.
    """

    source: Literal["digits"] = "digits"
    """Name of the data source."""
    imbalance_factor: float = Field(50.0, ge=1)
    """Size of the largest training class divided by the size of the smallest; rho in the papers. 1 is balanced."""
    n_max: int = Field(90, ge=1)
    """Number of images of the largest training class."""
    val_per_class: int | None = Field(24, ge=1)
    """Images per class of the balanced validation set. None needs `val: meta`, because the source has no val part of its own."""
    test_per_class: int | None = Field(50, ge=1)
    """Images per class of the balanced test set. None is an error: the source has no test part of its own."""


class GeneratedConfig(LongTailConfig):
    """Random images, with a pattern for each class: a data set of any size for trying things out. Its results say nothing about a
    method.
    """

    source: Literal["generated"] = "generated"
    """Name of the data source."""
    num_classes: int = Field(4, ge=2)
    """Number of classes."""
    images_per_class: int = Field(60, ge=1)
    """Images of each class, before the long tail is made."""
    image_size: int = Field(8, ge=1)
    """Height and width of the images, in pixels."""
    channels: Literal[1, 3] = 3
    """Channels of the images: 1 is grey, 3 is colour."""
    imbalance_factor: float = Field(10.0, ge=1)
    """Size of the largest training class divided by the size of the smallest; rho in the papers. 1 is balanced."""
    n_max: int = Field(30, ge=1)
    """Number of images of the largest training class."""
    val_per_class: int | None = Field(10, ge=1)
    """Images per class of the balanced validation set. None needs `val: meta`, because the source has no val part of its own."""
    test_per_class: int | None = Field(10, ge=1)
    """Images per class of the balanced test set. None is an error: the source has no test part of its own."""


class _CifarConfig(LongTailConfig):
    """Settings that both CIFAR sources have."""

    root: str = "data"
    """Folder of torchvision's copy of the images (`cifar-10-batches-py` or `cifar-100-python`). A download is stored in this
    folder."""
    download: bool = True
    """Whether the images are downloaded if `root` does not contain them. false: missing images are an error."""
    augment: list[Augmentation] = Field(["crop_flip"])
    """Augmentations of training images, applied in this order: `crop_flip`, `autoaugment`, `cutout`."""

    _absolute = field_validator("root")(absolute)


class Cifar10Config(_CifarConfig):
    """CIFAR-10: 32x32 colour images, 5000 for training and 1000 for testing in each of 10 classes."""

    source: Literal["cifar10"] = "cifar10"
    """Name of the data source."""
    n_max: int = Field(4900, ge=1)
    """Number of images of the largest training class: 5000 in LDAM's splits (without a meta set), 4990 in Meta-Weight-Net's, 4900
    in the advisor paper's."""
    val_per_class: int | None = Field(90, ge=1)
    """Images per class of the balanced validation set. None needs `val: meta`, because the source has no val part of its own."""


class Cifar100Config(_CifarConfig):
    """CIFAR-100: 32x32 colour images, 500 for training and 100 for testing in each of 100 classes."""

    source: Literal["cifar100"] = "cifar100"
    """Name of the data source."""
    n_max: int = Field(475, ge=1)
    """Number of images of the largest training class: 500 in LDAM's splits (without a meta set), 490 in Meta-Weight-Net's and the
    Difficulty-Net paper's, 475 in the Difficulty-Net code."""


class EncodedConfig(LongTailConfig):
    """Settings that all sources of encoded images (JPEG, PNG, WebP, ...) have: how the images are read."""

    root: str
    """Folder of the images. The path is stored as an absolute path, because trials run in their own folders. Some sources also
    allow an address in a store, such as `s3://bucket/folder`."""
    loading: Literal["memory", "stream"] = "stream"
    """When images are decoded. `memory`: each image once; the decoded image stays on the device as it is; for small images.
    `stream`: each image is read and decoded every time it is used, by `compute.readers` processes; those that are not augmented
    (meta, val) only once, as far as `compute.keep_gib` allows."""
    image_size: int | None = Field(224, ge=1, le=4096)
    """Height and width of the images that the classifier sees, in pixels. None, with `loading: memory` only: the images have one
    size already and keep it."""
    grey: bool = False
    """Whether images are read as one grey channel instead of three colour channels."""
    augment: list[Augmentation] = Field(["resized_crop", "flip"])
    """Augmentations of training images, applied in this order. With `loading: memory`: `crop_flip`, `autoaugment`, `cutout`. With
    `loading: stream`: `resized_crop` (8 to 100 % of the area), `flip`, `color_jitter` (brightness, contrast, saturation 0.4),
    `rand_augment` (2 operations of magnitude 10); without `resized_crop`, images are cropped to their middle."""
    # The next five fields are written to files only when they differ from the default.
    shrink: int | None = Field(None, ge=1, le=4096, exclude_if=lambda side: side is None)
    """Side, in pixels, to which the short side of every training image is shrunk, once for a machine, before it is augmented;
    smaller images stay as they are. Each epoch of each trial then reads the pixels of the small images from the cache folder
    (`$TAILTUNE_CACHE` or `~/.cache/tailtune/data`), where an image takes 3 * shrink^2 bytes, or more if it is oblong, and decodes
    no file. Crops see fewer details than without, so the results differ. Images of meta, val and test are not shrunk. Only with
    `loading: stream`, and not below `image_size`; image_size * 256 / 224 is usual. None: training images are decoded each time
    they are used. The default is not written to files."""
    classes: list[Annotated[str, Field(min_length=1)]] = Field([], exclude_if=lambda classes: not classes)
    """Which classes are used. `name`: only the classes that are named so are used. `-name`: this class is left out. `new=old`:
    the images of class `old` count as class `new`, which may be another class or a new name. `[cat,dog]` uses two classes,
    `[-unsorted]` all but one, `[pet=cat,pet=dog]` merges two and keeps the others. Empty: all classes. The default is not
    written to files."""
    min_images: int | None = Field(None, ge=1, exclude_if=lambda number: number is None)
    """Classes with fewer images than this are left out; of a source with own parts, images in the train part count. 1 leaves out
    empty classes. None: no class is left out. The default is not written to files."""
    broken: Literal["refuse", "skip"] = Field("refuse", exclude_if=lambda broken: broken == "refuse")
    """What happens when images cannot be read. `refuse`: nothing starts. `skip`: they are left out, and a note counts them. To
    find them, all images are decoded once; the result is kept in the cache folder (`$TAILTUNE_CACHE` or
    `~/.cache/tailtune/data`), and used until a file changes. The default is not written to files."""
    skip: str | None = Field(None, exclude_if=lambda skip: skip is None)
    """A file that lists images to leave out, one on each line: the path below `root`, or for parquet `file.parquet, row 7`.
    What follows a tab is a remark. `python -m orchestrator.doctor SWEEP.yaml --write-skip-list FILE` writes such a list. None: no
    image is left out. The default is not written to files."""

    _absolute = field_validator("root")(absolute)

    @field_validator("skip")
    @classmethod
    def _absolute_list(cls, skip: str | None) -> str | None:
        return None if skip is None else absolute(skip)

    @field_validator("classes", mode="before")
    @classmethod
    def _names(cls, classes: Any) -> Any:
        # In YAML [1, -2] are numbers; here they are names of classes.
        return [str(name) if type(name) is int else name for name in classes] if isinstance(classes, list) else classes

    def streamed(self) -> bool:
        """Whether an image is decoded each time it is used, instead of once."""
        return self.loading == "stream"

    def augmentations(self) -> tuple[str, tuple[str, ...]]:
        """The augmentations that there are, and the setting that decides so."""
        return ("loading is stream", get_args(LargeAugmentation)) if self.streamed() else super().augmentations()

    @model_validator(mode="after")
    def _sized(self) -> "EncodedConfig":
        if self.streamed() and self.image_size is None:
            raise ValueError("image_size is None, but loading is stream; allowed: a whole number of at least 1")
        if not self.streamed():
            refuse_unused(self, ["shrink"], "loading is memory, which decodes each image once anyway", "loading stream")
        if self.shrink is not None and self.image_size is not None and self.shrink < self.image_size:
            raise ValueError(
                f"shrink is {self.shrink}, but image_size is {self.image_size}, so images would be enlarged again; allowed: at "
                f"least {self.image_size}, for example {round(self.image_size * 256 / 224)}"
            )
        return self


class ParquetConfig(EncodedConfig):
    """Images in the .parquet files of a folder. The defaults fit CIFAR-100."""

    source: Literal["parquet"] = "parquet"
    """Name of the data source."""
    root: str
    """The folder, or an address in a store, such as `s3://bucket/folder` (`s3://`, `gs://`, `abfs://`, `hdfs://`). Files in a
    store are copied once to each machine, into the folder that the environment variable TAILTUNE_CACHE names there, or into
    `~/.cache/tailtune/data`. Each file has a column of encoded images (PNG, JPEG, WebP) and a column of labels (0, 1, ...). Files
    named train*, val* and test* are the source's own parts. Without such names, all rows are one pool."""
    image_column: str = "image"
    """Name of the column of encoded images. Each row has the bytes of an image, or a struct with a field `bytes`, as Hugging Face
    writes it. Hugging Face's CIFAR-100 has `image_column: img`, `label_column: fine_label`."""
    label_column: str = "label"
    """Name of the column of labels: whole numbers from 0."""
    loading: Literal["memory", "stream"] = "memory"
    """When images are decoded. `memory`: the images that a trial uses are decoded once and stay on the device. `stream`: the
    images stay encoded in memory, or from 64 MiB on in the cache folder, which all processes of a machine share. They are decoded
    every time they are used; those that are not augmented (meta, val) only once, as far as `compute.keep_gib` allows."""
    image_size: int | None = Field(None, ge=1, le=4096)
    """Height and width of the images that the classifier sees, in pixels. None, with `loading: memory` only: the images have one
    size already."""
    augment: list[Augmentation] = Field(["crop_flip"])
    """Augmentations of training images, applied in this order. With `loading: memory`: `crop_flip`, `autoaugment`, `cutout`. With
    `loading: stream`: `resized_crop`, `flip`, `color_jitter`, `rand_augment`."""


class _NaturalConfig(EncodedConfig):
    """Defaults for sources that are long-tailed already."""

    profile: Literal["exponential", "step", "pareto", "natural"] = "natural"
    """How many training images each class keeps. `natural`: all images that the balanced sets leave."""
    meta_per_class: int | None = Field(None, ge=1)
    """Images per class of the meta set. None: all images of the source's own val part, or half of them if `val_per_class` is None
    too."""
    val_per_class: int | None = Field(None, ge=1)
    """Images per class of the validation set. None: the images that `meta_per_class` leaves of the source's own val part."""


class ImageListsConfig(_NaturalConfig):
    """Image files named in lists with one image per line: ImageNet-LT, Places-LT, iNaturalist and others in this format."""

    source: Literal["image_lists"] = "image_lists"
    """Name of the data source."""
    train_list: str
    """File that lists the training images. Each line has a path and a label: `relative/path.jpg 17`. If the name of the file is
    relative, it is looked up in `root`."""
    val_list: str | None = None
    """File that lists the source's own val part, from which the meta and val sets are taken. None: the source has no val part.
    Then `meta_per_class` must be a number, and so must `val_per_class` with `val: separate`."""
    test_list: str | None = None
    """File that lists the source's own test part. None: the source has no test part. Then `test_per_class` must be a number."""
    meta_list: str | None = Field(None, exclude_if=lambda name: name is None)
    """File that lists images for the meta set alone, whose labels somebody has checked. `meta_per_class` images of each class are
    taken; with None, all. None: the meta set comes from the other images. The default is not written to files."""
    prefixes: list[Annotated[str, Field(pattern="=")]] = Field([])
    """Replacements for the beginning of a path in the lists, each as `old=new`; the new path is looked up in `root`. `data_256/=`
    drops a folder. Only the first `old` that matches is replaced."""

    @model_validator(mode="after")
    def _uses_meta_list(self) -> "ImageListsConfig":
        _refuse_idle_meta(self, "meta_list", self.meta_list)
        return self


class Clothing1MConfig(_NaturalConfig):
    """Clothing1M (Xiao et al., CVPR 2015): a million images of 14 classes. Training labels are noisy; val and test labels are
    clean.
    """

    source: Literal["clothing1m"] = "clothing1m"
    """Name of the data source."""
    root: str
    """The folder with `images`, noisy_train_key_list.txt, clean_val_key_list.txt, clean_test_key_list.txt, noisy_label_kv.txt and
    clean_label_kv.txt."""


def _refuse_idle_meta(config: LongTailConfig, name: str, value: str | None) -> None:
    if value is not None and config.meta == "from_train":
        raise ValueError(f"{name} is {value!r}, but meta is from_train, which needs no meta set; allowed: meta separate")


class ImageFolderConfig(_NaturalConfig):
    """A folder with your own images, one subfolder for each class."""

    source: Literal["image_folder"] = "image_folder"
    """Name of the data source."""
    root: str
    """`root/<class>/*.jpg` for all images as one pool; or `root/train/<class>/*.jpg`, and in the same way `root/val` and
    `root/test` if the source has these parts; images in `root/meta` are for the meta set alone. `training`, `valid`, `validation`
    and `testing` name the same parts, in upper or lower case. Links to files and folders are followed."""
    extra_endings: list[Annotated[str, Field(pattern=r"^(\.[^/]+|none)$")]] = Field([])
    """Endings of files that are read as images beside .jpg, .jpeg, .jpe, .jfif, .png, .webp, .bmp, .gif, .tif, .tiff, .ppm and
    .pgm, in upper or lower case: `[.avif]`. `none` stands for files without an ending. Pillow must be able to decode the
    files."""
    meta_root: str | None = Field(None, exclude_if=lambda folder: folder is None)
    """A folder with images for the meta set alone, whose labels somebody has checked: `meta_root/<class>/*.jpg`, with the
    classes of `root`. `root/meta` beside `root/train` does the same. `meta_per_class` images of each class are taken; with None,
    all. None: the meta set comes from the other images. The default is not written to files."""
    meta_per_class: int | None = Field(10, ge=1)
    """Images per class of the balanced meta set. None: all images of the meta folder if there is one; otherwise all of
    `root/val`, or half of them if `val_per_class` is None too. Without these folders, None is an error."""
    val_per_class: int | None = Field(10, ge=1)
    """Images per class of the balanced validation set. None: the images that `meta_per_class` leaves of `root/val`. Without
    `root/val`, None is an error."""
    test_per_class: int | None = Field(20, ge=1)
    """Images per class of the balanced test set. None: all images of `root/test`. Without `root/test`, None is an error."""

    @field_validator("meta_root")
    @classmethod
    def _absolute_meta(cls, folder: str | None) -> str | None:
        return None if folder is None else absolute(folder)

    @model_validator(mode="after")
    def _uses_meta_root(self) -> "ImageFolderConfig":
        _refuse_idle_meta(self, "meta_root", self.meta_root)
        return self


class FeaturesConfig(LongTailConfig):
    """Feature vectors that a frozen backbone has computed from images: what `python -m trainables.features` writes, or your own.
    Trials on them train heads, which takes seconds. For `classifier.name: linear` or `mlp_adapter`.
    """

    source: Literal["features"] = "features"
    """Name of the data source."""
    root: str
    """The folder. Either .parquet files, each with a column of vectors and a column of labels (0, 1, ...): files named train*,
    val* and test* are the source's own parts; without such names, all rows are one pool. Or NumPy files: `features.npy`, (N, D)
    of float16 or float32, and `labels.npy`, (N,) of whole numbers; or `train_features.npy`, `train_labels.npy` and the same for
    val and test; `class_names.txt` beside them may hold a name on each line."""
    features_column: str = "features"
    """Name of the column of vectors: lists of numbers, all of one length. Not used for NumPy files."""
    label_column: str = "label"
    """Name of the column of labels: whole numbers from 0. Not used for NumPy files."""
    standardise: bool = True
    """Whether each of the D numbers is standardised: minus its mean, divided by its standard deviation over the training images.
    false: the vectors stay as they are."""
    augment: list[Augmentation] = Field([])
    """`views`: each training image has, at random, one of the vectors that `python -m trainables.features --views` has computed
    from augmented copies of it. Empty: the vector of the image as it is."""

    _absolute = field_validator("root")(absolute)

    def augmentations(self) -> tuple[str, tuple[str, ...]]:
        """The augmentations that there are, and the setting that decides so."""
        return "source is features", get_args(VectorAugmentation)


DATA_SETTINGS: dict[str, type[LongTailConfig]] = {
    "digits": DigitsConfig,
    "generated": GeneratedConfig,
    "cifar10": Cifar10Config,
    "cifar100": Cifar100Config,
    "parquet": ParquetConfig,
    "image_lists": ImageListsConfig,
    "clothing1m": Clothing1MConfig,
    "image_folder": ImageFolderConfig,
    "features": FeaturesConfig,
}
"""The settings class of each data source, by name. DATASETS in data/__init__.py has the function that opens each source."""

DataConfig = Annotated[LongTailConfig, OneOf(DATA_SETTINGS, "source")]
"""The settings of one data source, chosen by its name."""
