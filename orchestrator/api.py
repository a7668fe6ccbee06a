"""The door for Python: run a sweep from a script or a notebook, and look at its results.

    from orchestrator import Sweep, run_sweep

    sweep = run_sweep("search_spaces/digits_lt.yaml", ["search.trials=8"], results="results")
    sweep.trials.to_pandas().sort_values("best/val/acc", ascending=False)
    sweep.best.config, sweep.best.metrics["test"]["test/acc"], sweep.best.model
    Sweep.open("results/digits_lt").epochs          # the same later, without running anything

Importing this module loads neither torch nor Ray: a wrong setting is answered before.
"""

import json
import logging
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.config.sweep_config import SweepConfig, read_sweep
from orchestrator.ledger.events import Event, Kind, Status
from orchestrator.ledger.ledger import Listener, last, read_ledger
from orchestrator.parsers import typed_results
from orchestrator.request import read_place, read_request
from orchestrator.sweep import run_in_terminal
from trainables.command_line import typed_path
from trainables.config import TrialConfig
from trainables.config_file import ConfigError, read_settings

if TYPE_CHECKING:
    import pyarrow as pa

    from orchestrator.run.interrupts import Interrupts
    from orchestrator.run.prepare import SweepRequest

__all__ = ["Ablation", "Best", "ConfigError", "Sweep", "SweepFailed", "run_ablation", "run_sweep"]

log = logging.getLogger("tailtune")


class SweepFailed(RuntimeError):
    """The sweep ended as failed: no trial finished, too many failed, or the best one cannot be exported.

    Args:
        reason: a sentence.
        folder: results folder of the sweep; its ledger and tables hold what every trial did.
    """

    def __init__(self, reason: str, folder: Path) -> None:
        super().__init__(f"{reason} (results: {folder})")
        self.reason, self.folder = reason, folder


@dataclass(frozen=True)
class Best:
    """The exported best trial of a sweep."""

    config: TrialConfig
    """Its complete configuration."""
    metrics: dict[str, Any]
    """The content of metrics.json: `best` and `last` hold the metrics of the best and the last epoch, `test` those of the one
    reading of the test set, `references` the same of the reference trials. Accuracies are fractions in [0, 1]."""
    model: Path
    """The weights of the best epoch, a safetensors file."""


