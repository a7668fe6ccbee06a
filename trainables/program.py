"""What must be the same on all machines that compute one sweep: Python, packages, and the files of this program."""

import functools
import hashlib
import platform
from importlib.metadata import version
from pathlib import Path

PACKAGES = ("tailtune", "ray", "optuna", "mlflow", "torch", "torchvision", "numpy", "pyarrow")
CURE = "the same on all machines. Set the cluster up anew from one folder: ray up, or pip install from requirements.lock"


@functools.cache
def versions() -> dict[str, str]:
    """The version of Python and of each package, and `program`, the digest of this program's files."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}, "program": program_digest()}


def program_digest() -> str:
    """The first digits of a SHA-256 over the files of this program."""
    root, digest = Path(__file__).parents[1], hashlib.sha256()
    for room in ("orchestrator", "trainables"):
        for file in sorted((root / room).rglob("*.py")):
            digest.update(f"{file.relative_to(root)}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def differences(there: dict[str, str]) -> str:
    """In what another machine differs from this one, in words; empty when in nothing."""
    return ", ".join(
        f"{name} {there.get(name)} there, {here} here" for name, here in versions().items() if there.get(name) != here
    )
