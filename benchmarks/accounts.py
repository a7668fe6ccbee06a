"""Checks of a sweep that was killed and resumed: nothing lost, nothing twice, next to nothing repeated, no trial left running.

The checks compare the ledger at the time of a kill, the ledger at the end, and the tables.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq

from orchestrator.config.sweep_config import SweepConfig
from orchestrator.decide.conductor import Conductor
from orchestrator.ledger.events import Event
from orchestrator.ledger.ledger import last
from orchestrator.ledger.parquet_files import table_of
from orchestrator.ledger.trial_states import State, trial_states_of
from orchestrator.outcome.tables import TRIAL_COLUMNS, Row, trial_rows

MOST_REPEATED = 1
"""Epochs of a trial that may be repeated after a kill; one more when the trial's newest checkpoint was damaged."""


class Tables(NamedTuple):
    """The tables of a results folder: trials as rows; for epochs and classes only the trials and epochs that the table holds."""

    trials: list[Row]
    epochs: set[tuple[str, int]]
    classes: set[tuple[str, int]]


def read_tables(folder: Path) -> Tables:
    """Reads the tables of a results folder."""
    epochs, classes = (
        {
            (row["trial_id"], row["epoch"])
            for row in pq.read_table(folder / f"{name}.parquet", columns=["trial_id", "epoch"]).to_pylist()
        }
        for name in ("epochs", "classes")
    )
    return Tables(pq.read_table(folder / "trials.parquet").to_pylist(), epochs, classes)


def lost(before: list[Event], after: list[Event], tables: Tables) -> list[str]:
    """Trials that had ended at the kill and changed later, and reported epochs that are missing in the tables."""
    if after[: len(before)] != before:
        return ["the ledger itself: it does not go on where it was"]
    return missing(before, after, tables)


def missing(before: list[Event], after: list[Event], tables: Tables) -> list[str]:
    """The same, where a power cut may have taken the last lines of `before`: what they said must have come back."""
    then, now = ({row["trial_id"]: row for row in trial_rows(events)} for events in (before, after))
    ended = [trial_id for trial_id, trial in trial_states_of(before).items() if trial.state == State.ENDED]
    in_table = {row["trial_id"]: row for row in tables.trials}
    should_be = {row["trial_id"]: row for row in table_of(list(now.values()), TRIAL_COLUMNS).to_pylist()}
    found = [trial_id for trial_id in ended if then[trial_id] != now[trial_id] or in_table.get(trial_id) != should_be[trial_id]]
    epochs = sorted({(event["trial_id"], event["epoch"]) for event in before if event["event"] == "epoch"})
    found += [f"{trial_id} epoch {epoch}" for trial_id, epoch in epochs if (trial_id, epoch) not in tables.epochs]
    found += [f"{trial_id} epoch {epoch} by class" for trial_id, epoch in epochs if (trial_id, epoch) not in tables.classes]
    return found


def doubled(events: list[Event], tables: Tables) -> list[str]:
    """Trials that ended twice, were suggested twice, are in the table twice, or for which the test set was read twice."""
    counts = {
        "ends": Counter(e["trial_id"] for e in events if e["event"] == "trial_end" and e["status"] != "interrupted"),
        "suggestions": Counter(e["trial_id"] for e in events if e["event"] == "suggest"),
        "suggestions of": Counter(json.dumps(e["config"], sort_keys=True) for e in events if e["event"] == "suggest"),
        "rows": Counter(row["trial_id"] for row in tables.trials),
        "readings of the test set": Counter(e["trial_id"] for e in events if e["event"] == "test_read"),
    }
    return [f"{key}: {count} {what}" for what, counter in counts.items() for key, count in counter.items() if count > 1]


def repeated(before: list[Event], after: list[Event]) -> dict[str, int]:
    """How many epochs of each trial were reported in `before` and trained again in `after`, the events up to the next kill.

    An epoch that comes back with its attempt was not trained again: a power cut took its line, and its state was adopted.
    """
    there, again = (
        {(event["trial_id"], event["epoch"]): event["attempt"] for event in events if event["event"] == "epoch"}
        for events in (before, after)
    )
    return dict(Counter(key[0] for key, attempt in again.items() if key in there and there[key] != attempt))


def running_in_ledger(events: list[Event]) -> list[str]:
    """Trials that have not ended, as far as the ledger says."""
    return [trial_id for trial_id, trial in trial_states_of(events).items() if trial.state != State.ENDED]


def running_in_study(events: list[Event]) -> int:
    """Number of trials that are still RUNNING in the studies, rebuilt from the ledger and told of all ended trials."""
    config = SweepConfig.model_validate(last(events, "sweep_start", "sweep_resume")["config"])
    conductor = Conductor(config, config.resources.wanted_slots(config.num_trials()), append=lambda event, **fields: None)
    conductor.restore(events)
    proposals = conductor._proposals
    proposals._tell()
    studies = [search.study._optuna for search in proposals._searches.values()]
    return sum(not trial.state.is_finished() for study in studies for trial in study.get_trials(deepcopy=False))


def running_in_mlflow(uri: str) -> int:
    """Number of MLflow runs that are still RUNNING, over all experiments."""
    from orchestrator.tracking.mlflow_runs import connect

    client = connect(uri)
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    return sum(run.info.status == "RUNNING" for run in client.search_runs(ids))


def unexplained(events: list[Event], faults: Mapping[str, str | None], transient: Iterable[str]) -> list[str]:
    """Failures that no injected fault explains.

    Args:
        events: of the whole sweep.
        faults: the fault that each trial was to have, by trial id.
        transient: names of the faults after which a trial continues.
    """
    retries = Counter(event["trial_id"] for event in events if event["event"] == "retry")
    found = [
        f"{trial_id} was tried again {count} times, its fault: {faults.get(trial_id)}"
        for trial_id, count in retries.items()
        if count > 1 or faults.get(trial_id) not in set(transient)
    ]
    causes = {"failed": "memory", "diverged": "diverged"}
    for event in events:
        if event["event"] == "trial_end" and faults.get(event["trial_id"]) != causes.get(
            event["status"], faults.get(event["trial_id"])
        ):
            found.append(f"{event['trial_id']} {event['status']}: {event['stop_reason']}")
    return found
