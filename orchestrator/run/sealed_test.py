"""Reads the sealed test set on a machine of the cluster, where the GPU is: the head, which exports, may have none."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from orchestrator.config.sweep_config import SweepConfig
from orchestrator.run.remote_call import call_on_worker


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
