import pytest

from orchestrator.config.sweep_config import SweepConfig
from orchestrator.decide.virtual_sweep import run
from trainables.config_file import Origin, check


def test_a_virtual_sweep_counts_time_and_waiting() -> None:
    tree = {
        "trial": {"epochs": 4},
        "space": {"optim.lr": {"type": "float", "low": 0.001, "high": 1.0}},
        "search": {"trials": 6, "sampler": "random"},
        "scheduler": {"name": "none"},
    }
    slots = {"resources": {"max_concurrent": 4}}
    alone, crowd = (check(SweepConfig, tree | more, Origin("test")) for more in ({}, slots))
    done = run(alone, lambda settings, epoch: 0.5, slots=1, jitter=0)
    assert (done.wall, done.idle) == (24, 0)
    done = run(crowd, lambda settings, epoch: 0.5, slots=4, jitter=0)
    assert done.wall == 8  # four trials, then two
    assert done.idle == pytest.approx(1 - 24 / 32)
