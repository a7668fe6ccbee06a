"""The runs of a sweep in MLflow: a parent for the sweep, a child for each trial. This file and registry.py alone import mlflow.

A resumed sweep goes on in its runs: a run is found by the digest of the ledger's first line. Sending twice changes nothing: a
metric is one row of run, key, timestamp, step and value, all of which come from the ledger, and parameters keep their values.
"""

import fcntl
import functools
import getpass
import hashlib
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from orchestrator.ledger.events import (
    CompareEvent,
    EpochEvent,
    Event,
    ExportEvent,
    Kind,
    RetryEvent,
    Role,
    Status,
    SuggestEvent,
    SweepEndEvent,
    SweepResumeEvent,
    SweepStartEvent,
    TestReadEvent,
    TrialEndEvent,
    TrialStartEvent,
    trial_of,
)
from orchestrator.outcome.tables import TABLES
from orchestrator.tracking import page
from orchestrator.tracking.catch_up import RUN_STATUS, milliseconds, sent_events
from orchestrator.tracking.local_store import sqlite_file
from orchestrator.tracking.outcome import Outcome
from orchestrator.tracking.registry import PLACE, PROGRAM, Registered, Registry
from trainables.collapse import verdict
from trainables.config_file import dump_yaml
from trainables.settings import flatten

LONGEST_VIEW = 20_000
"""Characters that MLflow takes of a tag of an experiment."""
REPORT = "report.html"
"""Written after the ledger's last event."""
LARGEST_FILE = 10 * 2**20
"""Bytes of a table, of the report or of the changes to the program that are sent; a larger file stays in the results folder."""
MAX_BATCH, PAGE, FLUSH_S = 1000, 1000, 2.0
"""MLflow takes at most 1000 metrics in a request and hands out as many runs; open charts get new points every two seconds."""
LONGEST_PARAM = 6000
"""Characters that MLflow keeps of a parameter."""
COLLAPSE = "tailtune.collapse"
"""The tag of a trial whose weighting has collapsed: in which way. Trials without a collapse do not have it."""
PASSING = {
    "INTERNAL_ERROR",
    "TEMPORARILY_UNAVAILABLE",
    "REQUEST_LIMIT_EXCEEDED",
    "RESOURCE_EXHAUSTED",
    "ABORTED",
    "IO_ERROR",
    "BAD_REQUEST",
}
"""Codes of MLflow's errors that may be gone after a while. A request that failed on its way has the first one; a database that
several processes write has the last one."""


def connect(uri: str) -> Any:
    """A client that neither waits minutes for a dead server nor sends usage data."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # a run that is asked for twice is made twice
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_UV_AUTO_DETECT", "false")  # the project in the working directory has nothing to do with a model
    import mlflow

    for name in ("mlflow", "alembic", "urllib3"):  # the last one tells of every try
        logging.getLogger(name).setLevel(logging.ERROR)
    file = sqlite_file(uri)
    if file is None:
        return mlflow.MlflowClient(tracking_uri=uri)
    folder = file.parent
    folder.mkdir(parents=True, exist_ok=True)
    with only_one_in(folder):  # two processes that make the tables of a fresh store at the same time disturb each other
        client = mlflow.MlflowClient(tracking_uri=uri)
        client.search_experiments(max_results=1)
    return client


@contextmanager
def only_one_in(folder: Path) -> Iterator[None]:
    """Waits until no other process is in this block with the same folder. A file system without locks lets everybody in."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def may_pass(error: Exception) -> bool:
    """Whether an error of MLflow's may be gone after a while: the server is away or overloaded, the database is locked."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    if isinstance(error, MlflowException):
        return error.error_code in PASSING and "not a database" not in str(error)
    return isinstance(error, OSError) or (isinstance(error, SQLAlchemyError) and "not a database" not in str(error))


def _tags_of_data(data: dict[str, Any]) -> dict[str, str]:
    return {"dataset": data["source"], "imbalance_factor": f"{data['imbalance_factor']:g}"}


def _without_place(data: dict[str, Any]) -> dict[str, Any]:
    """The settings that decide which images there are; these may be moved."""
    return {key: value for key, value in data.items() if key != "root"}


def _source(is_ablation: bool, commit: str | None) -> dict[str, str]:
    """Who runs what, in MLflow's own tags."""
    tags = {
        "mlflow.source.name": f"python -m orchestrator.{'ablate' if is_ablation else 'sweep'}",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": (commit or "").removesuffix("+changes"),
    }
    with suppress(OSError, KeyError):  # a user without a name
        tags["mlflow.user"] = getpass.getuser()
    return tags


