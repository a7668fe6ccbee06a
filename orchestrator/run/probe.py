"""Looks at a cluster from inside before a sweep begins there: does a worker see the images, the packages, and a GPU?"""

import hashlib
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ray

from orchestrator.cluster.autoscaler import doings
from orchestrator.cluster.placement import in_words, needs_of_worker
from orchestrator.config.sweep_config import SweepConfig
from orchestrator.run.facts import PACKAGES
from orchestrator.run.supervisor import SILENT_S
from trainables.config import TrialConfig
from trainables.config_file import ConfigError
from trainables.data import build_data
from trainables.machine import gpu_problem

POLL_S = 0.5


def check_worker(config: SweepConfig, split_sha256: str, note: Callable[[str], None], check: Callable[[], None]) -> None:
    """Waits for a machine that trials would run on, and compares it with this one.

    Args:
        config: of the sweep.
        split_sha256: digest of the images and labels as this machine sees them.
        note: tells a person.
        check: called twice a second while waiting; may raise.

    Raises:
        ConfigError: when the machine has other versions or another program, sees other images, or torch finds no GPU there.
    """
    needs = needs_of_worker(config)
    looking = ray.remote(look).options(num_cpus=needs["CPU"], num_gpus=needs.get("GPU", 0), max_retries=3)
    reference, told, since = looking.remote(config.trial.model_dump(), bool(needs.get("GPU"))), "", time.monotonic()
    while not ray.wait([reference], timeout=POLL_S)[0]:
        check()
        if time.monotonic() - since > SILENT_S and (text := f"waiting for a machine with {in_words(needs)} ({doings()})") != told:
            note(text)
            told = text
    there, here = ray.get(reference), versions()
    if different := [f"{name} {there.get(name)} there, {here[name]} here" for name in here if there.get(name) != here[name]]:
        raise ConfigError(
            f"the cluster's machine {there['host']} differs from this one: {', '.join(different)}; nothing was started; allowed: "
            "the same on all machines. Set the cluster up anew from one folder: ray up, or pip install from requirements.lock"
        )
    if there["problem"]:
        raise ConfigError(f"the cluster's machine {there['host']}: {there['problem']}; nothing was started")
    if there["split_sha256"] != split_sha256:
        raise ConfigError(
            f"trial.data: the cluster's machine {there['host']} sees other images or labels than this one (split sha256 "
            f"{there['split_sha256'][:12]} there, {split_sha256[:12]} here); nothing was started; allowed: the same files on all "
            "machines, as on a shared disk"
        )


def look(trial: dict[str, Any], wants_gpu: bool) -> dict[str, Any]:
    """What a machine has; runs there. `problem` is empty when a trial could run."""
    found: dict[str, Any] = {**versions(), "host": platform.node(), "problem": "", "split_sha256": ""}
    config = TrialConfig.model_validate(trial)
    if wants_gpu and config.device != "cpu":
        found["problem"] = gpu_problem()
    try:
        found["split_sha256"] = build_data(config.data, config.seed).sha256
    except (ValueError, OSError) as error:
        found["problem"] = found["problem"] or f"trial.{error}"
    return found


def versions() -> dict[str, str]:
    """What must be the same on all machines: Python, packages, and the files of this program."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}, "program": program_digest()}


def program_digest() -> str:
    """The first digits of a SHA-256 over the files of this program."""
    root, digest = Path(__file__).parents[2], hashlib.sha256()
    for room in ("orchestrator", "trainables"):
        for file in sorted((root / room).rglob("*.py")):
            digest.update(f"{file.relative_to(root)}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:12]
