"""MFRW, meta feature re-weighting: an advisor network masks each sample's features, given the features and the sample's loss.

Source: Ricci et al., "Meta-learning Advisor Networks for Long-tail and Noisy Labels in Social Image Classification", ACM TOMM
2023. The mask is used in training only; evaluation uses the classifier without the mask.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.method_config import MFRWConfig
from trainables.methods.base import Head, Method, Task


class MFRW(Method):
    """Masks features f: the head sees f * W with W = Psi(f, CE; theta) in (0, 1)^D. Theta acts on features, not on the loss."""

    def __init__(self, config: MFRWConfig, task: Task) -> None:
        super().__init__()
        self.detach_inputs = config.detach_inputs
        self.meta_lr = config.meta_lr
        self.meta_optimizer = config.meta_optimizer
        self.embed_features = nn.Linear(task.num_features, config.hidden_width)
        self.embed_loss = nn.Linear(1, config.hidden_width)
        self.to_mask = nn.Linear(2 * config.hidden_width, task.num_features)

    def begin_batch(self, labels: Tensor, losses: Tensor) -> Tensor:
        """The embedded losses, (B, hidden_width), on theta's tape."""
        return F.relu(self.embed_loss(losses.unsqueeze(1)))

    def train_loss(self, head: Head, features: Tensor, labels: Tensor, state: Tensor) -> Tensor:
        """Mean cross-entropy of the masked features, ()."""
        return F.cross_entropy(head(self.mask(features, state) * features), labels)

    def mask(self, features: Tensor, embedded_losses: Tensor) -> Tensor:
        """W, (B, D) in (0, 1)."""
        # With detached inputs phi's gradient flows through the product f * W only, not through the mask W.
        seen = features.detach() if self.detach_inputs else features
        both = torch.cat([F.relu(self.embed_features(seen)), embedded_losses], dim=1)
        return torch.sigmoid(self.to_mask(both))
