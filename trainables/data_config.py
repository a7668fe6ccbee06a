"""Settings of the data: where images come from, their long tail, their label noise, their split, and how they are loaded."""

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from trainables.registry import OneOf
from trainables.settings import Settings, absolute

SmallAugmentation = Literal["crop_flip", "autoaugment", "cutout"]
LargeAugmentation = Literal["resized_crop", "flip", "color_jitter", "rand_augment"]
Augmentation = Literal["crop_flip", "autoaugment", "cutout", "resized_crop", "flip", "color_jitter", "rand_augment"]


class NoiseConfig(Settings):
    """Wrong labels, put into the training set after its long tail is made; meta, val and test stay clean."""

    kind: Literal["none", "flip", "flip2", "pairs", "symmetric"] = "none"
    """`flip`: each class has one other class that its images are taken for; `flip2`: two, half of the rate each; `pairs`: a
    similar class (CIFAR-10's asymmetric noise, the next class of CIFAR-100's superclass, or `pairs`); `symmetric`: any class, the
    right one included."""
    rate: float = Field(0.0, ge=0, le=1)
    """Probability that an image's label is drawn anew; p in the papers, 0.2 to 0.8 there."""
    seed: int = Field(1, ge=0, lt=2**31)
    """Draws which classes `flip` and `flip2` confuse; the same for every trial seed, as in the published code. Which images are
    hit is drawn from the trial's seed."""
    pairs: list[Annotated[str, Field(pattern="=")]] = Field([])
    """For `pairs`: `cat=dog` where images of a cat are taken for dogs; classes that are not named keep their labels. Without any,
    the pairs of the CIFARs."""

    @model_validator(mode="after")
    def _has_effect(self) -> "NoiseConfig":
        if self.kind == "none" and self.rate > 0:
            raise ValueError(f"rate is {self.rate:g}, but kind is none; allowed: rate 0, or a kind, for example flip")
        return self


class LongTailConfig(Settings):
    """What every source has: a long tail, label noise, three clean sets beside it, and augmentation."""

    source: str
    """Where the images come from."""
    profile: Literal["exponential", "step", "pareto", "natural"] = "exponential"
    """How many training images the classes keep, from `n_max` for class 0 to `n_max / imbalance_factor` for the last one:
    `exponential` falls by the same factor from class to class, `step` once in the middle, `pareto` as a power of the class's
    number. `natural` keeps all that the balanced sets leave, for sets that are long-tailed already."""
    imbalance_factor: float = Field(100.0, ge=1)
    """Largest over smallest training class, rho in the papers; 1 is balanced. Unused by `natural`."""
    n_max: int = Field(475, ge=1)
    """Images of the largest training class. Unused by `natural`."""
    rounding: Literal["floor", "nearest"] = "floor"
    """What becomes of fractions of an image in the profile; `floor` in all published code."""
    selection: Literal["random", "first"] = "random"
    """Which images are taken: drawn with the trial's seed, or, as in the Difficulty-Net code, the first ones for training and the
    last ones for the balanced sets, whatever the seed."""
    noise: NoiseConfig = NoiseConfig()
    """Wrong labels in the training set."""
    meta_per_class: int | None = Field(10, ge=1)
    """Images per class of the meta set, which drives the meta-gradient and gives the class accuracies A_C. None takes all of the
    source's own val part, or half of it when `val_per_class` is None too."""
    val_per_class: int | None = Field(15, ge=1)
    """Images per class of the validation set, which selects epochs, trials and early stops. None takes what `meta_per_class`
    leaves of the source's own val part. Unused with `val: meta`."""
    test_per_class: int | None = Field(None, ge=1)
    """Images per class of the test set, which is read once, by the export. None takes all of the source's own test part."""
    val: Literal["separate", "meta"] = "separate"
    """`meta` takes the meta set for validation too, as the papers do: it then selects on images that have driven training."""
    augment: list[Augmentation] = Field([])
    """What happens to training images, in this order, a new draw for each: `crop_flip` shifts by up to 4 pixels and mirrors every
    second time, `autoaugment` is the CIFAR-10 policy, `cutout` blanks a square with half of the image's side."""

    def origin(self) -> dict[str, Any]:
        """The settings that say which images there are; the others say which of them are used, and how."""
        return self.model_dump(exclude=set(LongTailConfig.model_fields) - {"source"})

    def streamed(self) -> bool:
        """Whether images are decoded anew each time, instead of once for all."""
        return False

    @model_validator(mode="after")
    def _has_effect(self) -> "LongTailConfig":
        for name in ("imbalance_factor", "n_max"):
            if self.profile == "natural" and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(
                    f"{name} is {getattr(self, name):g}, but profile is natural, which keeps all images; "
                    "allowed: profile exponential, step or pareto"
                )
        return self

    @model_validator(mode="after")
    def _augmentable(self) -> "LongTailConfig":
        loading, allowed = ("stream", LargeAugmentation) if self.streamed() else ("memory", SmallAugmentation)
        if wrong := [name for name in self.augment if name not in get_args(allowed)]:
            raise ValueError(
                f"augment holds {wrong[0]!r}, but loading is {loading}; allowed: [] or some of {', '.join(get_args(allowed))}"
            )
        if repeated := {name for name in self.augment if self.augment.count(name) > 1}:
            raise ValueError(f"augment holds {min(repeated)!r} twice; allowed: each name once")
        return self


