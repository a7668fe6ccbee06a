"""Prepares a sweep: checks everything that can be checked before anything starts."""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from orchestrator.cluster.cluster_file import Cluster
from orchestrator.config.sweep_config import SweepConfig
from orchestrator.copy.fetch import check_store
from orchestrator.copy.results_store import ResultsStore
from orchestrator.ledger.events import Event
from orchestrator.ledger.ledger import last, read_ledger
from orchestrator.run.preflight import (
    CONFIGURED,
    Found,
    check_data,
    check_folder,
    check_place,
    check_split,
    check_weights,
    young_averages,
)
from orchestrator.tracking.reachable import notes_on_credentials, tracking_notes
from trainables.config import ROUNDING
from trainables.config_file import ConfigError, Origin
from trainables.data import LongTailedData
from trainables.settings import differences

WORKING_DIR = "working_dir_files"
"""The folder below which Ray unpacks what `ray job submit --working-dir` sends."""
NOT_LEARNING = ("random", "qmc", "grid")
"""Samplers whose proposals do not depend on earlier results."""
Note = Callable[[str], None]
"""Tells a person something that the sweep goes on in spite of."""


class SweepRequest(NamedTuple):
    """What somebody asks for."""

    config: SweepConfig
    origin: Origin
    """Where the settings come from, for errors."""
    folder: Path
    """The results folder of the sweep."""
    resume: bool = False
    warm_start: Path | None = None
    """Results folder of an earlier sweep that the sampler is told of."""
    cluster: Cluster | None = None
    """Where the trials run; None means on this machine."""
    store: ResultsStore | None = None
    """Where the results are copied to; None means nowhere."""
    entered: float | None = None
    """When a person entered the command, in seconds since 1970; None when no person did."""

    def options(self) -> str:
        """What the command line says of where the trials run and the results are copied to, with a blank before each option."""
        words = []
        if self.cluster:
            words += ["--address", self.cluster.address]
            words += ["--cluster", str(self.cluster.file.path)] if self.cluster.file else []
        words += ["--results", self.store.above] if self.store else []
        return "".join(f" {shlex.quote(word)}" for word in words)


@dataclass(frozen=True)
class Prepared:
    """A sweep that can run."""

    request: SweepRequest
    data: LongTailedData
    warnings: list[str]
    """What this machine will do more slowly than the settings say."""
    earlier: list[dict[str, Any]] | None
    """Trials of the sweep that `request.warm_start` names."""
    is_mlflow_away: bool = False
    """Whether MLflow's server did not answer, or refused us, which `warnings` say."""


def prepare(request: SweepRequest, note: Note, phase: Note = lambda text: None) -> Prepared | None:
    """Checks folder, store, data, weights and machine. Starts nothing and writes nothing.

    Args:
        request: what somebody asks for.
        note: tells a person what the sweep goes on in spite of.
        phase: tells a person what is done now.

    Returns: the sweep; None when its folder holds this very sweep with nothing left to do.

    Raises:
        ConfigError: when the sweep cannot run.
    """
    config, origin = request.config, request.origin
    if check_folder(request.folder, config, request.resume) is Found.COMPLETE:
        return None
    if request.store:
        phase("looking at the store")
        check_store(request.store, request.folder, request.resume)
    elif WORKING_DIR in request.folder.absolute().parts:
        raise ConfigError(
            f"{request.folder} lies in the folder of a Ray job (--working-dir), which Ray removes after the job; nothing was "
            "started; allowed: a --results folder that stays, as ~/results, or an address, as s3://bucket/folder"
        )
    phase("reading the data")
    data = check_data(config, origin)
    if request.resume:
        past = read_ledger(request.folder)
        check_same_images(past, data, request)
        if changed := changed_rounding(past, config.model_dump()):
            note(changed)
    phase("checking the machine")
    check_weights(config, data, origin)
    earlier = read_warm_start(request.warm_start, config, note) if request.warm_start else None
    about_mlflow = tracking_notes(config.tracking)
    notes = check_place(config, origin, request.cluster) + young_averages(config, data)
    notes += about_mlflow + notes_on_credentials(config.tracking)
    return Prepared(request, data, notes, earlier, is_mlflow_away=bool(about_mlflow))


def check_same_images(past: Sequence[Event], data: LongTailedData, request: SweepRequest) -> None:
    """Checks that a resumed sweep has the images that it began with, from wherever it reads them now.

    Raises:
        ConfigError: when it has not; names `trial.data.root` if that has changed.
    """
    try:
        check_split(past, data, request.folder)
    except ConfigError as error:
        before, now = changes_since(past, request.config.model_dump()).get("data.root", (None, None))
        if before == now:
            raise
        raise ConfigError(
            f"{request.origin.of('trial.data.root')}: trial.data.root is {now!r}, where the images are not those that the sweep "
            f"began with in {before!r}; allowed: a folder with the same images; {error}"
        ) from error


def changed_rounding(past: Sequence[Event], config: dict[str, Any]) -> str | None:
    """Which settings a resumed sweep changes that decide how numbers are rounded, in words; None when it changes none."""
    changed = [
        f"trial.{key} was {then!r}, is {now!r}" for key, (then, now) in changes_since(past, config).items() if key in ROUNDING
    ]
    if not changed:
        return None
    return f"{'; '.join(changed)}: trials that go on no longer equal undisturbed ones bit for bit, only up to rounding"


def changes_since(past: Sequence[Event], config: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The trial settings that a resumed sweep changes, each with the value of the last process and the present one."""
    return differences(last(past, *CONFIGURED)["config"]["trial"], config["trial"])


def read_warm_start(source: Path, config: SweepConfig, note: Note) -> list[dict[str, Any]]:
    """The trials of an earlier sweep that the sampler can learn from; notes in what they differ from ours.

    Raises:
        ConfigError: when there are none, or the sweep measured something else.
    """
    from orchestrator.decide.warm_start import earlier_trials, other_settings  # importing Optuna takes a second

    events = read_ledger(source)
    trials = earlier_trials(source, events, config)
    if config.search.sampler in NOT_LEARNING:
        note(f"search.sampler is {config.search.sampler!r}, which does not learn: --warm-start changes nothing")
    elif config.search.sampler == "nsga2":
        note("search.sampler is 'nsga2', which learns from trials of its own: --warm-start changes nothing")
    if other := other_settings(events, config):
        note(f"the trials of {source} had other settings, so that their values may mislead: {'; '.join(other)}")
    return trials
