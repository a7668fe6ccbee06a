"""Checks the folder, the data and the machine, and refuses a sweep that cannot run, before anything starts."""

import math
import os
import shlex
import shutil
import tempfile
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.cluster.cluster_checks import faults_of
from orchestrator.cluster.cluster_file import Cluster
from orchestrator.cluster.placement import arrange, in_words, needs_of_worker, this_machine
from orchestrator.config.sweep_config import SweepConfig
from orchestrator.ledger.events import Event, Kind
from orchestrator.ledger.ledger import LEDGER, last, may_precede, read_ledger, start_of
from trainables.classifier_config import BackboneSettings, ClassifierSettings, ResNetConfig
from trainables.config import ROUNDING, UNDECIDING, TrialConfig
from trainables.config_file import ConfigError, Origin, check
from trainables.data import LongTailedData, build_data
from trainables.data.inspection import check_images
from trainables.data.profiles import check_selection
from trainables.files import shown
from trainables.fusion import why_alone
from trainables.machine import choose_device, gpu_names, num_gpus, ray_folder
from trainables.settings import differences
from trainables.shown_commands import shown_command
from trainables.words import plural

if TYPE_CHECKING:
    from trainables.models import Classifier

CONFIGURED = (Kind.SWEEP_START, Kind.SWEEP_RESUME)
"""Kinds of events that hold the sweep's configuration."""
WIDTHS = ("resources.max_concurrent", "resources.slots", "resources.fused")
"""Settings that decide how wide the waves of a deterministic sweep are, and so its decisions, if `search.wave` does not."""
MOST_INITIAL = 0.05
"""The largest share of the initial parameters in an average at the end of the first stage that is not worth a note."""
MIN_FREE_BYTES = 500 * 2**20
"""With less free space, a sweep would fill the disk before it ends."""


def check_data(config: SweepConfig, origin: Origin) -> LongTailedData:
    """Builds the split once and checks its images.

    Raises:
        ConfigError: when the source cannot give what `trial.data` asks for, `trial.select_by` averages over no class, or an image
            is missing or cannot be read.
    """
    data = _check_data_of(config.trial, "trial", origin)
    if config.ablation:
        checked = [config.trial.data]
        for cell, trial in config.trials_of_cells().items():
            if trial.data not in checked:
                _check_data_of(trial, f"ablation, variant {cell}: trial", origin)
                checked.append(trial.data)
    return data


def _check_data_of(trial: TrialConfig, where: str, origin: Origin) -> LongTailedData:
    try:
        data = build_data(trial.data, trial.seed)
        check_selection(trial.select_by, data.selecting_counts)
        check_images(trial.data, data)
    except ValueError as error:
        raise _refusal(f"{where}.{error}", origin) from error
    return data


def check_weights(config: SweepConfig, data: LongTailedData, origin: Origin) -> None:
    """Builds each classifier once whose backbone may have pre-trained weights, with these weights, or that is a plug-in.

    Raises:
        ConfigError: when the weights are missing, cannot be read, or belong to another backbone, when the backbone cannot have
            such images or cannot be differentiated as a trial wants it, or when a package is missing.
    """
    trials, checked = config.kinds_of_classifiers(), []
    for where, trial in trials.items():
        kind = trial.classifier, trial.data
        if kind in checked or not _may_not_fit(trial.classifier):
            continue
        checked.append(kind)
        place = "trial" if trial.classifier == config.trial.classifier else where
        if classifier := _built(trial, data, place, origin):
            alike = {name: other for name, other in trials.items() if (other.classifier, other.data) == kind}
            _check_derivatives(alike, classifier, data, origin)


def _may_not_fit(classifier: ClassifierSettings) -> bool:
    """Whether building a classifier may fail. The networks that are trained from scratch take all images."""
    if isinstance(classifier, ResNetConfig):
        return classifier.weights is not None or classifier.train != "all"
    return isinstance(classifier, BackboneSettings) or _is_plug_in(classifier)


def _is_plug_in(classifier: ClassifierSettings) -> bool:
    return type(classifier).__module__ != ClassifierSettings.__module__


def _built(trial: TrialConfig, data: LongTailedData, where: str, origin: Origin) -> "Classifier | None":
    """The classifier of a trial; None when it is a plug-in that cannot be built on this machine."""
    from trainables.models import build_classifier  # here, because the import takes seconds

    try:
        return build_classifier(trial.classifier, data.image_shape(trial.data), len(data.class_names), trial.seed)
    except ValueError as error:
        raise _refusal(f"{where}.{error}", origin) from error
    except Exception:
        if _is_plug_in(trial.classifier):  # what its program lacks here, the machines of the trials may have
            return None
        raise


