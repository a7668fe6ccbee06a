"""Refuses what cannot run, before anything starts: the folder, the data, the machine."""

import os
import shutil
import tempfile
from pathlib import Path

from orchestrator.config import SweepConfig, read_sweep
from orchestrator.ledger import LEDGER, read_ledger
from orchestrator.slots import arrange, needs_of_worker, this_machine
from trainables.config_file import ConfigError, Origin
from trainables.data import LongTailedData, build_data
from trainables.data.inspection import check_images
from trainables.data.profiles import check_selection
from trainables.machine import choose_device
from trainables.settings import flatten

MIN_FREE_BYTES = 500 * 2**20
"""Below this, a sweep would fill the disk half way."""


def check_data(config: SweepConfig, origin: Origin) -> LongTailedData:
    """Builds the split once, and looks at its images.

    Raises:
        ConfigError: when the source cannot give what `trial.data` asks for, `trial.select_by` averages over nothing, or an image
            is missing or cannot be read.
    """
    try:
        data = build_data(config.trial.data, config.trial.seed)
        check_selection(config.trial.select_by, data.class_counts)
        check_images(config.trial.data, data)
    except ValueError as error:
        raise _refusal(f"trial.{error}", origin) from error
    return data


def check_weights(config: SweepConfig, data: LongTailedData, origin: Origin) -> None:
    """Loads the backbone's pre-trained weights once, if there are any.

    Raises:
        ConfigError: when their file is not there, cannot be read, or belongs to another backbone.
    """
    trial = config.trial
    if getattr(trial.classifier, "weights", None) is None:
        return
    from trainables.models import build_classifier  # takes seconds

    try:
        build_classifier(trial.classifier, (data.num_channels(trial.data), 32, 32), len(data.class_names), trial.seed)
    except ValueError as error:
        raise _refusal(f"trial.{error}", origin) from error


def check_machine(config: SweepConfig, origin: Origin) -> list[str]:
    """What this machine will do more slowly than the settings say.

    Raises:
        ConfigError: when not even one trial fits.
    """
    here, threads, resources = this_machine(config), config.trial.threads, config.resources
    cores = int(here["CPU"])
    if threads > cores:
        raise _refusal(f"trial.threads is {threads}, but this machine has {cores} cores; allowed: 1 to {cores}", origin)
    if config.trial.device == "cuda" or resources.gpus_per_worker > 0:
        check_gpu(config, origin)
    plan = arrange(config, [here])
    workers = "1 worker" if plan.workers == 1 else f"{plan.workers} workers"
    each = " and ".join(f"{count:g} {kind}" for kind, count in needs_of_worker(config).items())
    if plan.workers > plan.fitting:
        raise _refusal(
            f"resources.workers is {resources.workers}, but this machine holds {plan.fitting} with {each} each; allowed: "
            f"{f'at most {plan.fitting}, or ' if plan.fitting else ''}less for each (resources.cpus_per_worker)",
            origin,
        )
    if resources.slots and plan.slots < resources.slots:
        raise _refusal(
            f"resources.slots is {resources.slots}, but this machine holds {plan.slots} of {workers} with {each} each; allowed: "
            f"1 to {plan.slots}",
            origin,
        )
    notes = []
    if plan.slots < min(resources.max_concurrent, config.search.trials):
        trials = "1 trial" if plan.slots == 1 else f"{plan.slots} trials"
        notes.append(
            f"resources.max_concurrent is {resources.max_concurrent}, but this machine holds {trials} of {workers} with {each} "
            "each at a time; the others wait"
        )
    readers, running = config.trial.compute.readers if config.trial.data.streamed() else 0, plan.slots * plan.workers
    if readers and (threads + readers) * running > cores:
        notes.append(
            f"trial.compute.readers is {readers} and trial.threads {threads}: {cores} cores are too few for {running} such "
            "workers at a time to read and train at full speed"
        )
    return notes


def check_gpu(config: SweepConfig, origin: Origin) -> None:
    """Sees that there is a GPU when one is asked for.

    Raises:
        ConfigError: when there is none.
    """
    try:
        choose_device("cuda")
    except ValueError as error:
        asked = f"resources.gpus_per_worker is {config.resources.gpus_per_worker:g}, but torch sees no GPU here; allowed: 0"
        raise _refusal(f"trial.{error}" if config.trial.device == "cuda" else asked, origin) from error


def _refusal(message: str, origin: Origin) -> ConfigError:
    return ConfigError(f"{origin.of(message)}: {message}")


def check_folder(folder: Path, config: SweepConfig) -> bool:
    """Whether `folder` already holds this very sweep, ended; False when it is free to use.

    Raises:
        ConfigError: when it holds anything else, or cannot be written.
    """
    check_space_for(folder)
    if not folder.exists() or not any(folder.iterdir()):
        return False
    if not (folder / LEDGER).exists() or not (folder / "sweep.yaml").exists():
        raise ConfigError(f"{folder} holds files that are no sweep; choose another --name")
    theirs, ours = flatten(read_sweep(folder / "sweep.yaml").model_dump()), flatten(config.model_dump())
    if differing := sorted(key for key in theirs.keys() | ours.keys() if theirs.get(key) != ours.get(key)):
        key = differing[0]
        more = f" and {len(differing) - 1} more" if len(differing) > 1 else ""
        there, here = theirs.get(key), ours.get(key)
        raise ConfigError(
            f"{folder} already holds a sweep of another configuration: {key} is {there!r} there and {here!r} here{more}; "
            "nothing was changed; choose another --name"
        )
    if not any(event["event"] == "sweep_end" and event["status"] != "interrupted" for event in read_ledger(folder)):
        raise ConfigError(
            f"{folder} holds this very sweep, unfinished; resuming comes with a later version; nothing was changed; "
            "choose another --name"
        )
    return True


def claim_folder(folder: Path) -> None:
    """Makes the sweep's folder, which another process may have done since it was checked.

    Raises:
        ConfigError: when it did.
    """
    try:
        folder.mkdir(parents=True)
    except FileExistsError as error:
        if any(folder.iterdir()):
            raise ConfigError(f"{folder} was taken by another process meanwhile; choose another --name") from error


def check_space_for(folder: Path) -> int:
    """Sees that `folder` can be made or written, and leaves nothing behind; returns the free bytes there.

    Raises:
        ConfigError: naming the place that cannot be written, or that is almost full.
    """
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    try:
        os.rmdir(tempfile.mkdtemp(dir=existing))  # asking for permissions is not enough: root has them on read-only places too
    except OSError as error:
        raise ConfigError(f"{folder}: cannot write to {existing} ({error.strerror}); choose another --results folder") from error
    free = shutil.disk_usage(existing).free
    if free < MIN_FREE_BYTES:
        raise ConfigError(f"{folder}: {free // 2**20} MiB free on this disk; a sweep needs {MIN_FREE_BYTES // 2**20} MiB")
    return free
