"""What two trials have in common: digests of everything that is random about a trial, each of one thing.

Trials of an ablation are compared seed by seed. That is fair as far as they share what their settings do not touch: images,
initial weights, the order of the images, and the random part of augmentation. Equal digests prove it.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from trainables.data.loader import Request


class Pairing:
    """The digests of a trial so far, each the SHA-256 of one thing, in hexadecimal.

    Args:
        split: digest of the images and labels of all sets, LongTailedData.sha256.
        test: positions of the test images in the source, (N,) int64 as bytes.
        weights: initial weights of the classifier, by name.
    """

    def __init__(self, split: str, test: bytes, weights: Mapping[str, Tensor]) -> None:
        digest = hashlib.sha256()
        for name, tensor in weights.items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        self.digests = {
            "split": split,
            "test": hashlib.sha256(test).hexdigest(),
            "weights": digest.hexdigest(),
            "order": "",
            "augmentation": "",
        }

    def take(self, requests: Sequence[Request]) -> None:
        """Takes the training batches of an epoch: each digest goes on from that of the epochs before."""
        self._go_on("order", (request.positions.numpy().tobytes() for request in requests))
        self._go_on("augmentation", (repr(request.draws).encode() + _of_mixture(request) for request in requests))

    def _go_on(self, name: str, parts: Iterable[bytes]) -> None:
        digest = hashlib.sha256(self.digests[name].encode())
        for part in parts:
            digest.update(part)
        self.digests[name] = digest.hexdigest()


def _of_mixture(request: Request) -> bytes:
    if request.mixture is None:
        return b""
    return request.mixture.partners.numpy().tobytes() + repr(request.mixture.lam).encode()