def _check_derivatives(alike: dict[str, TrialConfig], classifier: "Classifier", data: LongTailedData, origin: Origin) -> None:
    """Refuses a backbone without forward mode if any of the trials that have it needs forward mode."""
    from trainables.engine.linearize import check_forward_mode  # here, because the imports take seconds
    from trainables.traced_backbone import needs_forward_mode

    for where, trial in alike.items():
        if needs_forward_mode(trial, classifier, data):
            try:
                check_forward_mode(classifier.backbone, data.image_shape(trial.data))
            except ValueError as error:
                raise _refusal(f"{where}.classifier.name is {trial.classifier.name}: {error}", origin) from error
            return


def check_machine(config: SweepConfig, origin: Origin) -> list[str]:
    """Checks that the sweep fits this machine.

    Returns: notes on what will run more slowly than the settings say.

    Raises:
        ConfigError: when Ray cannot start here, when not even one trial fits, when `resources.slots` trials do not fit, or when
            the settings ask for a GPU and there is none.
    """
    check_surroundings()
    here, threads, resources = this_machine(config), config.trial.threads, config.resources
    cores = int(here["CPU"])
    if threads > cores:
        raise _refusal(f"trial.threads is {threads}, but this machine has {plural(cores, 'core')}; allowed: 1 to {cores}", origin)
    if config.trial.device == "cuda" or resources.gpus_per_worker > 0:
        check_gpu(config, origin)
    plan = arrange(config, [here])
    workers = plural(plan.workers, "worker")
    each = in_words(needs_of_worker(config))
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
    notes = unused_gpus(config) + alone_despite_fused(config)
    if resources.max_concurrent and plan.slots < min(resources.max_concurrent, config.num_trials()):
        trials = plural(plan.slots, "trial")
        notes.append(
            f"resources.max_concurrent is {resources.max_concurrent}, but this machine holds {trials} of {workers} with {each} "
            "each at a time; the others wait"
        )
    readers, running = config.trial.compute.readers if config.trial.data.streamed() else 0, plan.slots * plan.workers
    if readers and (threads + readers) * running > cores:
        notes.append(
            f"trial.compute.readers is {readers} and trial.threads {threads}: {plural(cores, 'core')} "
            f"{'is' if cores == 1 else 'are'} too few for {plural(running, 'such worker')} at a time to read and train at full "
            "speed"
        )
    return notes


def alone_despite_fused(config: SweepConfig) -> list[str]:
    """A note on the trials that no process can train together with others, if some are to be."""
    if config.resources.fused == 1:
        return []
    reasons = dict.fromkeys(reason.split(";")[0] for trial in config.kinds_of_trials() if (reason := why_alone(trial)))
    told = f"resources.fused is {config.resources.fused}, but some trials train alone, because {', '.join(reasons)}"
    return [told] if reasons else []


def check_place(config: SweepConfig, origin: Origin, cluster: Cluster | None) -> list[str]:
    """Checks that the sweep fits where it is to run: see `check_machine` and `check_cluster`."""
    notes = check_machine(config, origin) if cluster is None else check_cluster(config, origin, cluster)
    return notes + bf16_without_gpu(config)


def bf16_without_gpu(config: SweepConfig) -> list[str]:
    """A note, if trials without a GPU compute in bf16."""
    if config.resources.gpus_per_worker > 0 or all(trial.compute.precision != "bf16" for trial in config.kinds_of_trials()):
        return []
    return [
        "trial.compute.precision is bf16, but trials have no GPU (resources.gpus_per_worker is 0): without instructions for bf16 "
        "a CPU is several times slower than with float32, and the numbers are less exact; trial.compute.precision=float32 or "
        "resources.gpus_per_worker=1 avoids that"
    ]


def young_averages(config: SweepConfig, data: LongTailedData) -> list[str]:
    """Notes on averages of the parameters that still consist of the initial ones for a good part when their stage ends."""
    notes = []
    for trial in config.kinds_of_trials():
        if trial.optim.ema is None or trial.data != config.trial.data:
            continue
        steps = math.ceil(len(data.train) / trial.optim.batch_size) * len(trial.stage_epochs()[0])
        if (share := trial.optim.ema**steps) > MOST_INITIAL:
            notes.append(
                f"trial.optim.ema is {trial.optim.ema:g}, but the first stage has only {plural(steps, 'step')}: at its end "
                f"{share:.0%} of the average are the initial parameters; at most {MOST_INITIAL:.0%} with a decay of "
                f"{math.floor(MOST_INITIAL ** (1 / steps) * 1e4) / 1e4:g}"
            )
    return list(dict.fromkeys(notes))


