from typing import Any

import pytest
from simulation import EPOCHS, Simulation, formula, sweep

from orchestrator.config.sweep_config import SweepConfig
from orchestrator.run.disk import LEDGER_BYTES, disk_use, in_words


class Watched(Simulation):
    """Notes how many states there were at a time."""

    most_states = 0

    def __init__(self, config: SweepConfig) -> None:
        """With curves that fall in the last epoch: trials that have ended keep two states."""
        super().__init__(config, value=lambda settings, epoch: formula(settings, epoch) - (epoch == EPOCHS))

    def _append(self, event: str, **fields: Any) -> Any:
        record = super()._append(event, **fields)
        self.most_states = max(self.most_states, len(self.states))
        return record


@pytest.mark.parametrize("keep", ["best", "all"])
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("scheduler", ["none", "asha", "promotion", "pbt"])
def test_no_sweep_has_more_states_at_a_time_than_estimated_and_the_estimate_is_near(
    scheduler: str, deterministic: bool, keep: str
) -> None:
    confirm = None if scheduler == "pbt" else {"top": 2, "seeds": 3}
    config = sweep(scheduler, trials=24, keep=keep, deterministic=deterministic, confirm=confirm)
    simulation = Watched(config)
    simulation.run()
    most = disk_use(config, simulation.slots, 1, 1).num_states
    assert simulation.most_states <= most
    assert most <= 2.5 * simulation.most_states


def test_the_estimate_knows_that_a_small_space_repeats_its_configurations() -> None:
    few = {"method.hidden_width": {"type": "int", "low": 1, "high": 12}}
    plain = sweep("none", trials=40)
    config = plain.model_validate(plain.model_dump() | {"space": few})
    simulation = Watched(config)
    simulation.run()
    most = disk_use(config, simulation.slots, 1, 1).num_states
    assert simulation.most_states <= most <= 2.5 * simulation.most_states


def test_the_estimate_holds_for_a_comparison_of_arms() -> None:
    confirm = {"top": 2, "seeds": 3}
    slow = {"tuned": True, "optim": {"lr": 0.001}}
    config = sweep("none", trials=12, confirm=confirm, references={"slow": slow, "fast": slow | {"optim": {"lr": 0.2}}})
    simulation = Watched(config)
    events = simulation.run()
    assert sum(event["event"] == "suggest" for event in events) == 3 * (12 + 2 * 3)
    most = disk_use(config, simulation.slots, 1, 1).num_states
    assert simulation.most_states <= most <= 2.5 * simulation.most_states


def test_states_and_records_add_up() -> None:
    plain = sweep("none", trials=9)
    config = plain.model_copy(update={"tracking": plain.tracking.model_copy(update={"mlflow": False})})
    small, large = (disk_use(config, 3, 100, classes) for classes in (0, 10))
    assert small.record_bytes == config.num_trials() * 9 * LEDGER_BYTES
    assert small.total == small.num_states * 100 + small.record_bytes
    assert large.total > small.total
    assert disk_use(plain, 3, 100, 0).total > small.total  # MLflow's database


def test_sizes_in_words() -> None:
    assert [in_words(number) for number in (2**20, 2**30, 5 * 2**28)] == ["1.0 MiB", "1.00 GiB", "1.25 GiB"]
