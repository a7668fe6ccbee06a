"""Trials of a ledger are trained again. The ledger is written here, from trials that were really trained."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.scheduler_config import AshaConfig
from orchestrator.config.search_config import SearchConfig
from orchestrator.config.sweep_config import SweepConfig
from orchestrator.ledger.ledger import Ledger, read_ledger
from orchestrator.outcome.repeat import compare, explanations
from orchestrator.rerun import main
from orchestrator.run.facts import own_program
from orchestrator.verify import main as verify
from trainables.config import TrialConfig
from trainables.config_file import dump_yaml
from trainables.data.profiles import exponential
from trainables.data_config import DigitsConfig
from trainables.engine.health import TrialEnded
from trainables.method_config import DifficultyNetConfig
from trainables.optim_config import OptimConfig
from trainables.trial_run import TrialRun

pytestmark = pytest.mark.slow
METHOD = DifficultyNetConfig(hidden_width=4, meta_lr=0.01)
TRIAL = TrialConfig(epochs=4, method=METHOD, data=DigitsConfig(n_max=20, imbalance_factor=5), device="cpu")
HEIR = TRIAL.model_copy(update={"method": METHOD.model_copy(update={"meta_lr": 0.1})})
WILD = TRIAL.model_copy(update={"optim": OptimConfig(lr=1e30)})
SWEEP = SweepConfig(trial=TRIAL, search=SearchConfig(trials=1), scheduler=AshaConfig(grace_epochs=1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a sweep with a trial, t0000, one that continued from its second epoch with another beta, t0001, one that
    diverged, t0002, and one that was never trained, t0003.
    """
    folder, run = tmp_path_factory.mktemp("results") / "demo", TrialRun()
    folder.mkdir()
    with Ledger(folder) as ledger:

        def suggest(trial_id: str, config: TrialConfig, **more: Any) -> None:
            ledger.append("suggest", trial_id=trial_id, role="search", variant="", seed=0, config=config.model_dump(), **more)

        def train(trial_id: str, until: int) -> None:
            while run.epoch < until:
                metrics = run.run_epoch()
                ledger.append("epoch", trial_id=trial_id, epoch=run.epoch, attempt=1, metrics=metrics)

        start = {"config": SWEEP.model_dump(), "split_sha256": "", "split": {}, "class_counts": exponential(10, 20, 5)}
        ledger.append("sweep_start", **start, **own_program().facts)
        suggest("t0000", TRIAL)
        run.start(TRIAL)
        train("t0000", 2)
        run.save(folder / "state")
        train("t0000", 4)
        suggest("t0001", HEIR, parent={"trial_id": "t0000", "epoch": 2})
        run.load(folder / "state", HEIR)
        train("t0001", 4)
        suggest("t0002", WILD)
        run.start(WILD)
        with pytest.raises(TrialEnded):
            train("t0002", 4)
        ledger.append("trial_start", trial_id="t0002", attempt=1)
        ledger.append("trial_end", trial_id="t0002", status="diverged", stop_reason="too wild", own_fault=True)
        suggest("t0003", TRIAL)
    return folder


def altered(folder: Path, place: Path, change: dict[str, Any]) -> Path:
    """A results folder whose ledger says something else of some events: by number, what is put in."""
    place.mkdir()
    with Ledger(place) as ledger:
        for number, event in enumerate(read_ledger(folder)):
            fields = {key: value for key, value in event.items() if key not in ("event", "n", "time", "prev")}
            ledger.append(event["event"], **fields | change.get(str(number), {}))
    return place


def test_a_trial_and_one_that_continued_from_it_are_bit_identical(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folder), "t0000"]) == 0
    assert "t0000: bit-identical in 4 epochs" in capsys.readouterr().out
    assert main([str(folder), "t0001"]) == 0
    out, err = capsys.readouterr()
    assert "t0001: bit-identical in 2 epochs" in out
    assert "t0000: epoch 2/2" in err  # its origin is trained first, as far as it went


def test_a_trial_that_diverged_diverges_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folder), "t0002"]) == 0
    assert "ended again by its own numbers: diverged: " in capsys.readouterr().out