def check_cluster(config: SweepConfig, origin: Origin, cluster: Cluster) -> list[str]:
    """Checks that the sweep fits the machines that may come, without asking for one.

    Returns: notes on what will run more slowly than the settings say.

    Raises:
        ConfigError: naming every fault of the cluster's file and of the two together.
    """
    if cluster.file is None:
        return []
    if faults := faults_of(cluster.file, config, origin.file):
        raise ConfigError("\n  ".join(["this sweep cannot run on this cluster; nothing was started", *map(str, faults)]))
    plan, wanted = arrange(config, cluster.file.machines(needs_of_worker(config))), config.resources.max_concurrent
    if wanted and plan.slots < min(wanted, config.num_trials()):
        held = f"{cluster.file.path} allows machines for {plural(plan.slots, 'trial')} at a time"
        return [f"resources.max_concurrent is {wanted}, but {held}; the others wait"]
    return []


def check_surroundings() -> None:
    """Checks what Ray needs of the environment: a home folder, a working folder whose name is UTF-8, and a temporary folder with
    a short name.

    Raises:
        ConfigError: naming what is missing, with the cure.
    """
    if os.path.expanduser("~") == "~":
        raise ConfigError(
            "HOME is not set, and this user has no home folder of its own; Ray needs one; nothing was started; set it to a "
            "folder that can be written: HOME=/tmp"
        )
    _check_name(Path.cwd(), "the folder in which this command runs", "run it in another folder")
    try:
        ray_folder()
    except ValueError as error:
        raise ConfigError(f"{error}; nothing was started") from error


def _check_name(folder: Path, what: str, cure: str) -> None:
    """Raises ConfigError when Ray, MLflow and web pages, which know UTF-8 only, cannot name a folder."""
    try:
        str(folder).encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{what} is {shown(folder)}, a name that is not UTF-8; nothing was started; {cure}") from error


def unused_gpus(config: SweepConfig) -> list[str]:
    """A note, if torch sees GPUs and no trial uses one."""
    if config.resources.gpus_per_worker > 0 or config.trial.device == "cpu" or not gpu_names():  # torch takes seconds to load
        return []
    number = num_gpus()
    return [f"torch sees {plural(number, 'GPU')} that no trial uses: resources.gpus_per_worker=1"] if number else []


