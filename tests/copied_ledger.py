"""What the copy of a ledger in a store says while it is being written."""

import json

from orchestrator.copy.results_store import ResultsStore, segments
from orchestrator.ledger.events import Kind
from trainables.stores import patiently


def copied_trials(store: ResultsStore) -> list[str]:
    """The trials that have ended in the copied ledger."""
    paths = segments(patiently(store.files))
    lines = b"".join(patiently(lambda path=path: store.get(path)) for path in paths).splitlines()
    return [event["trial_id"] for event in map(json.loads, lines) if event["event"] == Kind.TRIAL_END]
