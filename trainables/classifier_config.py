"""Settings of the classifiers: the backbone and the head. Each classifier has its own settings class, chosen by name."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from trainables.data_config import refuse_unused
from trainables.registry import OneOf
from trainables.settings import Settings, absolute


class ClassifierSettings(Settings):
    """Settings that all classifiers have: a name and a head."""

    takes_vectors: ClassVar[bool] = True
    """Whether the backbone takes feature vectors (B, D), as `data.source: features` has them."""

    name: str
    """Name of the classifier. The base class declares the field, so that it stays the first field when a subclass narrows its
    type."""
    head: Literal["linear", "cosine"] = "linear"
    """How the head turns features into logits. `linear`: a weight vector and a bias for each class. `cosine`: the cosine between
    the feature vector and a class vector, times `scale`. Only the directions of the vectors count, so no class wins by the length
    of its class vector."""
    scale: float = Field(30.0, gt=0)
    """Factor that turns a cosine into a logit; s = 30 in the code of LDAM. Only with `head: cosine`."""

    @model_validator(mode="after")
    def _has_effect(self) -> "ClassifierSettings":
        if self.head == "linear":
            refuse_unused(self, ["scale"], "head is linear", "head cosine")
        return self

    def starts_random(self) -> bool:
        """Whether the backbone's initial weights are random, as far as the settings tell; those of plug-ins may be anything."""
        return type(self).__module__ == __name__

    def expected_pixels(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Mean and standard deviation of each channel that the weights of a plug-in expect, in units of the largest value of a
        pixel; None leaves the normalisation to the data. How images are resized does not depend on plug-ins.
        """
        return None

    def backbone(self) -> dict[str, Any]:
        """The settings that decide the backbone's architecture, without those of the head and of the weights' values."""
        return self.model_dump(exclude={"head", "scale", "weights", "pretrained", "normalisation"})


class BackboneSettings(ClassifierSettings):
    """Settings of classifiers whose backbone may have pre-trained weights: the file, the format of the images, and what of the
    backbone is trained.
    """

    takes_vectors = False
    weights: str | None = None
    """A local file with the backbone's initial weights: .safetensors, or a torch file that contains only tensors. The weights of
    the file's own head are ignored. None: random initial weights. The path is stored as an absolute path, because trials run in
    their own folders."""
    # The next fields are written to files only when they differ from the default.
    normalisation: Literal["weights", "data"] = Field("weights", exclude_if=lambda given: given == "weights")
    """With which mean and standard deviation images are normalised before the backbone sees them, and how streamed images are
    resized and cropped that are not augmented. `weights`: as the pre-trained weights expect it; without such weights, as `data`.
    `data`: with mean and standard deviation of the training set, or for streamed images with ImageNet's; streamed images are
    resized to 256/224 of the size, bilinear. An exported model of this project, used as `weights`, expects what it was trained
    with. The default is not written to files."""
    train: Literal["all", "head", "last_blocks", "norm_bias", "lora"] = Field("all", exclude_if=lambda given: given == "all")
    """What is trained besides the head; the rest of the backbone is frozen. `all`: the whole backbone. `head`: nothing.
    `last_blocks`: the last `num_blocks` blocks and what follows them. `norm_bias`: all biases, and the weights of the norms
    (BitFit: Ben Zaken et al., ACL 2022). `lora`: updates of low rank of all linear layers (Hu et al., ICLR 2022). A part whose
    parameters are all frozen runs as in evaluation: its BatchNorm uses its running statistics and leaves them as they are, and it
    has no dropout or drop path. The default is not written to files."""
    num_blocks: int = Field(1, ge=1, exclude_if=lambda given: given == 1)
    """How many blocks are trained with `train: last_blocks`: residual blocks, layers of a transformer, inverted residuals. The
    default is not written to files."""
    lora_rank: int = Field(8, ge=1, exclude_if=lambda given: given == 8)
    """Rank r of the updates of `train: lora`. The default is not written to files."""
    lora_alpha: float = Field(16.0, gt=0, exclude_if=lambda given: given == 16.0)
    """The updates of `train: lora` are multiplied by `lora_alpha` / `lora_rank`. The default is not written to files."""

    @field_validator("weights")
    @classmethod
    def _absolute(cls, weights: str | None) -> str | None:
        return None if weights is None else absolute(weights)

    @model_validator(mode="after")
    def _adaptation_has_effect(self) -> "BackboneSettings":
        for train, names in {"last_blocks": ["num_blocks"], "lora": ["lora_rank", "lora_alpha"]}.items():
            if self.train != train:
                refuse_unused(self, names, f"train is {self.train}", f"train {train}")
        return self

    def has_weights(self) -> bool:
        """Whether the backbone starts from pre-trained weights."""
        return self.weights is not None

    def starts_random(self) -> bool:
        """Whether the backbone's initial weights are random."""
        return not self.has_weights()


class SmallCNNConfig(ClassifierSettings):
    """For small images: two 3x3 convolutions with BatchNorm, the second with stride 2, and a head on the features of all
    positions.
    """

    takes_vectors = False
    name: Literal["small_cnn"] = "small_cnn"
    """Name of the classifier."""
    widths: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=2, max_length=2)] = Field([16, 32])
    """Output channels of the two convolutions."""


