"""Prepares a sweep: checks everything that can be checked before anything starts."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from orchestrator.config.sweep_config import SweepConfig
from orchestrator.ledger.ledger import read_ledger
from orchestrator.run.preflight import Found, check_data, check_folder, check_machine, check_weights
from trainables.config_file import Origin
from trainables.data import LongTailedData

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


@dataclass(frozen=True)
class Prepared:
    """A sweep that can run."""

    request: SweepRequest
    data: LongTailedData
    warnings: list[str]
    """What this machine will do more slowly than the settings say."""
    earlier: list[dict[str, Any]] | None
    """Trials of the sweep that `request.warm_start` names."""


def prepare(request: SweepRequest, note: Note) -> Prepared | None:
    """Checks folder, data, weights and machine. Starts nothing and writes nothing.

    Returns: the sweep; None when its folder holds this very sweep with nothing left to do.

    Raises:
        ConfigError: when the sweep cannot run.
    """
    config, origin = request.config, request.origin
    if check_folder(request.folder, config, request.resume) is Found.COMPLETE:
        return None
    data = check_data(config, origin)
    check_weights(config, data, origin)
    earlier = read_warm_start(request.warm_start, config, note) if request.warm_start else None
    return Prepared(request, data, check_machine(config, origin), earlier)


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