def test_a_number_that_differs_is_named_with_what_may_explain_it(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    events = read_ledger(folder)
    third = next(event for event in events if event["event"] == "epoch" and event["epoch"] == 3)
    metrics = third["metrics"] | {"train/loss": third["metrics"]["train/loss"] + 2**-40, "val/acc_many": 0.5}
    versions = events[0]["versions"] | {"torch": "1.0"}
    other = altered(
        folder, tmp_path / "demo", {"0": {"versions": versions}, str(third["n"]): {"metrics": metrics, "shared_by": 4}}
    )
    assert main([str(other), "t0000"]) == 1
    out = capsys.readouterr().out
    assert "it was trained together with up to 3 others (resources.fused)" in out
    assert "t0000: not the same from epoch 3 on, of 4" in out
    assert "train/loss" in out
    assert "val/acc_many 0.5 in the ledger, no number now" in out
    assert "val/acc " not in out
    assert "torch 1.0 then, " in out
    assert main([str(other), "t0000", "--export", "--json"]) == 1
    out, err = capsys.readouterr()
    assert "nothing was exported" in err
    answer = json.loads(out)
    assert (answer["identical"], answer["exported"], answer["epochs"]) == (False, None, 4)
    assert [difference["metric"] for difference in answer["first_differences"]] == ["train/loss", "val/acc_many"]
    assert answer["largest"]["train/loss"] == 2**-40
    assert not (other / "export_t0000").exists()


def test_a_variable_that_changes_the_last_digits_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)
    then = own_program().facts
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
    assert explanations(then, own_program().facts) == ["variables: none then, ATEN_CPU_CAPABILITY=default now"]


def test_a_trial_whose_origin_ends_before_it_continues_is_not_the_same(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suggested = next(e for e in read_ledger(folder) if e["event"] == "suggest" and e["trial_id"] == "t0000")
    other = altered(folder, tmp_path / "demo", {str(suggested["n"]): {"config": WILD.model_dump()}})
    assert main([str(other), "t0001", "--json"]) == 1
    out, err = capsys.readouterr()
    answer = json.loads(out)
    assert (answer["identical"], answer["epochs"], answer["exit_code"]) == (False, 0, 1)
    assert "t0001: the ledger has 2 epochs, now there are 0" in err
    assert "now a trial from whose state it continued ended by its own numbers: t0000 in epoch 1, diverged: " in err
    assert answer["ended"].startswith("t0000 in epoch 1, diverged: ")


def test_a_trial_that_ends_in_another_way_is_not_the_same(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suggested = next(e for e in read_ledger(folder) if e["event"] == "suggest" and e["trial_id"] == "t0002")
    other = altered(folder, tmp_path / "demo", {str(suggested["n"]): {"config": TRIAL.model_dump()}})
    assert main([str(other), "t0002"]) == 1
    assert "in the sweep its own numbers ended it, and now they do not: too wild" in capsys.readouterr().out


def test_the_model_of_a_trial_whose_state_is_gone_is_exported_again(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = Path(shutil.copytree(folder, tmp_path / "demo"))
    (place / "sweep.yaml").write_text(dump_yaml(SWEEP.model_dump()))
    assert main([str(place), "t0001", "--export"]) == 0
    assert f"exported {place / 'export_t0001'}" in capsys.readouterr().out
    metrics = json.loads((place / "export_t0001" / "metrics.json").read_text())
    recorded = {
        event["epoch"]: event["metrics"] for event in read_ledger(place) if event.get("trial_id") == "t0001" and "epoch" in event
    }
    assert metrics["best"]["val/acc"] == max(found["val/acc"] for found in recorded.values())
    assert (metrics["trial_id"], metrics["test"]) == ("t0001", None)
    assert verify([str(place / "export_t0001")]) == 0
    assert {path.name for path in place.iterdir()} == {"ledger.jsonl", "ledger.head", "sweep.yaml", "state", "export_t0001"}
    assert main([str(place), "t0001", "--export"]) == 2  # it is not overwritten
    assert "exists already" in capsys.readouterr().err


def test_what_cannot_be_trained_again_is_refused(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folder), "t0003"]) == 2
    assert "t0003 has no epoch (running)" in capsys.readouterr().err
    assert main([str(folder), "t0009"]) == 2
    assert f"'t0009' is no trial of {folder}; allowed: t0000 to t0003" in capsys.readouterr().err
    assert main([str(folder), "t0000", "--out", str(tmp_path / "x")]) == 2
    assert "--export is missing; allowed: both, or none of them" in capsys.readouterr().err


def test_times_and_what_is_no_number_do_not_count() -> None:
    recorded = {1: {"val/acc": 0.5, "val/acc_few": None, "time/epoch_s": 1.0}}
    found = compare(recorded, {1: {"val/acc": 0.5, "val/acc_few": float("nan"), "time/epoch_s": 2.0, "system/cpu_cores": 1.0}})
    assert (found.is_identical, found.epochs, found.numbers) == (True, 1, 2)
    other = compare(recorded, {1: {"val/acc": 0.25, "val/acc_few": 0.0, "meta/acc": 1.0}})
    assert [difference.metric for difference in other.first] == ["val/acc", "val/acc_few", "meta/acc"]
    assert other.largest == {"val/acc": 0.25, "val/acc_few": float("inf"), "meta/acc": float("inf")}
