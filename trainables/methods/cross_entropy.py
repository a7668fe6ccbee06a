"""Plain cross-entropy, the baseline without theta."""

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from trainables.method_config import CrossEntropyConfig
from trainables.methods.base import Head, Method, Task


class CrossEntropy(Method):
    """Cross-entropy with equal weights for all images."""

    def __init__(self, config: CrossEntropyConfig, task: Task) -> None:
        super().__init__()

    def train_loss(self, head: Head, features: Tensor, labels: Tensor, state: Any) -> Tensor:
        """Mean cross-entropy, ()."""
        return F.cross_entropy(head(features), labels)
