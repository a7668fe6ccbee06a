"""The interface of every classifier."""

from torch import Tensor, nn

from trainables.data.loader import Normalisation


class Classifier(nn.Module):
    """A backbone and a head; methods may act between them. `num_features` is D, the length of a feature vector."""

    def __init__(self, backbone: nn.Module, head: nn.Module, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features
        self.backbone = backbone
        self.head = head
        self.adjustment: nn.Module | None = None
        """Logits (B, num_classes) -> the logits that predictions are made from, in exported models; see Method.predict."""
        self.normalisation: Normalisation | None = None
        """What frozen weights expect of the pixels, in `trainables.features`; None: what the source's sets have in a trial."""

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, C, H, W)."""
        logits: Tensor = self.head(self.backbone(images))
        return logits if self.adjustment is None else self.adjustment(logits)