def check_gpu(config: SweepConfig, origin: Origin) -> None:
    """Checks that torch sees a GPU. Called when the settings ask for one.

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


class Found(Enum):
    """What a results folder holds."""

    NOTHING = "nothing"
    UNFINISHED = "a sweep that can go on"
    COMPLETE = "a sweep that has nothing left to do"


def check_folder(folder: Path, config: SweepConfig, resume: bool = False) -> Found:
    """Checks that the sweep can begin or be resumed in a results folder, and returns what the folder holds.

    Args:
        folder: results folder; need not exist.
        config: of the sweep.
        resume: whether the user asked for a resumption.

    Raises:
        ConfigError: when the folder cannot be written, has a name that is not UTF-8, holds anything but this sweep, or does not
            fit `resume`.
    """
    _check_name(folder.absolute(), "the results folder", "choose another --results or --name")
    check_space_for(folder)
    if is_unbegun(folder):
        if resume:
            raise ConfigError(f"{folder} holds no sweep that could go on; leave --resume out to begin one")
        return Found.NOTHING
    if not _has_a_line(folder / LEDGER) or not (folder / "sweep.yaml").exists():
        raise ConfigError(f"{folder} holds files that are no sweep; choose another --name")
    events = read_ledger(folder)
    theirs, ours = check(SweepConfig, last(events, *CONFIGURED)["config"], Origin(str(folder / LEDGER))), config
    pairs = differences(theirs.model_dump(), ours.model_dump(), absent="absent")
    differing = {key: f"{key}: {there!r} there, {here!r} here" for key, (there, here) in pairs.items()}
    fixed = [line for key, line in differing.items() if not may_change(key, ours)]
    if fixed and resume:
        raise ConfigError(
            f"{folder} was begun with another configuration; nothing was changed; go on without these changes, or begin a new "
            f"sweep that learns from this one: --name NEW --warm-start {shlex.quote(str(folder))}\n  " + "\n  ".join(fixed)
        )
    if differing and not resume:
        how = "choose another --name" if fixed else "choose another --name, or go on with --resume"
        raise ConfigError(
            f"{folder} already holds a sweep of another configuration; nothing was changed; {how}\n  "
            + "\n  ".join(differing.values())
        )
    check_trials(folder, theirs, ours)
    if is_complete(events, theirs, ours):
        return Found.COMPLETE
    if not resume:
        raise ConfigError(f"{folder} holds this very sweep, unfinished; nothing was changed; go on with --resume")
    return Found.UNFINISHED


def is_unbegun(folder: Path) -> bool:
    """Whether a folder does not exist, is empty, or holds only what a sweep leaves when killed before its first event."""
    if not folder.exists():
        return True
    if not all(may_precede(path.name) for path in folder.iterdir()):
        return False
    return not _has_a_line(folder / LEDGER)


def _has_a_line(ledger: Path) -> bool:
    """Whether a ledger holds an event; a kill may leave a part of the first line."""
    return ledger.exists() and b"\n" in ledger.read_bytes()


def may_change(key: str, config: SweepConfig) -> bool:
    """Whether a resumed sweep may change a setting.

    Settings of how much is done, and of what computes the trials, may change. Settings that affect their comparison may not.
    """
    if config.search.deterministic and config.search.wave is None and key in WIDTHS:
        return False
    if key.startswith("trial."):
        return key.removeprefix("trial.") in UNDECIDING | ROUNDING
    return key in ("search.trials", "search.per_method", "ablation.seeds") or key.startswith(
        ("search.confirm", "budget.", "failures.", "resources.", "tracking.", "checkpoint")
    )


def check_trials(folder: Path, there: SweepConfig, here: SweepConfig) -> None:
    """Checks that a resumed sweep does not get fewer trials, and that a population keeps its size.

    Raises:
        ConfigError: naming both numbers.
    """
    if there.ablation and here.ablation:
        had, wanted = there.ablation.seeds_from(there.trial.seed), here.ablation.seeds_from(here.trial.seed)
        if wanted[: len(had)] != had:
            raise ConfigError(f"{folder} was begun with the seeds {had}, now they are {wanted}; allowed: these, and further ones")
    name = "search.trials" if there.search.per_method is None else "search.per_method"
    before, now = there.search.num_proposed(), here.search.num_proposed()
    if (there.search.per_method is None) != (here.search.per_method is None):
        raise ConfigError(
            f"{folder} was begun with search.per_method={there.search.per_method}, now it is {here.search.per_method}; allowed: "
            f"{'null' if there.search.per_method is None else 'a number'}"
        )
    if now < before or (now > before and here.scheduler.name == "pbt"):
        allowed = f"{before}" if here.scheduler.name == "pbt" else f"at least {before}"
        raise ConfigError(f"{folder} was begun with {name}={before}, now it is {now}; allowed: {allowed}")


def is_complete(events: Sequence[Event], there: SweepConfig, here: SweepConfig) -> bool:
    """Whether a sweep that last ran with settings `there` has nothing left to do with settings `here`, export included."""
    if not last(events, Kind.SWEEP_END, Kind.TRIAL_START, *CONFIGURED).get("complete", False):
        return False
    amounts = [(one.ablation and one.ablation.seeds, one.search.num_proposed(), one.search.confirm) for one in (there, here)]
    return amounts[0] == amounts[1]


def check_split(events: Sequence[Event], data: LongTailedData, folder: Path) -> None:
    """Checks that a resumed sweep has the same images and labels as at its start.

    Raises:
        ConfigError: when the images or labels have changed.
    """
    began_with = start_of(events)["split_sha256"]
    if began_with != data.sha256:
        raise ConfigError(
            f"{folder}: the images or labels have changed since the sweep began (split sha256 {began_with} there, "
            f"{data.sha256} here); nothing was changed; bring the images back as they were, or begin anew with those of now: "
            + shown_command("orchestrator.sweep", shlex.quote(str(folder / "sweep.yaml")), f"--name {folder.name}_2")
        )


def check_space_for(folder: Path) -> int:
    """Checks that `folder` can be created or written. The check leaves no file behind.

    Returns: free bytes on the disk of the folder.

    Raises:
        ConfigError: naming the folder that cannot be written, or the disk that is almost full.
    """
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if os.path.exists(parent))
    check_names(folder, existing)
    try:
        os.rmdir(tempfile.mkdtemp(dir=existing))  # permissions say too little: root has them on read-only file systems too
    except OSError as error:
        raise ConfigError(f"{folder}: cannot write to {existing} ({error.strerror}); choose another --results folder") from error
    free = shutil.disk_usage(existing).free
    if free < MIN_FREE_BYTES:
        raise ConfigError(f"{folder}: {free // 2**20} MiB free on this disk; a sweep needs {MIN_FREE_BYTES // 2**20} MiB")
    return free


def check_names(folder: Path, existing: Path) -> None:
    """Checks that the file system takes the names of the folders below `existing` that would be created.

    Raises:
        ConfigError: naming the one that is too long, and the limit.
    """
    longest = os.pathconf(existing, "PC_NAME_MAX")
    for name in folder.absolute().relative_to(existing).parts:
        if (length := len(os.fsencode(name))) > longest:
            raise ConfigError(
                f"{name[:20]}... is a name of {length} bytes; allowed: at most {longest}, the limit of this file system; choose "
                "another --results folder or --name"
            )
