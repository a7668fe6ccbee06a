"""Mixed training images (mixup, Remix): each image of a batch is blended with another one of the batch, and so are their labels.

Sources: Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018; Chou et al., "Remix: Rebalanced Mixup", ECCV
workshops 2020. Both use one blend weight lam for a whole batch, and a random permutation of the batch as partners.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from trainables.data_config import LongTailConfig
from trainables.registry import lookup


class Mixture(NamedTuple):
    """How the R rows of one batch are mixed."""

    partners: Tensor
    """The row that each row is blended with, (R,)."""
    lam: float
    """Weight of a row's own image, in [0, 1]; the partner's image has 1 - lam."""
    label_weight: Tensor
    """Weight of a row's own label, (R,) float32 in [0, 1]; the partner's label has the rest."""

    def blend(self, own: Tensor, partners: Tensor) -> Tensor:
        """Mixed images from images (B, C, H, W) and their partners, normalised and augmented."""
        # Three operations instead of torch.lerp: each is rounded alone, so that an image is the same in any share of a batch.
        return (own * self.lam).add_(partners * (1 - self.lam))


@dataclass(frozen=True)
class Mixing:
    """Draws the mixtures of a trial.

    Args:
        config: the settings `mix`, `mix_alpha`, `remix_kappa` and `remix_tau`; `mix` is not `none`.
        class_sizes: training images of the class of each training image, (N,) float64, on the CPU.
    """

    config: LongTailConfig
    class_sizes: Tensor

    def draw(self, positions: Tensor, seed: int, views: int = 1) -> Mixture:
        """The mixture of a batch.

        Args:
            positions: of the images of one view in the training set, (B,).
            seed: draws lam and the partners.
            views: the batch has the images this many times, one view after another. Partners are of the same view.
        """
        rng = np.random.default_rng(seed)
        lam = float(rng.beta(self.config.mix_alpha, self.config.mix_alpha))
        permutation = torch.from_numpy(rng.permutation(len(positions)))
        own = self.class_sizes[positions]
        weight = lookup(LABEL_WEIGHTS, self.config.mix, "mix")(lam, own, own[permutation], self.config).float()
        rows = torch.cat([permutation + view * len(positions) for view in range(views)])
        return Mixture(rows, lam, weight.repeat(views))


def mixing(config: LongTailConfig, labels: Tensor) -> Mixing | None:
    """What draws the mixtures of a trial; None if its images are not mixed.

    Args:
        config: settings of the data.
        labels: of the training set, (N,), on the CPU, as the trainer sees them.
    """
    return None if config.mix == "none" else Mixing(config, torch.bincount(labels)[labels].double())


def mixup_weight(lam: float, own: Tensor, partners: Tensor, config: LongTailConfig) -> Tensor:
    """A label has the weight of its image."""
    return torch.full_like(own, lam)


def remix_weight(lam: float, own: Tensor, partners: Tensor, config: LongTailConfig) -> Tensor:
    """The label of a much rarer class has all the weight, as long as its image is not too faint: lambda_y of Remix.

    Args:
        lam: weight of the image.
        own: training images of the class of each image, (B,).
        partners: training images of the class of each partner, (B,).
        config: `remix_kappa`, how much rarer a class has to be, and `remix_tau`, which decides how faint its image may be.
    """
    weight, ratio = torch.full_like(own, lam), own / partners
    if 1 - lam < config.remix_tau:
        weight[ratio <= 1 / config.remix_kappa] = 1.0
    if lam < config.remix_tau:
        weight[ratio >= config.remix_kappa] = 0.0
    return weight


LABEL_WEIGHTS: dict[str, Callable[[float, Tensor, Tensor, LongTailConfig], Tensor]] = {
    "mixup": mixup_weight,
    "remix": remix_weight,
}
"""(lam, class sizes of the images (B,), class sizes of the partners (B,), settings) -> weights of the images' own labels (B,)."""