def _shortened(text: str, file: str) -> str:
    """A parameter as long as MLflow takes it; MLflow itself would cut it without a word."""
    if len(text) <= LONGEST_PARAM:
        return text
    remark = f" ... ({len(text)} characters; all are in {file})"
    return text[: LONGEST_PARAM - len(remark)] + remark


class Page(NamedTuple):
    """A sweep's page in the web interface."""

    sweep: str
    address: str
    """Below that of the server."""


def page_of(client: Any, key: str | None = None) -> Page | None:
    """The page of the sweep or ablation with a key, or of the newest one; None when there is none."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    which = f"tags.`tailtune.sweep` = '{key}'" if key else "tags.`tailtune.sweep` LIKE '%'"
    found = client.search_runs(experiments, which, order_by=["attributes.start_time DESC"], max_results=1)
    if not found:
        return None
    run = found[0]
    return Page(run.info.run_name, page.address(run.info.experiment_id, run.data.tags["tailtune.sweep"], charts=True))


def find_or_make(client: Any, experiment: str, artifacts: str | None) -> str:
    """The id of an experiment, also when another process makes it at this moment.

    Raises:
        RuntimeError: when the experiment is deleted.
    """
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(experiment)
    if found is None:
        try:
            return str(client.create_experiment(experiment, artifact_location=artifacts))
        except MlflowException:
            found = client.get_experiment_by_name(experiment)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        raise RuntimeError(f"the experiment {experiment!r} is deleted; restore it, or choose another tracking.experiment")
    return str(found.experiment_id)


class MlflowRuns:
    """Turns events into runs, parameters, metrics, tags and artifacts."""

    def __init__(
        self,
        client: Any,
        experiment: str,
        artifacts: str | None,
        name: str,
        folder: Path,
        run_ids: dict[str, str],
        registered_model: str,
        may_send: Callable[[ExportEvent | CompareEvent], bool] = lambda event: True,
    ) -> None:
        """Finds the experiment, or makes it.

        Args:
            client: from `connect`.
            experiment: its name.
            artifacts: where a new experiment keeps files.
            name: of the sweep.
            folder: results folder, whose files are sent.
            run_ids: filled with the run of each trial.
            registered_model: name of the registered model that the best trial becomes a version of.
            may_send: whether the files of an export may be read; a ledger that came from somebody else may name any folder.
        """
        from mlflow.entities import Metric, Param, RunTag

        self._client, self._name, self._may_send, self._folder = client, name, may_send, folder
        self._outcome, self._registry = Outcome(), Registry(client, registered_model)
        self.key = ""
        self.refused: list[str] = []
        """What the server did not want, with what it said."""
        self._registered: Registered | None = None
        """The version of the best trial in the registry, once the sweep has ended."""
        self._config: dict[str, Any] = {}
        self._metric, self._param, self._tag = Metric, Param, RunTag
        self.experiment_id = find_or_make(client, experiment, artifacts)
        self._parent = ""
        self._sweep_tags: dict[str, str] = {}
        self._suggested: dict[str, SuggestEvent] = {}
        """Trials without a run."""
        self._confirms: dict[str, str] = {}
        """Trials that run a configuration again on another seed: the trial that has it, under whose run theirs stand."""
        self._runs = run_ids
        self._found_parent: Any = None
        self._found: dict[str, Any] = {}
        self._ended: set[str] = set()
        self._is_ablation, self._has_ended = False, False
        self._variants: dict[str, str] = {}
        """The runs of an ablation's variants, by name: they stand between the ablation and its trials."""
        self._collapsed: dict[str, str] = {}
        """Trials whose run says that the weighting has collapsed, and what it says."""
        self._counts: Counter[tuple[Kind, str]] = Counter()
        self._stamp = 0
        self._pending: dict[str, list[Any]] = {}
        self._flushed = time.monotonic()

    def catch_up(self, past: Sequence[Event]) -> None:
        """Sends what the ledger held before this process, except what MLflow has already.

        When an epoch was repeated, only the last attempt is sent.
        """
        start = next((event for event in past if event["event"] == Kind.SWEEP_START), None)
        if start is None:
            return
        self.send(start)
        sent = sent_events(past, self._client, self._found_parent, self._found)
        sent[start["n"]] = 1
        for event in past:
            if not sent[event["n"]]:
                self.send(event)
            elif event["n"] != start["n"]:
                self._follow(event)
        self.flush()
        self._found_parent = None
        self._found.clear()

    def send(self, event: Event) -> None:
        """Handles one event; kinds that MLflow does not show are skipped."""
        self._follow(event)
        match event["event"]:
            case Kind.SWEEP_START:
                self._on_sweep_start(event)
            case Kind.SWEEP_RESUME:
                self._on_sweep_resume(event)
            case Kind.SUGGEST:
                self._on_suggest(event)
            case Kind.TRIAL_START:
                self._on_trial_start(event)
            case Kind.EPOCH:
                self._on_epoch(event)
            case Kind.RETRY:
                self._on_retry(event)
            case Kind.TRIAL_END:
                self._on_trial_end(event)
            case Kind.TEST_READ if self._is_ablation:
                self._pending.setdefault(self._run_of(event), []).extend(self._metrics(event, 0))
            case Kind.EXPORT:
                self._on_export(event)
            case Kind.COMPARE:
                self._on_compare(event)
            case Kind.SWEEP_END:
                self._on_sweep_end(event)
        if time.monotonic() - self._flushed > FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Sends all metrics that have accumulated."""
        for run_id, metrics in self._pending.items():
            for start in range(0, len(metrics), MAX_BATCH):
                self._client.log_batch(run_id, metrics=metrics[start : start + MAX_BATCH], synchronous=True)
        self._pending.clear()
        self._flushed = time.monotonic()

    def finish(self) -> None:
        """Sends the rest. A sweep without an end was interrupted: none of its runs stays RUNNING."""
        self.flush()
        if self._parent:
            self._end_trials(self._stamp)
            if self._parent not in self._ended:
                self._end(self._parent, Status.INTERRUPTED, self._stamp)
            if self._has_ended:
                self._send_file(REPORT)

    def _follow(self, event: Event) -> None:
        self._outcome.apply(event)
        self._counts[event["event"], trial_of(event)] += 1
        self._stamp = milliseconds(event)

    def _on_sweep_start(self, event: SweepStartEvent) -> None:
        self._sweep_tags = {
            "git_commit": event["git_commit"] or "",
            "split_sha256": event["split_sha256"],
            **_tags_of_data(event["config"]["trial"]["data"]),
        }
        self.key, self._seed = page.key_of(event), event["config"]["trial"]["seed"]
        self._config, self._start = event["config"], event
        self._is_ablation = "ablation" in event["config"]
        self._sweep_tags |= {**_source(self._is_ablation, event["git_commit"]), page.OF: self.key}
        self._show(self.key, page.view(self.key, self._config))
        self._find(self.key)
        if not self._parent:
            kind = "ablation" if self._is_ablation else "sweep"
            tags = {**self._sweep_tags, "tailtune.kind": kind, "tailtune.sweep": self.key}
            self._parent = self._create_run(event, self._name, {name: tags[name] for name in tags if name != page.OF})
        self._describe(self._parent, event["config"], "sweep.yaml", self._found_parent)

    def _on_sweep_resume(self, event: SweepResumeEvent) -> None:
        self._send_changes(event)
        self._client.set_tag(self._parent, "segments", str(1 + self._counts[Kind.SWEEP_RESUME, ""]))
        self._go_on(self._parent)

    def _send_changes(self, event: SweepStartEvent | SweepResumeEvent) -> None:
        """The program's differences from its commit."""
        if name := event.get("changes"):
            self._send_file(name)

    def _on_suggest(self, event: SuggestEvent) -> None:
        trial_id = event["trial_id"]
        if (confirmed := event.get("confirms")) in self._runs:
            self._confirms[trial_id] = confirmed
        if trial_id not in self._runs:
            self._suggested[trial_id] = event
        elif trial_id in self._found:
            self._describe(self._runs[trial_id], event["config"], "config.yaml", self._found[trial_id])

    def _on_trial_start(self, event: TrialStartEvent) -> None:
        self._go_on(self._run_of(event))

    def _on_epoch(self, event: EpochEvent) -> None:
        run_id = self._run_of(event)
        self._go_on(run_id)
        self._tell_collapse(run_id, event)
        self._pending.setdefault(run_id, []).extend(self._metrics(event, event["epoch"]))

    def _tell_collapse(self, run_id: str, event: EpochEvent) -> None:
        """Before the metrics of the epoch: where MLflow has them, it has the verdict of its epoch, too."""
        trial_id, said = event["trial_id"], verdict(event["metrics"])
        if said == self._collapsed.get(trial_id, ""):
            return
        if said:
            self._client.set_tag(run_id, COLLAPSE, said)
        else:  # it recovered, or the attempt that had collapsed was repeated
            self._delete_tag(run_id, COLLAPSE)
        self._collapsed[trial_id] = said

    def _on_retry(self, event: RetryEvent) -> None:
        trial_id = event["trial_id"]
        self._client.set_tag(self._run_of(event), "retries", str(self._counts[Kind.RETRY, trial_id]))

    def _on_trial_end(self, event: TrialEndEvent) -> None:
        run_id, stamp = self._run_of(event), milliseconds(event)
        self.flush()
        trial_id, reason = event["trial_id"], (event["stop_reason"] or "").strip().splitlines()[-1:]
        tags = [self._tag("status", event["status"]), self._tag("stop_reason", reason[0][:1000] if reason else "")]
        ended = self._outcome.ended[trial_id]
        if ended.best:
            tags.append(self._tag("best_epoch", str(event.get("best_epoch", ""))))
        # MLflow shows the value of the latest step: a trial that goes on from an earlier state may end at an earlier epoch.
        metrics = [self._metric(f"best/{name}", value, stamp, 0) for name, value in ended.best.items()]
        metrics += [self._metric(f"last/{name}", value, stamp, 0) for name, value in ended.last.items()]
        self._client.log_batch(run_id, metrics=metrics, tags=tags, synchronous=True)
        if confirmed := self._confirms.get(trial_id):
            self._tell_seeds(confirmed, stamp)
        self._end(run_id, event["status"], stamp)

    def _tell_seeds(self, trial_id: str, stamp: int) -> None:
        """What a configuration reached on all its seeds so far, on the run of the trial that has it."""
        if found := self._outcome.over_seeds(trial_id):
            metrics = [self._metric(name, value, stamp, int(found["seeds/n"])) for name, value in found.items()]
            self._client.log_batch(self._runs[trial_id], metrics=metrics, synchronous=True)

    def _on_export(self, event: ExportEvent) -> None:
        # If the sweep was moved, the folder of an earlier export is gone and only its numbers can be sent. Files go first: where
        # MLflow has the numbers, it has the files.
        if Path(event["path"]).is_dir() and self._may_send(event):
            self._send_files(lambda: self._client.log_artifacts(self._parent, event["path"], "best"), "best")
            self._register(event)
        if run_id := self._runs.get(event["trial_id"]):
            for starred in self._search(f"tags.`{page.OF}` = '{self.key}' and tags.`{page.BEST}` = '{page.STAR}'"):
                if starred.info.run_id != run_id:
                    self._delete_tag(starred.info.run_id, page.BEST)
            self._client.set_tag(run_id, page.BEST, page.STAR)
        tags = [self._tag("best_trial", event["trial_id"])]
        self._client.log_batch(self._parent, metrics=self._metrics(event, 0), tags=tags, synchronous=True)

    def _register(self, event: ExportEvent) -> None:
        """Puts the exported model into the registry, unless it was exported without a program, which the export has said.

        A model that the server does not take is noted: the sweep goes on.
        """
        from mlflow.exceptions import MlflowException

        export, trial_id = Path(event["path"]), event["trial_id"]
        merit, run_id = self._outcome.merit(self.key, self._sweep_tags["split_sha256"]), self._runs.get(trial_id)
        if merit is None or run_id is None or not (export / PROGRAM).is_file():
            return

        def send(folder: Path) -> bool:
            return self._send_files(lambda: self._client.log_artifacts(run_id, str(folder), PLACE), PLACE)

        try:
            self._registry.register(merit, run_id, export, send)
        except MlflowException as error:
            if may_pass(error):
                raise
            self._refuse(f"did not take {trial_id} into its registry: {str(error).splitlines()[0]}")

    def _find_registered(self) -> Registered | None:
        """The version of the best trial in the registry; None without one, or where the server has no registry."""
        from mlflow.exceptions import MlflowException

        try:
            return self._registry.find(self.key, self._outcome.best_trial) if self._outcome.best_trial else None
        except MlflowException as error:
            if may_pass(error):
                raise
            return None

    def _on_compare(self, event: CompareEvent) -> None:
        """Files go to the ablation's run, numbers and verdicts to the variants'."""
        if Path(event["path"]).is_dir() and self._may_send(event):
            self._send_files(lambda: self._client.log_artifacts(self._parent, event["path"], "ablation"), "ablation")
        for row in event["rows"]:
            name = f"{row['name']}@{row['condition']}" if row["condition"] else row["name"]
            numbers = {key: value for key, value in row.items() if isinstance(value, int | float)}
            metrics = [self._metric(key, value, milliseconds(event), 0) for key, value in numbers.items()]
            tags = [self._tag("verdict", row["verdict"] or "")]
            self._client.log_batch(self._variant_run(name, event), metrics=metrics, tags=tags, synchronous=True)

    def _variant_run(self, variant: str, event: Event) -> str:
        """The run of an ablation's variant, created when it is first needed."""
        if variant not in self._variants:
            tags = {**self._sweep_tags, "mlflow.parentRunId": self._parent, "tailtune.kind": "variant", "variant": variant}
            self._variants[variant] = self._create_run(event, variant, tags)
        return self._variants[variant]

    def _on_sweep_end(self, event: SweepEndEvent) -> None:
        self.flush()
        self._end_trials(milliseconds(event))
        for table in TABLES:
            self._send_file(f"{table}.parquet", "tables")
        self._has_ended = True
        self._tell_outcome()
        self._end(self._parent, event["status"], milliseconds(event))

    def _show(self, key: str, view: str) -> None:
        """Keeps a view of the table of runs, unless MLflow has it."""
        if len(view) <= LONGEST_VIEW and self._client.get_experiment(self.experiment_id).tags.get(page.TAG + key) != view:
            self._client.set_experiment_tag(self.experiment_id, page.TAG + key, view)

    def _send_file(self, name: str, place: str | None = None) -> None:
        """Sends a file of the results folder, if it is there and not too large."""
        file = self._folder / name
        if file.is_file() and not file.is_symlink() and file.stat().st_size <= LARGEST_FILE:
            self._send_files(functools.partial(self._client.log_artifact, self._parent, str(file), place), name)

    def _send_files(self, send: Callable[[], object], what: str) -> bool:
        """Sends files, which a server may refuse, as too large for it: the sweep has them, and MLflow gets the rest.

        Returns: whether the server took them.
        """
        try:
            send()
            return True
        except Exception as error:
            code = getattr(getattr(error, "response", None), "status_code", 0)
            if not 400 <= code < 500 or code in (408, 429):
                raise
            self._refuse(f"did not take the files of {what} (HTTP status {code})")
            return False

    def _refuse(self, what: str) -> None:
        self.refused += [] if what in self.refused else [what]

    def _delete_tag(self, run_id: str, key: str) -> None:
        """Removes a tag that may be gone already: the answer to an earlier request may have been lost."""
        from mlflow.exceptions import MlflowException

        try:
            self._client.delete_tag(run_id, key)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise

    def _tell_outcome(self) -> None:
        """The outcome in words, on the page of the sweep's run, and a view of the best trial beside the references."""
        if len(runs := self._best_and_references()) > 1:
            key = self.key + page.SIDE_BY_SIDE
            self._show(key, page.view(key, self._config, runs))
        self._registered = self._find_registered()
        text = self._outcome.in_words(self._name, self._runs, self.experiment_id, self.pages(), self._registered)
        self._client.set_tag(self._parent, "mlflow.note.content", text)

    def pages(self) -> list[tuple[str, str]]:
        """The sweep's pages in the web interface, below its address, each after its name."""
        if not self._parent:
            return []
        found = [
            ("all trials", page.address(self.experiment_id, self.key)),
            ("charts", page.address(self.experiment_id, self.key, charts=True)),
        ]
        if len(self._best_and_references()) > 1:
            found.append(("best and references", page.address(self.experiment_id, self.key + page.SIDE_BY_SIDE, charts=True)))
        if self._registered:
            found.append((f"model, version {self._registered.version}", self._registered.address))
        return found

    def _best_and_references(self) -> list[str]:
        return [self._runs[trial_id] for trial_id in self._outcome.best_and_references() if trial_id in self._runs]

    def _run_of(self, event: TrialStartEvent | EpochEvent | RetryEvent | TestReadEvent | TrialEndEvent) -> str:
        """The run of the trial that an event is about, created when it is first needed."""
        trial_id = event["trial_id"]
        if trial_id not in self._runs:
            suggestion = self._suggested.pop(trial_id)
            tags = {
                **self._sweep_tags,
                **_tags_of_data(suggestion["config"]["data"]),
                "split_sha256": self._digest_of_data(suggestion["config"]),
                "mlflow.parentRunId": self._above(suggestion, event),
                "tailtune.kind": "trial",
                "trial_id": trial_id,
                "role": suggestion["role"],
                "variant": suggestion["variant"],
                "method": suggestion["config"]["method"]["name"],
                "seed": str(suggestion["seed"]),
            }
            if parent := suggestion.get("parent"):  # the trial continues from its state
                tags |= {"parent_trial": parent["trial_id"], "parent_epoch": str(parent["epoch"])}
            if confirms := suggestion.get("confirms"):  # the trial runs its configuration again
                tags["confirms"] = confirms
            what = suggestion["variant"] if suggestion["role"] == Role.REFERENCE else suggestion["role"]
            label = trial_id if suggestion["role"] == Role.SEARCH else f"{trial_id} {what}"
            if self._is_ablation:
                label += f" seed {suggestion['seed']}"
            self._runs[trial_id] = self._create_run(event, label, tags)
            self._describe(self._runs[trial_id], suggestion["config"], "config.yaml")
        return self._runs[trial_id]

    def _above(self, suggestion: SuggestEvent, event: Event) -> str:
        """The run below which a trial's run stands."""
        if confirmed := self._confirms.get(suggestion["trial_id"]):
            return self._runs[confirmed]
        return self._variant_run(suggestion["variant"], event) if self._is_ablation else self._parent

    def _create_run(self, event: Event, run_name: str, tags: dict[str, str]) -> str:
        run = self._client.create_run(self.experiment_id, start_time=milliseconds(event), tags=tags, run_name=run_name)
        return str(run.info.run_id)

    def _describe(self, run_id: str, config: dict[str, Any], file: str, found: Any = None) -> None:
        """Logs a configuration, unless the run that was `found` has it. The file goes first: a run with all parameters has it."""
        values = flatten(config)
        if run_id != self._parent:
            values |= page.logarithms(self._config.get("space", {}), values)
        params = [self._param(key, _shortened(str(value), file)) for key, value in values.items()]
        if found and all(param.key in found.data.params for param in params):
            return
        self._client.log_text(run_id, dump_yaml(config), file)
        if run_id == self._parent:
            versions = "".join(f"{name}=={number}\n" for name, number in self._start["versions"].items())
            self._client.log_text(run_id, versions, "versions.txt")
            self._send_changes(self._start)
        self._client.log_inputs(run_id, [self._dataset(config.get("trial", config))])
        for start in range(0, len(params), 100):
            self._client.log_batch(run_id, params=params[start : start + 100], synchronous=True)

    def _dataset(self, trial: dict[str, Any]) -> Any:
        """The images and the split of a trial."""
        from mlflow.entities import Dataset, DatasetInput

        tags = _tags_of_data(trial["data"])
        name = f"{tags['dataset']} 1:{tags['imbalance_factor']}" if trial["data"].get("profile") != "natural" else tags["dataset"]
        return DatasetInput(Dataset(name, self._digest_of_data(trial)[:16], "tailtune", json.dumps(trial["data"])))

    def _digest_of_data(self, trial: dict[str, Any]) -> str:
        """The digest of the split; of the settings that decide it, where these are not the sweep's: each seed draws its own."""
        decisive = _without_place(trial["data"])
        if (decisive, trial["seed"]) == (_without_place(self._config["trial"]["data"]), self._seed):
            return self._sweep_tags["split_sha256"]
        return "settings " + hashlib.sha256(json.dumps([decisive, trial["seed"]], sort_keys=True).encode()).hexdigest()[:16]

    def _metrics(self, event: EpochEvent | TestReadEvent | ExportEvent, step: int) -> list[Any]:
        # An empty band has no accuracy (null in the ledger), and MLflow knows no missing metric: it is left out.
        points = {key: value for key, value in event["metrics"].items() if value is not None}
        return [self._metric(key, value, milliseconds(event), step) for key, value in points.items()]

    def _go_on(self, run_id: str) -> None:
        if run_id in self._ended:
            self._client.update_run(run_id, status="RUNNING")
            self._ended.discard(run_id)

    def _end(self, run_id: str, status: Status, stamp: int) -> None:
        self._client.set_terminated(run_id, RUN_STATUS[status], stamp)
        self._ended.add(run_id)

    def _end_trials(self, stamp: int) -> None:
        """Ends the runs of trials that MLflow still shows as RUNNING."""
        for run in self._search(f"tags.`{page.OF}` = '{self.key}' and attributes.status = 'RUNNING'"):
            is_variant = run.info.run_id in self._variants.values()
            self._end(run.info.run_id, Status.FINISHED if is_variant else Status.INTERRUPTED, stamp)

    def _find(self, key: str) -> None:
        """Finds the runs that the sweep has in MLflow."""
        parents = self._search(f"tags.`tailtune.sweep` = '{key}'")
        if not parents:
            return
        self._found_parent, self._parent = parents[0], parents[0].info.run_id
        children = self._children()
        for run in children:
            if run.data.tags.get("tailtune.kind") == "variant":
                self._variants[run.data.tags["variant"]] = run.info.run_id
        for run in children:
            if "trial_id" in run.data.tags:
                self._found.setdefault(run.data.tags["trial_id"], run)
        self._collapsed = {trial_id: run.data.tags.get(COLLAPSE, "") for trial_id, run in self._found.items()}
        self._runs |= {trial_id: run.info.run_id for trial_id, run in self._found.items()}
        found = [self._found_parent, *self._found.values()]
        self._ended |= {run.info.run_id for run in found if run.info.status != "RUNNING"}

    def _children(self) -> list[Any]:
        """All runs of the sweep but its own. Older versions made runs without the tag by which they are found: they get it."""
        found = {run.info.run_id: run for run in self._search(f"tags.`{page.OF}` = '{self.key}'")}
        below = [self._parent, *(run_id for run_id, run in found.items() if run.data.tags.get("tailtune.kind") == "variant")]
        while below:
            for run in self._search(f"tags.`mlflow.parentRunId` = '{below.pop()}'"):
                if run.info.run_id not in found:
                    found[run.info.run_id] = run
                    self._client.set_tag(run.info.run_id, page.OF, self.key)
                    below += [run.info.run_id] if run.data.tags.get("tailtune.kind") == "variant" else []
        return sorted(found.values(), key=lambda run: int(run.info.start_time))

    def _search(self, what: str) -> list[Any]:
        """The runs of the experiment that match, the oldest first, without deleted ones."""
        runs: list[Any] = []
        token: str | None = None
        while True:
            page = self._client.search_runs(
                [self.experiment_id], what, max_results=PAGE, order_by=["attributes.start_time ASC"], page_token=token
            )
            runs += page
            token = page.token
            if not token:
                return runs
