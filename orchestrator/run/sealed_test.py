"""Looks at images with an exported model on a machine of the cluster, where the GPU is: the head, which exports, may have none.

The sealed test set is read, and the training images are judged.
"""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from orchestrator.config.sweep_config import SweepConfig
from orchestrator.run.remote_call import call_on_worker

if TYPE_CHECKING:
    from trainables.suspects import Suspects


def read_test_on_worker(config: SweepConfig, note: Callable[[str], None], model: Path) -> dict[str, float]:
    """Accuracy of an exported model on its sealed test set, as `read_test` gives it.

    Args:
        config: of the sweep.
        note: tells a person what is waited for.
        model: its file on this machine.

    Raises:
        CallLost: when one machine after the other was lost.
        ValueError: as `read_test`.
    """
    return call_on_worker(config, note, lambda: None, read_test_of, model.read_bytes())


def read_test_of(content: bytes) -> dict[str, float]:
    """Reads the test set there, for a model that has come as the content of its file."""
    from trainables.export_model import read_test

    with TemporaryDirectory(prefix="tailtune-") as folder:
        model = Path(folder) / "model.safetensors"
        model.write_bytes(content)
        return read_test(model)


def examine_on_worker(config: SweepConfig, note: Callable[[str], None], model: Path, best: bytes | None) -> "Suspects":
    """The training images as an exported model judges them.

    Args:
        config: of the sweep.
        note: tells a person what is waited for.
        model: its file on this machine.
        best: its epoch and theta, packed; None for no weights.

    Raises:
        CallLost: when one machine after the other was lost.
        ValueError: as `trainables.suspects.examine`.
    """
    return call_on_worker(config, note, lambda: None, examine_of, model.read_bytes(), best)


def examine_of(content: bytes, best: bytes | None) -> "Suspects":
    """Judges the images there, with a model that has come as the content of its file."""
    from trainables.suspects import examine

    with TemporaryDirectory(prefix="tailtune-") as folder:
        model = Path(folder) / "model.safetensors"
        model.write_bytes(content)
        return examine(model, best)
