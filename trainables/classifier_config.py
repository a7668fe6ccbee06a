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
        return type(self).__module__ == __name__ and getattr(self, "weights", None) is None

    def backbone(self) -> dict[str, Any]:
        """The settings that decide the backbone's architecture, without those of the head and of the weights' values."""
        return self.model_dump(exclude={"head", "scale", "weights"})


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


class ResNetConfig(ClassifierSettings):
    """torchvision's ResNet (He et al., 2016) for images of about 224 pixels, with the stride in the 3x3 convolutions."""

    takes_vectors = False
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
    "linear": LinearConfig,
    "mlp_adapter": MLPAdapterConfig,
}
"""The settings class of each classifier, by name. CLASSIFIERS in models/__init__.py has the function that builds each
classifier."""

ClassifierConfig = Annotated[ClassifierSettings, OneOf(CLASSIFIER_SETTINGS, "name")]
"""The settings of one classifier, chosen by name."""
