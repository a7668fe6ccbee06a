import math
import threading
from pathlib import Path
from typing import Any

import pytest

from orchestrator.trial import Slots, Trial
from trainables.config import CrossEntropyConfig, DifficultyNetConfig, OptimConfig, TrialConfig
from trainables.data_config import DigitsConfig
from trainables.methods import difficulty_net
from trainables.trial_run import TrialRun


def config_of(**changes: Any) -> dict[str, Any]:
    trial = TrialConfig(**{"epochs": 2, "method": CrossEntropyConfig()} | changes)
    return {"trial_id": "t0000", "variant": "search", "trial": trial.model_dump()}


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    trial = object.__new__(Trial)  # without Tune's own bookkeeping, which needs a cluster
    trial.setup(config_of(), Slots(1, tmp_path))
    return trial


def test_a_step_is_an_epoch_and_the_last_one_is_done(trial: Trial) -> None:
    first, second = trial.step(), trial.step()
    assert [(result["epoch"], result["done"]) for result in (first, second)] == [(1, False), (2, True)]
    assert second["objective"] == max(first["metrics"]["val/acc"], second["metrics"]["val/acc"])
    assert second["best_epoch"] in (1, 2)
    assert len(first["classes"]["accuracy"]) == 10


def test_a_reset_trial_equals_a_new_one(trial: Trial) -> None:
    first = trial.step()["metrics"]["train/loss"]
    assert trial.reset_config(config_of())
    assert trial.step()["metrics"]["train/loss"] == first


def test_a_saved_trial_is_continued(trial: Trial, tmp_path: Path) -> None:
    trial.step()
    trial.save_checkpoint(str(tmp_path / "checkpoint"))
    expected = trial.step()["metrics"]["train/loss"]
    trial.reset_config(config_of())
    trial.load_checkpoint(str(tmp_path / "checkpoint"))
    result = trial.step()
    assert (result["epoch"], result["metrics"]["train/loss"]) == (2, expected)


def test_a_diverged_trial_ends_with_the_reason_and_without_an_objective(trial: Trial) -> None:
    trial.reset_config(config_of(optim=OptimConfig(lr=1e30)))
    result = trial.step()
    assert result["done"]
    assert math.isnan(result["objective"])
    assert result["ended"] == "diverged"
    assert "became" in result["reason"]


def test_a_trial_whose_meta_gradient_is_dead_fails_with_the_reason(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    """The released code's mistake, in a whole trial."""
    scale = difficulty_net.scale_weights
    monkeypatch.setattr(difficulty_net, "scale_weights", lambda difficulty, how: scale(difficulty, how).detach())
    trial.reset_config(config_of(epochs=5, method=DifficultyNetConfig(hidden_width=4)))
    result = trial.step()
    while "ended" not in result:
        assert not result["done"]
        result = trial.step()
    assert result["ended"] == "failed"
    assert "the meta-gradient was exactly 0 in 20 consecutive updates" in result["reason"]


def test_slots_wait_for_each_other_but_not_for_ever(tmp_path: Path) -> None:
    threading.Timer(0.2, (tmp_path / "1.up").touch).start()
    assert Slots(2, tmp_path).wait_for_all(timeout_s=60)
    assert not Slots(3, tmp_path).wait_for_all(timeout_s=0.1)


def test_a_trial_that_cannot_begin_fails_alone_and_the_process_serves_the_next_one(trial: Trial) -> None:
    trial.reset_config(config_of(data=DigitsConfig(n_max=10_000)))
    result = trial.step()
    assert (result["ended"], result["done"], result["epoch"]) == ("failed", True, 1)
    assert "data.n_max" in result["reason"]
    trial.reset_config(config_of())
    assert "ended" not in trial.step()


def test_an_image_that_breaks_in_mid_trial_fails_that_trial_alone_and_leaves_no_checkpoint(
    trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial.step()

    def broken(*_: object) -> None:
        raise ValueError("data.root: a.png cannot be read")

    with monkeypatch.context() as patched:
        patched.setattr(TrialRun, "run_epoch", broken)
        result = trial.step()
    assert (result["ended"], result["reason"]) == ("failed", "data.root: a.png cannot be read")
    trial.save_checkpoint(str(tmp_path / "checkpoint"))
    assert not (tmp_path / "checkpoint").exists()
    trial.reset_config(config_of())
    assert "ended" not in trial.step()
