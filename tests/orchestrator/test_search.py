from collections.abc import Iterator
from pathlib import Path

import pytest
from optuna.trial import TrialState

from orchestrator.config import SEARCHED, SweepConfig
from orchestrator.ledger import Ledger, read_ledger
from orchestrator.search import StudySearch, trial_status


@pytest.fixture
def search(config: SweepConfig, tmp_path: Path) -> Iterator[StudySearch]:
    with Ledger(tmp_path) as ledger:
        yield StudySearch(config, ledger)


def epoch(number: int, objective: float) -> dict[str, object]:
    return {"epoch": number, "epochs": 40, "objective": objective, "training_iteration": number}


def test_the_references_come_first_and_only_what_lies_in_the_space_is_told(search: StudySearch) -> None:
    suggestions = [search.suggest(f"tune{i}") for i in range(4)]
    assert [suggestion["variant"] for suggestion in suggestions] == ["cross_entropy", "paper", SEARCHED, SEARCHED]
    assert [suggestion["trial_id"] for suggestion in suggestions] == ["t0000", "t0001", "t0002", "t0003"]
    assert suggestions[0]["trial"]["method"] == {"name": "cross_entropy"}
    assert suggestions[1]["trial"]["method"]["driver_weight"] == 0.3
    assert len(search._ot_study.trials) == 3  # all but plain cross-entropy
    assert search._ot_study.trials[0].params["method.hidden_width"] == 16


def test_every_suggestion_is_in_the_ledger_with_its_whole_configuration(search: StudySearch, tmp_path: Path) -> None:
    suggestions = [search.suggest(f"tune{i}") for i in range(3)]
    assert [event["config"] for event in read_ledger(tmp_path)] == [suggestion["trial"] for suggestion in suggestions]


def test_trials_end_in_the_study_as_they_ended_in_the_sweep(search: StudySearch) -> None:
    for i in range(6):
        search.suggest(f"tune{i}")
    search.on_trial_result("tune0", epoch(1, 0.9))
    search.on_trial_complete("tune0", epoch(40, 0.9))  # plain cross-entropy: not in the study
    search.on_trial_complete("tune1", epoch(40, 0.8))
    search.on_trial_complete("tune2", epoch(15, 0.6))
    search.on_trial_complete("tune3", {**epoch(3, float("nan")), "ended": "diverged", "reason": "train/loss became nan"})
    search.on_trial_complete("tune4", None, error=True)
    search.on_trial_complete("tune5", epoch(40, 0.5), error=True)
    states = [(trial.state, trial.value) for trial in search._ot_study.trials]
    assert states == [
        (TrialState.COMPLETE, 0.8),
        (TrialState.PRUNED, 0.6),
        (TrialState.FAIL, None),
        (TrialState.FAIL, None),
        (TrialState.FAIL, None),
    ]


def test_an_epoch_without_a_finite_objective_is_not_reported(search: StudySearch) -> None:
    search.suggest("tune0")
    search.suggest("tune1")
    search.on_trial_result("tune1", epoch(1, float("nan")))
    assert search._ot_study.trials[0].intermediate_values == {}


def test_a_status_is_read_from_the_last_result() -> None:
    assert trial_status(epoch(40, 0.5)) == "finished"
    assert trial_status(epoch(39, 0.5)) == "stopped_early"
    assert trial_status({**epoch(40, 0.5), "ended": "diverged"}) == "diverged"
    assert trial_status({**epoch(40, 0.5), "ended": "failed"}) == "failed"
    assert trial_status({}) == trial_status(epoch(40, 0.5), error=True) == "failed"