class Sweep:
    """The results of a sweep. Everything is read from its folder when it is asked for, also while the sweep runs.

    Args:
        folder: results folder of the sweep.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __repr__(self) -> str:
        """For instance `Sweep('results/digits_lt', finished)`."""
        return f"Sweep({str(self.folder)!r}, {self.status})"

    @classmethod
    def open(cls, folder: str | Path) -> "Sweep":
        """The sweep in a results folder.

        Raises:
            ConfigError: when the folder holds no sweep, or its ledger was changed after it was written.
        """
        place = typed_path(str(folder))
        read_ledger(place)
        return cls(place)

    @property
    def events(self) -> Sequence[Event]:
        """The ledger: everything that happened, in order, read from the file each time; the kinds are listed in
        orchestrator/ledger/events.py.
        """
        return read_ledger(self.folder)

    @property
    def status(self) -> Status:
        """`finished`, `failed` or `interrupted`; `running` when the sweep has not ended, or was killed."""
        return Status(last(self.events, Kind.SWEEP_END, Kind.SWEEP_START, Kind.SWEEP_RESUME).get("status", Status.RUNNING))

    @property
    def config(self) -> SweepConfig:
        """The settings of the sweep."""
        return read_sweep(self.folder / "sweep.yaml")

    @property
    def trials(self) -> "pa.Table":
        """A row per trial: trial_id, role, variant, seed, status, stop_reason, epochs, wall_s (seconds in a slot), parent_trial,
        parent_epoch, confirms, then `config/...`, `last/...` and `best/...` (metrics of the last and of the best epoch).
        """
        from orchestrator.ledger.parquet_files import table_of
        from orchestrator.outcome.tables import TRIAL_COLUMNS, trial_rows

        return table_of(trial_rows(self.events), TRIAL_COLUMNS)

    @property
    def epochs(self) -> "pa.Table":
        """A row per trial and epoch: trial_id, epoch, attempt, time (seconds since 1970), and every metric."""
        from orchestrator.ledger.parquet_files import table_of
        from orchestrator.outcome.tables import EPOCH_COLUMNS, epoch_rows

        return table_of(list(epoch_rows(self.events)), EPOCH_COLUMNS)

    @property
    def classes(self) -> "pa.Table":
        """A row per ended trial, epoch and class: accuracy (on val), meta_accuracy, difficulty, weight, train_count,
        clean_count.

        Raises:
            ConfigError: when a file was changed after it was written.
        """
        from orchestrator.ledger.class_arrays import read_class_arrays

        return read_class_arrays(self.folder, self.events)

    @property
    def best(self) -> Best | None:
        """The exported best trial; None before there is one."""
        folder = self.folder / "best"
        if not folder.is_dir():
            return None
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        return Best(read_settings(TrialConfig, folder / "config.yaml"), metrics, folder / "model.safetensors")


def run_sweep(
    sweep: str | Path | None = None,
    overrides: Sequence[str] = (),
    *,
    name: str | None = None,
    results: str | Path = "results",
    resume: bool = False,
    warm_start: str | Path | None = None,
    address: str | None = None,
    cluster: str | Path | None = None,
    quiet: bool | None = None,
) -> Sweep:
    """Runs a sweep to its end, as `python -m orchestrator.sweep` does, and returns its results.

    A sweep that is complete already is not run again: its results are returned. An interrupt (Ctrl-C, "interrupt kernel") saves
    the state and raises KeyboardInterrupt; the same call with `resume=True` goes on. Afterwards the caller's signal handlers are
    as before. May be called from any thread; outside the main thread Python delivers no interrupt.

    Args:
        sweep: the YAML file; None means the default sweep, or with `resume` the settings in the results folder.
        overrides: changes to the file, such as `"search.trials=8"`.
        name: of the sweep and of its results folder; None means the file's name.
        results: folder of all sweeps; or an address, as s3://bucket/folder, to which the folder `results` is copied.
        resume: goes on with a sweep that was interrupted or killed, or with more trials or another budget.
        warm_start: results folder of an earlier sweep whose trials the sampler is told.
        address: of a running Ray cluster, `auto` or HOST:PORT; None runs the trials on this machine.
        cluster: the cluster's file, which says how many machines may come; see `--cluster`.
        quiet: whether nothing is printed; notes go to the logger `tailtune`. None prints in a terminal and is quiet elsewhere.

    Raises:
        ConfigError: when the input is wrong. Nothing was started.
        SweepFailed: when the sweep ended as failed.
        KeyboardInterrupt: when it was interrupted; the state is saved.
    """
    request = read_request(
        None if sweep is None else typed_path(str(sweep)),
        overrides,
        name,
        typed_results(str(results)),
        resume,
        None if warm_start is None else typed_path(str(warm_start)),
    )
    found = Sweep(request.folder)
    _run(_at(request, address, cluster), quiet)
    if found.status == Status.FAILED or found.best is None:
        end = last(found.events, Kind.SWEEP_END)
        raise SweepFailed(end.get("reason") or "no trial finished whose model could be exported", request.folder)
    return found


class Ablation(Sweep):
    """The results of an ablation, read from its folder as those of a sweep; there is no best trial. One that repeats a search has
    no trials of its own either: `Sweep.open(ablation.folder / "search_0")` has those of the first search.
    """

    @property
    def table(self) -> "pa.Table":
        """A row for each variant and combination of the factors' levels: means, intervals, paired differences to the reference,
        p-values and verdict, as PairedRow names them; then `mean/...`, the means of other metrics. Scores are fractions.
        """
        from orchestrator.outcome.ablation import compared
        from orchestrator.outcome.ablation_files import as_table
        from orchestrator.outcome.searches import rows_of

        return as_table(compared(self.config, rows_of(self.folder, self.config, self.events)))


def run_ablation(
    plan: str | Path,
    overrides: Sequence[str] = (),
    *,
    name: str | None = None,
    results: str | Path = "results",
    resume: bool = False,
    address: str | None = None,
    cluster: str | Path | None = None,
    quiet: bool | None = None,
) -> Ablation:
    """Runs an ablation to its end, as `python -m orchestrator.ablate` does, and returns its results.

    Args:
        plan: the YAML file.
        overrides: changes to the file, such as `"ablation.seeds=5"`.
        name: of the ablation and of its results folder; None means the file's name.
        results: as for `run_sweep`.
        resume: goes on with an ablation that was interrupted or killed, or with more seeds.
        address: as for `run_sweep`.
        cluster: as for `run_sweep`.
        quiet: as for `run_sweep`.

    Raises:
        ConfigError: when the input is wrong. Nothing was started.
        SweepFailed: when too many trials failed, or no trial of the reference finished.
        KeyboardInterrupt: when it was interrupted; the state is saved.
    """
    from orchestrator.ablate import read_ablation

    request = read_ablation(typed_path(str(plan)), overrides, name, typed_results(str(results)), resume)
    _run(_at(request, address, cluster), quiet)
    found = Ablation(request.folder)
    if found.status == Status.FAILED:
        end = last(found.events, Kind.SWEEP_END)
        raise SweepFailed(end.get("reason") or "no trial of the reference finished", request.folder)
    return found


def _at(request: "SweepRequest", address: str | None, cluster: str | Path | None) -> "SweepRequest":
    """The request with the cluster on which it is to run, if there is one."""
    return request._replace(cluster=read_place(address, None if cluster is None else typed_path(str(cluster))))


def _run(request: "SweepRequest", quiet: bool | None) -> None:
    """Runs what is asked for.

    Raises:
        KeyboardInterrupt: when it was interrupted; the state is saved.
    """
    from orchestrator.run.interrupts import Interrupts

    with Interrupts() as interrupts:
        if quiet or (quiet is None and not sys.stdout.isatty()):
            _run_quietly(request, interrupts)
        else:
            from orchestrator.terminal.lines import terminal_console

            run_in_terminal(request, terminal_console(), interrupts)
    if Sweep(request.folder).status == Status.INTERRUPTED:
        raise KeyboardInterrupt(f"what runs in {request.folder} was interrupted; its state is saved; go on with resume=True")


def _run_quietly(request: "SweepRequest", interrupts: "Interrupts") -> None:
    from orchestrator.run.interrupts import Interrupts
    from orchestrator.run.prepare import prepare

    prepared = prepare(request, log.warning)
    if prepared is None:
        from orchestrator.run.searches import copy_searches
        from orchestrator.run.session import copy_again

        copy_again(request, log.warning)
        copy_searches(request, log.warning)
        return
    for warning in [*(f"trial.{note}" for note in prepared.data.notes), *prepared.warnings]:
        log.warning(warning)
    from orchestrator.run.searches import run_searches
    from orchestrator.run.session import Watch, run

    def nothing(event: Event) -> None:
        pass

    def display(past: Sequence[Event]) -> AbstractContextManager[Listener]:
        return nullcontext(nothing)

    def run_search(search: "SweepRequest") -> None:
        with Interrupts() as of_search:
            _run_quietly(search, of_search)

    if request.config.repeats_search:
        run_searches(prepared, run_search, log.warning, interrupts)
    else:
        run(prepared, Watch(log.warning, display), interrupts)
