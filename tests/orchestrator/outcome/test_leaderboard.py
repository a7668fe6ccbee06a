"""Rows for public tables of results; the ledgers are written by hand."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from recorded import DIGITS

from orchestrator.config.sweep_config import read_sweep
from orchestrator.ledger.events import Event
from orchestrator.ledger.ledger import Ledger, read_ledger
from orchestrator.outcome.leaderboard import write_leaderboard
from orchestrator.report.__main__ import main as report
from trainables.config_file import ConfigError

CONFIG = read_sweep(DIGITS).model_dump()


def ledger(folder: Path, trials: dict[str, dict[str, Any]], chosen: str | None, **config: Any) -> list[Event]:
    """A ledger with trials, each with what was suggested and `test`, the accuracy on the sealed test set if it was read; `plain`
    is the share of all its images, `status` how the trial ended.
    """
    folder.mkdir()
    with Ledger(folder) as writing:
        start = {
            "split_sha256": "abc",
            "split": {"test": list(range(500))},
            "class_counts": [],
            "git_commit": None,
            "versions": {},
        }
        writing.append("sweep_start", config=CONFIG | config, **start)
        for trial_id, trial in trials.items():
            given = {key: value for key, value in trial.items() if key not in ("test", "plain", "status")}
            known = {"role": "search", "variant": "", "seed": 0} | given
            writing.append("suggest", trial_id=trial_id, config=CONFIG["trial"] | {"seed": known["seed"]}, **known)
            writing.append("trial_start", trial_id=trial_id, attempt=1)
            writing.append("epoch", trial_id=trial_id, epoch=1, attempt=1, metrics={"val/acc": 0.5})
            status = trial.get("status", "finished")
            writing.append("trial_end", trial_id=trial_id, status=status, stop_reason=None, best_epoch=1, best_value=0.5)
            if "test" in trial:
                plain = trial.get("plain", trial["test"])
                test = {"test/acc": trial["test"], "test/plain_acc": plain, "test/acc_many": None, "test/acc_few": 0.25}
                writing.append("test_read", trial_id=trial_id, metrics=test)
        if chosen:
            writing.append("export", trial_id=chosen, path=str(folder / "best"), metrics={})
    return list(read_ledger(folder))


def rows_of(folder: Path, events: list[Event]) -> list[dict[str, Any]]:
    """The rows that are written."""
    place, table = write_leaderboard(folder, events)
    rows: list[dict[str, Any]] = json.loads(place.read_text())
    assert all(f"| {row['value']} |" in table.read_text() for row in rows)
    return rows


def test_a_sweep_publishes_its_choice_with_wilsons_interval_and_no_other_reading(tmp_path: Path) -> None:
    events = ledger(tmp_path / "demo", {"t0000": {"test": 0.9}, "t0001": {"test": 0.8}}, "t0001")
    whole, few = rows_of(tmp_path / "demo", events)
    assert (whole["value"], whole["num_seeds"], whole["trials"]) == (80.0, 1, ["t0001"])
    # Wilson's interval of 400 of 500, from statsmodels.stats.proportion.proportion_confint(400, 500, method="wilson")
    assert (whole["low"], whole["high"]) == (76.27, 83.27)
    assert (whole["dataset"], whole["model"]) == ("digits, imbalance factor 50", "difficulty_net, small_cnn")
    assert (few["value"], few["low"], few["interval"]) == (25.0, None, None)
    assert whole["split_sha256"] == "abc"


def test_a_confirmed_choice_has_the_mean_over_its_fresh_seeds(tmp_path: Path) -> None:
    confirm = {"role": "confirm", "confirms": "t0000"}
    trials = {"t0000": {"test": 0.99}} | {
        f"t000{seed}": {**confirm, "seed": seed, "test": test} for seed, test in ((1, 0.7), (2, 0.8), (3, 0.9))
    }
    whole = rows_of(tmp_path / "demo", ledger(tmp_path / "demo", trials, "t0003"))[0]
    half = 4.302652729911275 * 10 / math.sqrt(3)  # Student's t with 2 degrees of freedom, from a table; the sd is 10 points
    assert (whole["value"], whole["num_seeds"], whole["trials"]) == (80.0, 3, ["t0001", "t0002", "t0003"])
    assert (whole["low"], whole["high"]) == (round(80 - half, 2), round(80 + half, 2))


def test_an_ablation_publishes_each_variant(tmp_path: Path) -> None:
    trials = {
        f"t000{number}": {"role": "reference", "variant": variant, "seed": seed, "test": 0.5 + 0.1 * number}
        for number, (variant, seed) in enumerate((("focal", 0), ("focal", 1), ("ldam", 0), ("ldam", 1)))
    }
    rows = rows_of(tmp_path / "demo", ledger(tmp_path / "demo", trials, None, ablation={}))
    found = {row["model"]: row["value"] for row in rows if row["metric"].endswith("mean over classes")}
    assert found == {"difficulty_net, small_cnn (focal)": 55.0, "difficulty_net, small_cnn (ldam)": 75.0}


@pytest.mark.parametrize(("test", "plain", "has_interval"), [(0.25, 0.25, True), (0.25, 0.3, False)])
def test_only_a_share_of_all_test_images_has_wilsons_interval(
    tmp_path: Path, test: float, plain: float, has_interval: bool
) -> None:
    """A mean over classes with other numbers of images is none, nor is the accuracy of a band, even with the same value."""
    whole, few = rows_of(tmp_path / "demo", ledger(tmp_path / "demo", {"t0000": {"test": test, "plain": plain}}, "t0000"))
    assert (whole["interval"] is not None) == has_interval
    assert (few["value"], few["low"], few["high"], few["interval"]) == (25.0, None, None, None)


def test_a_run_without_a_result_is_not_published(tmp_path: Path) -> None:
    trials = {
        "t0000": {"role": "reference", "variant": "a|b", "seed": 0, "test": 0.5},
        "t0001": {"role": "reference", "variant": "a|b", "seed": 1, "test": 0.9, "status": "failed"},
        "t0002": {"role": "reference", "variant": "ldam", "seed": 0, "test": 0.9, "status": "failed"},
    }
    rows = rows_of(tmp_path / "demo", ledger(tmp_path / "demo", trials, None, ablation={}))
    assert [(row["value"], row["trials"]) for row in rows if row["metric"].endswith("mean over classes")] == [(50.0, ["t0000"])]
    lines = [line for line in (tmp_path / "demo" / "leaderboard.md").read_text().splitlines() if "a\\|b" in line]
    assert len(lines) == len(rows) == 2  # a name does not make a column


def test_a_mean_over_some_of_the_seeds_is_not_published(tmp_path: Path) -> None:
    """The export of the best run of an ablation has the test set read for the luckiest seed of one variant."""
    trials: dict[str, dict[str, Any]] = {
        f"t000{number}": {"role": "reference", "variant": variant, "seed": seed}
        for number, (variant, seed) in enumerate((("focal", 0), ("focal", 1), ("ldam", 0)))
    }
    trials["t0001"]["test"], trials["t0002"]["test"] = 0.9, 0.75
    rows = rows_of(tmp_path / "demo", ledger(tmp_path / "demo", trials, None, ablation={}))
    assert {row["model"] for row in rows} == {"difficulty_net, small_cnn (ldam)"}


def test_without_a_reading_there_is_nothing_to_publish(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = ledger(tmp_path / "demo", {"t0000": {}}, "t0000")
    with pytest.raises(ConfigError, match="has no reading of the sealed test set"):
        write_leaderboard(tmp_path / "demo", events)
    assert report([str(tmp_path / "demo"), "--leaderboard"]) == 2
    assert "allowed: a sweep that has exported its best trial" in capsys.readouterr().err
    assert not (tmp_path / "demo" / "leaderboard.json").exists()
