"""What a sweep that was killed and resumed owes: nothing lost, nothing twice, next to nothing done again, nobody left running.

The checks look at what the ledger held when the sweep was killed, at what it holds at the end, and at the tables.
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
from orchestrator.ledger.trial_states import State, trial_states_of
from orchestrator.outcome.tables import TRIAL_COLUMNS, Row, table_of, trial_rows

MOST_REPEATED = 1
"""Epochs of a trial that a kill may cost; one more where its newest checkpoint was damaged."""


class Tables(NamedTuple):
    """The tables of a results folder, as rows; of the classes only which trials and epochs they hold."""

    trials: list[Row]
    epochs: set[tuple[str, int]]
    classes: set[tuple[str, int]]


def read_tables(folder: Path) -> Tables:
    """The tables as they stand in a results folder."""
    epochs, classes = (
        {
            (row["trial_id"], row["epoch"])
            for row in pq.read_table(folder / f"{name}.parquet", columns=["trial_id", "epoch"]).to_pylist()
        }
        for name in ("epochs", "classes")
    )
    return Tables(pq.read_table(folder / "trials.parquet").to_pylist(), epochs, classes)


def lost(before: list[Event], after: list[Event], tables: Tables) -> list[str]:
    """Trials that had ended and have changed, and epochs that were reported and are not in the tables."""
    if after[: len(before)] != before:
        return ["the ledger itself: it does not go on where it was"]
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
    """Trials that ended or were suggested twice, stand in the table twice, or whose test set was read twice."""
    counts = {
        "ends": Counter(e["trial_id"] for e in events if e["event"] == "trial_end" and e["status"] != "interrupted"),
        "suggestions": Counter(e["trial_id"] for e in events if e["event"] == "suggest"),
        "suggestions of": Counter(json.dumps(e["config"], sort_keys=True) for e in events if e["event"] == "suggest"),
        "rows": Counter(row["trial_id"] for row in tables.trials),
        "readings of the test set": Counter(e["trial_id"] for e in events if e["event"] == "test_read"),
    }
    return [f"{key}: {count} {what}" for what, counter in counts.items() for key, count in counter.items() if count > 1]


def repeated(before: list[Event], after: list[Event]) -> dict[str, int]:
    """How many epochs each trial has reported in `before` and once more in `after`, which is what came until the next kill."""
    there, again = (
        {(event["trial_id"], event["epoch"]) for event in events if event["event"] == "epoch"} for events in (before, after)
    )
    return dict(Counter(trial_id for trial_id, _ in there & again))


def running_in_ledger(events: list[Event]) -> list[str]:
    """Trials that the ledger does not know to have ended."""
    return [trial_id for trial_id, trial in trial_states_of(events).items() if trial.state != State.ENDED]


def running_in_study(events: list[Event]) -> int:
    """Trials that a study that is rebuilt from the ledger, and told of all endings, still takes for running."""
    config = SweepConfig.model_validate(last(events, "sweep_start", "sweep_resume")["config"])
    conductor = Conductor(config, config.resources.wanted_slots(), append=lambda event, **fields: None)
    conductor.restore(events)
    proposals = conductor._proposals
    proposals._tell()
    return sum(not trial.state.is_finished() for trial in proposals._study._optuna.get_trials(deepcopy=False))


def running_in_mlflow(uri: str) -> int:
    """Runs of the experiments that MLflow takes for running."""
    from orchestrator.tracking.mlflow_runs import connect

    client = connect(uri)
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    return sum(run.info.status == "RUNNING" for run in client.search_runs(ids))


def unexplained(events: list[Event], faults: Mapping[str, str | None], transient: Iterable[str]) -> list[str]:
    """Failures that nobody has caused.

    Args:
        events: of the whole sweep.
        faults: which one each trial was to have, by its id.
        transient: those of them after which a trial goes on.
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
