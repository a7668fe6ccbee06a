from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.cluster.placement import Arrangement, arrange, needs_of_worker
from orchestrator.config.resources_config import ResourcesConfig
from orchestrator.config.search_config import SearchConfig
from orchestrator.config.sweep_config import SweepConfig
from trainables.config import OptimConfig, TrialConfig

LAPTOP = {"CPU": 2.0}
GPU_NODE = {"CPU": 16.0, "GPU": 4.0}


def sweep(threads: int = 1, **resources: Any) -> SweepConfig:
    trial = TrialConfig(threads=threads, optim=OptimConfig(batch_size=64))
    space = {"method.driver_weight": {"type": "float", "low": 0, "high": 1}}
    return SweepConfig(
        trial=trial, space=space, search=SearchConfig(trials=30), resources=ResourcesConfig(**{"max_concurrent": 4} | resources)
    )


@pytest.mark.parametrize(
    ("resources", "nodes", "slots", "workers", "own_process"),
    [
        ({}, [LAPTOP], 2, 1, True),
        ({"max_concurrent": 1}, [LAPTOP], 1, 1, True),
        ({"workers": 2}, [LAPTOP], 1, 2, False),
        ({"workers": 2, "cpus_per_worker": 0.5}, [LAPTOP], 2, 2, False),
        ({"workers": 3}, [LAPTOP], 0, 3, False),
        ({"workers": [1, 4]}, [LAPTOP], 1, 2, False),
        ({"workers": [1, 4], "slots": 2}, [LAPTOP], 2, 1, False),
        ({"workers": [1, 2], "slots": 2, "cpus_per_worker": 0.5}, [LAPTOP], 2, 2, False),
        ({"max_concurrent": None}, [LAPTOP], 2, 1, True),
        ({"max_concurrent": None, "gpus_per_worker": 1}, [GPU_NODE], 4, 1, True),
        ({"max_concurrent": None, "gpus_per_worker": 0.25}, [{"CPU": 64.0, "GPU": 8.0}], 30, 1, True),  # 30 trials
        ({"gpus_per_worker": 1}, [LAPTOP], 0, 1, True),
        ({"gpus_per_worker": 0.25, "max_concurrent": 100}, [GPU_NODE], 16, 1, True),
        ({"gpus_per_worker": 0.33, "max_concurrent": 100}, [{"CPU": 64.0, "GPU": 1.0}], 3, 1, True),
        ({"gpus_per_worker": 1}, [LAPTOP, GPU_NODE, GPU_NODE], 4, 1, False),  # the GPUs are elsewhere
        ({"gpus_per_worker": 1, "max_concurrent": 100}, [LAPTOP, GPU_NODE, GPU_NODE], 8, 1, False),
        ({"gpus_per_worker": 1, "workers": 8}, [LAPTOP, GPU_NODE, GPU_NODE], 1, 8, False),  # one group over two machines
        ({"gpus_per_worker": 1}, [GPU_NODE, GPU_NODE], 4, 1, True),  # the head has enough
        ({"gpus_per_worker": 1, "slots": 6}, [GPU_NODE, GPU_NODE], 6, 1, False),
    ],
)
def test_slots_are_what_the_machines_hold(
    resources: dict[str, Any], nodes: list[dict[str, float]], slots: int, workers: int, own_process: bool
) -> None:
    plan = arrange(sweep(**resources), nodes)
    assert (plan.slots, plan.workers, plan.own_process) == (slots, workers, own_process)


def test_where_more_machines_may_come_a_head_that_is_too_small_trains_nothing_itself() -> None:
    """Before, each slot reserved a GPU and the head's own resource together, which no machine has, and waited for ever."""
    assert not arrange(sweep(gpus_per_worker=1), [LAPTOP], more_may_come=True).own_process
    assert not arrange(sweep(max_concurrent=4), [LAPTOP], more_may_come=True).own_process
    assert arrange(sweep(max_concurrent=2), [LAPTOP], more_may_come=True).own_process


def test_a_worker_needs_its_threads_unless_something_else_is_said() -> None:
    assert needs_of_worker(sweep(threads=3)) == {"CPU": 3.0}
    assert needs_of_worker(sweep(threads=3, cpus_per_worker=0.5, gpus_per_worker=1)) == {"CPU": 0.5, "GPU": 1.0}


@given(
    least=st.integers(1, 5),
    more=st.integers(0, 4),
    cpus=st.sampled_from([0.5, 1, 2]),
    gpus=st.sampled_from([0, 1]),
    nodes=st.lists(st.fixed_dictionaries({"CPU": st.integers(0, 9), "GPU": st.integers(0, 4)}), min_size=1, max_size=4),
)
def test_what_is_arranged_fits(least: int, more: int, cpus: float, gpus: float, nodes: list[dict[str, float]]) -> None:
    workers = [least, least + more] if more else least
    plan: Arrangement = arrange(sweep(workers=workers, cpus_per_worker=cpus, gpus_per_worker=gpus), nodes)
    assert least <= plan.workers <= least + more
    assert 0 <= plan.slots <= 4
    for kind, need in (("CPU", cpus), ("GPU", gpus)):
        assert plan.slots * plan.workers * need <= sum(node[kind] for node in nodes)
    assert bool(plan.slots) == (plan.fitting >= least) or plan.own_process
