"""What the autoscaler does, in words."""

from collections import Counter

from orchestrator.cluster.autoscaler import Doings, in_words


def test_machines_on_their_way_and_those_that_do_not_come_are_named() -> None:
    assert in_words(Doings(Counter(gpu_worker=2), {})) == "the autoscaler is starting 2 gpu_worker"
    failed = {"gpu_worker": "InsufficientInstanceCapacity:\n no g6 here"}
    assert in_words(Doings(Counter(), failed)) == (
        "the autoscaler could not start gpu_worker: InsufficientInstanceCapacity: no g6 here"
    )
    assert in_words(Doings(Counter(big=1), failed)).startswith("the autoscaler is starting 1 big, and could not start gpu_worker")
    assert in_words(Doings(Counter(), {})) == "the autoscaler starts no machine: all that may come are there"