class DigitsConfig(LongTailConfig):
    """scikit-learn's digits: 1797 real 8x8 grey images, 10 classes of at least 174; inside the package, nothing is downloaded."""

    source: Literal["digits"] = "digits"
    """Where the images come from."""
    imbalance_factor: float = Field(50.0, ge=1)
    """Largest over smallest training class, rho in the papers; 1 is balanced."""
    n_max: int = Field(90, ge=1)
    """Images of the largest training class."""
    val_per_class: int | None = Field(24, ge=1)
    """Images per class of the balanced validation set."""
    test_per_class: int | None = Field(50, ge=1)
    """Images per class of the balanced test set."""


class GeneratedConfig(LongTailConfig):
    """Random images around a pattern for each class: a set of any size for trying things out. Nothing is learned from it."""

    source: Literal["generated"] = "generated"
    """Where the images come from."""
    num_classes: int = Field(4, ge=2)
    """Classes."""
    images_per_class: int = Field(60, ge=1)
    """Images of each class, before the long tail."""
    image_size: int = Field(8, ge=1)
    """Height and width in pixels."""
    channels: Literal[1, 3] = 3
    """1 is grey, 3 is colour."""
    imbalance_factor: float = Field(10.0, ge=1)
    """Largest over smallest training class, rho in the papers; 1 is balanced."""
    n_max: int = Field(30, ge=1)
    """Images of the largest training class."""
    val_per_class: int | None = Field(10, ge=1)
    """Images per class of the balanced validation set."""
    test_per_class: int | None = Field(10, ge=1)
    """Images per class of the balanced test set."""


class _CifarConfig(LongTailConfig):
    """What both CIFARs have."""

    root: str = "data"
    """Folder that holds, or gets, torchvision's copy (`cifar-10-batches-py` or `cifar-100-python`)."""
    download: bool = True
    """Whether the images are downloaded when they are not there."""
    augment: list[Augmentation] = Field(["crop_flip"])
    """What happens to training images, in this order: `crop_flip`, `autoaugment`, `cutout`."""

    _absolute = field_validator("root")(absolute)


class Cifar10Config(_CifarConfig):
    """CIFAR-10: 32x32 colour images, 5000 for training and 1000 for testing in each of 10 classes."""

    source: Literal["cifar10"] = "cifar10"
    """Where the images come from."""
    n_max: int = Field(4900, ge=1)
    """Images of the largest training class: 5000 in LDAM's splits (without meta set), 4990 in Meta-Weight-Net's, 4900 in the
    advisor paper's."""
    val_per_class: int | None = Field(90, ge=1)
    """Images per class of the balanced validation set."""


class Cifar100Config(_CifarConfig):
    """CIFAR-100: 32x32 colour images, 500 for training and 100 for testing in each of 100 classes."""

    source: Literal["cifar100"] = "cifar100"
    """Where the images come from."""
    n_max: int = Field(475, ge=1)
    """Images of the largest training class: 500 in LDAM's splits (without meta set), 490 in Meta-Weight-Net's and the
    Difficulty-Net paper's, 475 in the Difficulty-Net code."""


class EncodedConfig(LongTailConfig):
    """What sources of encoded images (JPEG, PNG, WebP, ...) have: how they are read."""

    root: str
    """The folder, kept as an absolute path, because trials run in folders of their own; or an address that pyarrow reads, such as
    `s3://bucket/folder`, where the source allows it."""
    loading: Literal["memory", "stream"] = "stream"
    """`memory` decodes each image once and keeps it on the device as it is, for small images; `stream` reads and decodes it each
    time, in `compute.readers` processes."""
    image_size: int | None = Field(224, ge=1, le=4096)
    """Height and width that the classifier sees. None, with `memory` only: the images have one size already and keep it."""
    grey: bool = False
    """Whether images are read as one grey channel instead of three colours."""
    augment: list[Augmentation] = Field(["resized_crop", "flip"])
    """What happens to training images, in this order. With `memory`: `crop_flip`, `autoaugment`, `cutout`. With `stream`:
    `resized_crop` (8 to 100 % of the area), `flip`, `color_jitter` (brightness, contrast, saturation 0.4), `rand_augment` (2
    operations of magnitude 10); without `resized_crop`, the middle of the image."""

    _absolute = field_validator("root")(absolute)

    def streamed(self) -> bool:
        """Whether images are decoded anew each time, instead of once for all."""
        return self.loading == "stream"

    @model_validator(mode="after")
    def _sized(self) -> "EncodedConfig":
        if self.streamed() and self.image_size is None:
            raise ValueError("image_size is None, but loading is stream; allowed: a whole number of at least 1")
        return self


