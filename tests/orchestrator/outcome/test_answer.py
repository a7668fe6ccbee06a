"""What programs are told of a sweep, from ledgers of sweeps in virtual time."""

from pathlib import Path

import pytest
from recorded import DIGITS, lively, record_virtual, sweep_in

from orchestrator.config.sweep_config import read_sweep
from orchestrator.decide.virtual_sweep import run
from orchestrator.ledger.events import Kind
from orchestrator.ledger.ledger import Ledger, LedgerError, read_ledger
from orchestrator.outcome.answer import outcome_of

ABLATION = DIGITS.parent / "ablation_lambda.yaml"


def resume(ledger: Ledger) -> None:
    ledger.append(Kind.SWEEP_RESUME, segment=2, config=ledger.events[0]["config"], git_commit=None, versions={})


def test_a_sweep_is_told_with_its_best_trial_and_the_references(tmp_path: Path) -> None:
    folder = sweep_in(tmp_path)
    found = outcome_of(folder)
    values: dict[str, float] = {}
    for event in read_ledger(folder):
        if event["event"] == "epoch":
            values[event["trial_id"]] = max(values.get(event["trial_id"], 0), event["metrics"]["val/acc"] or 0)
    ended = {event["trial_id"]: event["status"] for event in read_ledger(folder) if event["event"] == "trial_end"}
    finished = {trial_id: value for trial_id, value in values.items() if ended[trial_id] == "finished"}
    assert (found["status"], found["complete"], found["folder"]) == ("finished", True, str(folder))
    assert sum(found["trials"].values()) == len(ended) == 8
    assert found["best"]["val/acc"] == max(finished.values()) == finished[found["best"]["trial_id"]]
    assert {name: row["val/acc"] for name, row in found["references"].items()} == {
        "cross_entropy": values["t0000"],
        "paper": values["t0001"],
    }
    assert (found["confirmation"], found["exported"], found["test"]) == (None, None, None)


def test_an_export_and_its_reading_count_until_the_sweep_goes_on(tmp_path: Path) -> None:
    folder = sweep_in(tmp_path)
    with Ledger(folder) as ledger:
        metrics = {"best/val/acc": 0.7, "test/acc": 0.6}
        ledger.append(Kind.EXPORT, trial_id="t0003", path="/somewhere/best", metrics=metrics)
        found = outcome_of(folder)
        assert (found["exported"], found["test"]) == ("/somewhere/best", {"test/acc": 0.6})
        resume(ledger)
        found = outcome_of(folder)
        assert (found["exported"], found["test"], found["status"], found["complete"]) == (None, None, "running", False)


def test_an_ablation_has_variants_as_soon_as_they_are_compared(tmp_path: Path) -> None:
    config, folder = read_sweep(ABLATION, ["ablation.seeds=2", "trial.epochs=2"]), tmp_path / "demo"
    record_virtual(folder, config, run(config, lively, 2))
    found = outcome_of(folder)
    assert found["variants"] is None
    assert "best" not in found
    with Ledger(folder) as ledger:
        ledger.append(Kind.COMPARE, path="/x", rows=[{"name": "lambda_0", "mean": 0.5}])
        assert outcome_of(folder)["variants"] == [{"name": "lambda_0", "mean": 0.5}]
        resume(ledger)
    assert outcome_of(folder)["variants"] is None


def test_without_a_sweep_there_is_no_outcome(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="holds no sweep"):
        outcome_of(tmp_path)