class ResNetCifarConfig(ClassifierSettings):
    """The ResNet of the CIFAR papers (He et al., 2016): three stages of 16, 32 and 64 channels, shortcuts without parameters."""

    takes_vectors = False
    name: Literal["resnet_cifar"] = "resnet_cifar"
    """Name of the classifier."""
    depth: Literal[20, 32, 44, 56] = 32
    """Number of layers with weights; 32 in the long-tail papers."""


class ResNetCifar18Config(ClassifierSettings):
    """The ResNet-18 (He et al., 2016) for images of about 32 pixels: four stages of 64 to 512 channels, after a 3x3 convolution
    with stride 1 instead of a 7x7 convolution with stride 2 and max pooling. 11 million parameters.
    """

    takes_vectors = False
    name: Literal["resnet_cifar18"] = "resnet_cifar18"
    """Name of the classifier."""


class ResNetConfig(BackboneSettings):
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


TorchvisionModel = Literal[
    "vit_b_16",
    "vit_b_32",
    "vit_l_16",
    "vit_l_32",
    "vit_h_14",
    "convnext_tiny",
    "convnext_small",
    "convnext_base",
    "convnext_large",
    "efficientnet_b0",
    "efficientnet_b1",
    "efficientnet_b2",
    "efficientnet_b3",
    "efficientnet_b4",
    "efficientnet_b5",
    "efficientnet_b6",
    "efficientnet_b7",
    "efficientnet_v2_s",
    "efficientnet_v2_m",
    "efficientnet_v2_l",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "mobilenet_v3_large",
]
"""torchvision's models that can be classifiers here."""


class TorchvisionConfig(BackboneSettings):
    """torchvision's vision transformers, ConvNeXts, EfficientNets and MobileNets; the head takes the place of the last linear
    layer.
    """

    name: Literal["torchvision"] = "torchvision"
    """Name of the classifier."""
    model: TorchvisionModel = "vit_b_16"
    """torchvision's name of the architecture. A vision transformer needs square images whose side is a multiple of its patches,
    16 for `vit_b_16`; position embeddings of weights for images of another size are interpolated."""


class TimmConfig(BackboneSettings):
    """A model of timm, PyTorch Image Models, which is an optional package: `pip install tailtune[backbones]`."""

    name: Literal["timm"] = "timm"
    """Name of the classifier."""
    model: str = Field("vit_small_patch16_224", min_length=1)
    """timm's name of the architecture, as `vit_small_patch16_224`, with the tag of the weights where there are several, as
    `vit_small_patch16_224.augreg_in1k`. Names that begin with an address, such as `hf-hub:`, are refused."""
    pretrained: bool = False
    """Whether the backbone starts from timm's own weights, which are downloaded once to each machine. Not together with
    `weights`."""

    @model_validator(mode="after")
    def _one_origin(self) -> "TimmConfig":
        if self.pretrained and self.weights is not None:
            raise ValueError(f"pretrained is true, but weights is {self.weights}; allowed: one of the two")
        if ":" in self.model or "/" in self.model:
            raise ValueError(f"model is {self.model!r}; allowed: a name of timm's own table, as vit_small_patch16_224")
        return self

    def has_weights(self) -> bool:
        """Whether the backbone starts from pre-trained weights."""
        return self.pretrained or self.weights is not None


class LinearConfig(ClassifierSettings):
    """No backbone: the head alone, on the numbers of an image or a feature vector as they are. For `data.source: features`, where
    a frozen backbone has computed the vectors already.
    """

    name: Literal["linear"] = "linear"
    """Name of the classifier."""


class MLPAdapterConfig(ClassifierSettings):
    """A residual bottleneck in front of the head, for `data.source: features`: features + up(ReLU(down(features))), as the
    adapters of Houlsby et al. (ICML 2019). `up` begins with zeros, so training starts as that of `linear`.
    """

    name: Literal["mlp_adapter"] = "mlp_adapter"
    """Name of the classifier."""
    bottleneck: int = Field(64, ge=1)
    """Width of the bottleneck."""


CLASSIFIER_SETTINGS: dict[str, type[ClassifierSettings]] = {
    "small_cnn": SmallCNNConfig,
    "resnet_cifar": ResNetCifarConfig,
    "resnet_cifar18": ResNetCifar18Config,
    "resnet": ResNetConfig,
    "torchvision": TorchvisionConfig,
    "timm": TimmConfig,
    "linear": LinearConfig,
    "mlp_adapter": MLPAdapterConfig,
}
"""The settings class of each classifier, by name. CLASSIFIERS in models/__init__.py has the function that builds each
classifier."""

ClassifierConfig = Annotated[ClassifierSettings, OneOf(CLASSIFIER_SETTINGS, "name")]
"""The settings of one classifier, chosen by name."""