class ParquetConfig(EncodedConfig):
    """Images in the .parquet files of a folder; the defaults fit CIFAR-100."""

    source: Literal["parquet"] = "parquet"
    """Where the images come from."""
    root: str
    """The folder, or an address that pyarrow reads, such as `s3://bucket/folder`. Each file has a column `image` (an encoded
    image: PNG, JPEG, WebP) and a column `label` (0, 1, ...). Files named train*, val* and test* are the source's own parts;
    without such names all rows are one pool."""
    loading: Literal["memory", "stream"] = "memory"
    """`memory` decodes the images that a trial uses and keeps them on the device; `stream` keeps them encoded in memory and
    decodes each time."""
    image_size: int | None = Field(None, ge=1, le=4096)
    """Height and width that the classifier sees; None, with `memory` only: the images have one size already."""
    augment: list[Augmentation] = Field(["crop_flip"])
    """What happens to training images, in this order. With `memory`: `crop_flip`, `autoaugment`, `cutout`. With `stream`:
    `resized_crop`, `flip`, `color_jitter`, `rand_augment`."""


class _NaturalConfig(EncodedConfig):
    """Defaults for sets that are long-tailed as they come."""

    profile: Literal["exponential", "step", "pareto", "natural"] = "natural"
    """How many training images the classes keep; `natural` keeps all."""
    meta_per_class: int | None = Field(None, ge=1)
    """Images per class of the meta set. None takes all of the source's own val part, or half of it when `val_per_class` is None
    too."""
    val_per_class: int | None = Field(None, ge=1)
    """Images per class of the validation set. None takes what `meta_per_class` leaves of the source's own val part."""


class ImageListsConfig(_NaturalConfig):
    """Image files named in lists, a line each: ImageNet-LT, Places-LT, iNaturalist and others of their form."""

    source: Literal["image_lists"] = "image_lists"
    """Where the images come from."""
    train_list: str
    """The training images: `relative/path.jpg 17`, path and label, on each line. A relative name is looked for inside `root`."""
    val_list: str | None = None
    """The source's own val part, if any; feeds meta and val."""
    test_list: str | None = None
    """The source's own test part, if any."""
    prefixes: list[Annotated[str, Field(pattern="=")]] = Field([])
    """How paths of the lists begin under `root`, as `old=new`: `data_256/=` drops a folder. The first that fits is taken."""


class Clothing1MConfig(_NaturalConfig):
    """Clothing1M (Xiao et al., CVPR 2015): a million images of 14 classes with noisy labels, val and test with clean ones."""

    source: Literal["clothing1m"] = "clothing1m"
    """Where the images come from."""
    root: str
    """The folder with `images`, noisy_train_key_list.txt, clean_val_key_list.txt, clean_test_key_list.txt, noisy_label_kv.txt and
    clean_label_kv.txt."""


class ImageFolderConfig(_NaturalConfig):
    """A folder of your own images, with a folder for each class."""

    source: Literal["image_folder"] = "image_folder"
    """Where the images come from."""
    root: str
    """`root/<class>/*.jpg`, all as one pool, or `root/train/<class>/*.jpg` and likewise `root/val` and `root/test`, if there are
    any."""
    meta_per_class: int | None = Field(10, ge=1)
    """Images per class of the balanced meta set; None takes all of `root/val`, or half of it when `val_per_class` is None too."""
    val_per_class: int | None = Field(10, ge=1)
    """Images per class of the balanced validation set; None takes what `meta_per_class` leaves of `root/val`."""
    test_per_class: int | None = Field(20, ge=1)
    """Images per class of the balanced test set; None takes all of `root/test`."""


DATA_SETTINGS: dict[str, type[LongTailConfig]] = {
    "digits": DigitsConfig,
    "generated": GeneratedConfig,
    "cifar10": Cifar10Config,
    "cifar100": Cifar100Config,
    "parquet": ParquetConfig,
    "image_lists": ImageListsConfig,
    "clothing1m": Clothing1MConfig,
    "image_folder": ImageFolderConfig,
}
"""The settings of each data source by name; DATASETS in data/__init__.py holds what the names stand for."""

DataConfig = Annotated[LongTailConfig, OneOf(DATA_SETTINGS, "source")]
"""The settings of one data source, chosen by its name."""
