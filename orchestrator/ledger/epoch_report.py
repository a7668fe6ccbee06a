"""What the report of an epoch becomes in the ledger: the reading of the test set and the pairing stand apart from the epoch."""

from collections.abc import Callable, Mapping

from orchestrator.ledger.events import Event, Kind, shared_fields
from orchestrator.ledger.trial_states import TrialState


def write_epoch(
    append: Callable[..., Event],
    trial: TrialState,
    epoch: int,
    attempt: int,
    metrics: Mapping[str, float | None],
    pairing: Mapping[str, str],
    shared_by: int = 1,
) -> list[Event]:
    """Appends an epoch; before the trial's last one, what it read of the test set, and its pairing.

    The test set is sealed: its metrics are no metrics of an epoch. They stand in the ledger once for each trial, also when the
    last epoch is repeated after a crash.

    Args:
        append: writes an event.
        trial: whose epoch it is.
        epoch: counted from 1.
        attempt: of the epoch.
        metrics: of the epoch, and those of the test set if it was read.
        pairing: the trial's digests, see trainables/pairing.py; empty if the state is of a version that had none.
        shared_by: how many trials the process trained together.

    Returns: the events.
    """
    test = {name: value for name, value in metrics.items() if is_of_test(name)}
    of_epoch = {name: value for name, value in metrics.items() if name not in test}
    events = []
    if epoch == trial.config["epochs"]:
        if pairing and not trial.pairing:
            events.append(append(Kind.PAIRING, trial_id=trial.trial_id, digests=dict(pairing)))
        if test and not trial.test:
            events.append(append(Kind.TEST_READ, trial_id=trial.trial_id, metrics=test))
    shared = shared_fields(shared_by)
    events.append(append(Kind.EPOCH, trial_id=trial.trial_id, epoch=epoch, attempt=attempt, metrics=of_epoch, **shared))
    return events


def is_of_test(metric: str) -> bool:
    """Whether a metric is of the sealed test set."""
    return metric.split("/")[0] in ("test", "test_last")
