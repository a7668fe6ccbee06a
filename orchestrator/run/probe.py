"""Looks at a cluster from inside before a sweep begins there: does a worker see the images, the packages, and a GPU?"""

import platform
from collections.abc import Callable
from typing import Any

from orchestrator.cluster.placement import needs_of_worker
from orchestrator.config.sweep_config import SweepConfig
from orchestrator.run.remote_call import call_on_worker
from trainables.config import TrialConfig
from trainables.config_file import ConfigError
from trainables.data import build_data
from trainables.machine import gpu_problem
from trainables.program import CURE, differences, versions


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
    wants_gpu = bool(needs_of_worker(config).get("GPU"))
    there = call_on_worker(config, note, check, look, config.trial.model_dump(), wants_gpu)
    if different := differences(there["versions"]):
        raise ConfigError(
            f"the cluster's machine {there['host']} differs from this one: {different}; nothing was started; allowed: {CURE}"
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
    found: dict[str, Any] = {"versions": versions(), "host": platform.node(), "problem": "", "split_sha256": ""}
    config = TrialConfig.model_validate(trial)
    if wants_gpu and config.device != "cpu":
        found["problem"] = gpu_problem()
    try:
        found["split_sha256"] = build_data(config.data, config.seed).sha256
    except (ValueError, OSError) as error:
        found["problem"] = found["problem"] or f"trial.{error}"
    return found
