"""Whole ablations, run as a user runs them: real Ray, MLflow and processes."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import mlflow
import pyarrow.parquet as pq
import pytest
from scipy import stats

from orchestrator import Ablation, run_ablation
from orchestrator.ablate import main
from orchestrator.ledger.events import Kind
from orchestrator.ledger.ledger import read_ledger
from orchestrator.verify import main as verify

PLAN = """
trial:
  epochs: 3
  data: {source: generated, meta_per_class: 2}
  classifier: {name: small_cnn, widths: [4, 8]}
  method: {name: cross_entropy}
ablation:
  variants:
    plain: {}
    focal: {method.name: focal}
    balanced: {optim.sampler: class_balanced}
  reference: plain
  seeds: 3
  published: {focal: 0.5}
resources: {max_concurrent: 2}
"""

REPEATED = """
trial:
  epochs: 1
  data: {source: generated, meta_per_class: 2}
  classifier: {name: small_cnn, widths: [4, 8]}
space: {optim.lr: {type: float, low: 0.01, high: 0.1}}
search: {trials: 1, references: {cross_entropy: {method.name: cross_entropy, tuned: true}}}
scheduler: {name: none}
ablation: {kind: searches, reference: cross_entropy, seeds: 2, metric: val/acc}
resources: {max_concurrent: 1}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ablation")
    (folder / "plan.yaml").write_text(PLAN)
    return folder


@pytest.fixture(scope="module")
def whole(home: Path) -> Ablation:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow uses what SQLAlchemy deprecates, and may be imported here first
        return run_ablation(home / "plan.yaml", results=home / "results", quiet=True)


def test_the_table_follows_from_the_table_of_trials(whole: Ablation) -> None:
    trials = pq.read_table(whole.folder / "trials.parquet").to_pylist()
    assert len(trials) == 9
    assert {row["role"] for row in trials} == {"reference"}
    scores = {name: [row["test/acc"] for row in trials if row["variant"] == name] for name in ("plain", "focal", "balanced")}
    lines = {row["name"]: row for row in whole.table.to_pylist()}
    for name, of in scores.items():
        assert lines[name]["mean"] == pytest.approx(sum(of) / 3)
    for name in ("focal", "balanced"):
        found = stats.ttest_rel(scores[name], scores["plain"])
        assert lines[name]["p_t"] == pytest.approx(found.pvalue)
        assert lines[name]["difference"] == pytest.approx(sum(scores[name]) / 3 - sum(scores["plain"]) / 3)
    assert lines["focal"]["minus_published"] == pytest.approx(lines["focal"]["mean"] - 0.5)


def test_the_test_set_is_read_once_for_each_trial_and_is_no_metric_of_an_epoch(whole: Ablation) -> None:
    events = read_ledger(whole.folder)
    readings = [event["trial_id"] for event in events if event["event"] == Kind.TEST_READ]
    assert sorted(readings) == sorted(row["trial_id"] for row in whole.trials.to_pylist())
    assert not any(name.startswith("test") for event in events if event["event"] == Kind.EPOCH for name in event["metrics"])


def test_variants_share_what_their_changes_do_not_touch(whole: Ablation) -> None:
    rows = {(row["variant"], row["seed"]): row for row in whole.trials.to_pylist()}
    things = ("split", "test", "weights", "order")
    for seed in range(3):
        plain, focal, balanced = (rows[name, seed] for name in ("plain", "focal", "balanced"))
        assert [plain[f"pairing/{thing}"] for thing in things] == [focal[f"pairing/{thing}"] for thing in things]
        shared = {thing for thing in things if plain[f"pairing/{thing}"] == balanced[f"pairing/{thing}"]}
        assert shared == {"split", "test", "weights"}
    for thing in ("split", "weights", "order"):
        assert len({rows["plain", seed][f"pairing/{thing}"] for seed in range(3)}) == 3
    assert len({row["pairing/test"] for row in rows.values()}) == 1


def test_tables_and_pictures_are_written(whole: Ablation) -> None:
    place = whole.folder / "ablation"
    assert sorted(path.name for path in place.iterdir()) == [
        "forest.pdf", "forest.svg", "table.csv", "table.md", "table.parquet", "table.tex",
    ]  # fmt: skip
    text = (place / "table.md").read_text()
    assert text.count("\n| plain | 3 |") == text.count("\n| focal | 3 |") == 1
    assert "With 3 seeds the sign-flip test cannot reach 0.05" in text
    assert "\\toprule" in (place / "table.tex").read_text()
    assert (place / "forest.svg").read_text().startswith("<?xml")


def test_what_an_ablation_leaves_is_verified_and_any_changed_file_is_named(
    whole: Ablation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(whole.folder, tmp_path / "copy"))
    assert verify([str(copy)]) == 0
    assert "the comparison of variants, as the ledger gives it" in capsys.readouterr().out
    for file in [copy / "sweep.yaml", *(copy / "ablation").iterdir()]:
        content = file.read_bytes()
        file.write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
        assert verify([str(copy)]) == 1, file
        assert str(file) in capsys.readouterr().err
        file.write_bytes(content)


def test_mlflow_has_a_run_for_the_ablation_each_variant_and_each_seed(home: Path, whole: Ablation) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow uses what SQLAlchemy deprecates
        client = mlflow.MlflowClient(f"sqlite:///{home / 'results' / 'mlflow.db'}")
        experiment = client.get_experiment_by_name("tailtune")
        runs = client.search_runs([experiment.experiment_id])
        by_kind = {
            kind: [run for run in runs if run.data.tags["tailtune.kind"] == kind] for kind in ("ablation", "variant", "trial")
        }
        (parent,) = by_kind["ablation"]
        tables = [file.path for file in client.list_artifacts(parent.info.run_id, "ablation")]
    assert "ablation/table.md" in tables
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert {run.data.tags["mlflow.parentRunId"] for run in by_kind["variant"]} == {parent.info.run_id}
    lines = {row["name"]: row for row in whole.table.to_pylist()}
    for run in by_kind["variant"]:
        assert run.data.metrics["mean"] == pytest.approx(lines[run.data.tags["variant"]]["mean"])
        seeds = [trial for trial in by_kind["trial"] if trial.data.tags["mlflow.parentRunId"] == run.info.run_id]
        assert {trial.data.tags["variant"] for trial in seeds} == {run.data.tags["variant"]}
        assert sum(trial.data.metrics["test/acc"] for trial in seeds) / 3 == pytest.approx(run.data.metrics["mean"])


def test_an_ablation_that_is_killed_and_resumed_has_the_same_table(
    home: Path, whole: Ablation, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [sys.executable, "-m", "orchestrator.ablate", "plan.yaml", "resources.max_concurrent=1", "--name", "cut"]
    process = subprocess.Popen(command, cwd=home, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    ledger, deadline = home / "results" / "cut" / "ledger.jsonl", time.monotonic() + 200
    while not (ledger.exists() and ledger.read_bytes().count(b'"event":"trial_end"') >= 4):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert main(["--name", "cut", "--results", str(home / "results"), "--resume"]) == 0
    output = capsys.readouterr().out
    assert "going on: 4 of" in output or "going on: 5 of" in output
    for name in ("table.csv", "table.md"):
        assert (home / "results" / "cut" / "ablation" / name).read_bytes() == (whole.folder / "ablation" / name).read_bytes()


def test_more_seeds_go_on_with_the_same_trials(home: Path, whole: Ablation, capsys: pytest.CaptureFixture[str]) -> None:
    before = whole.trials.to_pylist()
    results = str(home / "results")
    more = ["ablation.seeds=4", "resources.max_concurrent=1"]
    assert main([str(home / "plan.yaml"), *more, "--results", results, "--resume"]) == 0
    assert whole.trials.to_pylist()[:9] == before
    assert len(whole.trials) == 12
    assert "4 seeds" in capsys.readouterr().out
    assert main([str(home / "plan.yaml"), "ablation.seeds=3", "--results", results, "--resume"]) == 2
    assert "was begun with the seeds [0, 1, 2, 3], now they are [0, 1, 2]" in capsys.readouterr().err


def test_wrong_input_is_answered_before_anything_starts(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "sweep.yaml").write_text("search: {trials: 1}\n")
    assert main([str(home / "sweep.yaml")]) == 2
    assert "-m orchestrator.sweep" in capsys.readouterr().err
    assert main([]) == 2
    assert "PLAN.yaml is missing" in capsys.readouterr().err
    assert main([str(home / "plan.yaml"), "ablation.variants.focal.data.meta_per_class=5000", "--name", "no"]) == 2
    assert "ablation, variant focal: trial.data.meta_per_class is 5000" in capsys.readouterr().err
    assert not (home / "results" / "no").exists()


def test_a_search_is_repeated_whole_and_what_is_complete_does_not_run_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "repeated.yaml").write_text(REPEATED)
    results = tmp_path / "results"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow uses what SQLAlchemy deprecates, and may be imported here first
        assert main([str(tmp_path / "repeated.yaml"), "--results", str(results)]) == 0
    assert re.search(r"difficulty_net beats cross_entropy in \d of 2 searches", capsys.readouterr().out)
    folder = results / "repeated"
    scores = {}
    for number in (0, 1):
        rows = pq.read_table(folder / f"search_{number}" / "trials.parquet").to_pylist()
        assert [(row["variant"], row["seed"]) for row in rows] == [
            ("difficulty_net", 100 * number),
            ("cross_entropy", 100 * number),
        ]
        scores[number] = {row["variant"]: row["best/val/acc"] for row in rows}
        assert (folder / f"search_{number}" / "best" / "card.md").is_file()
    assert (folder / "ablation" / "forest.svg").is_file()

    ledgers = {path: path.read_bytes() for path in folder.rglob("ledger.jsonl")}
    assert len(ledgers) == 3
    assert main([str(tmp_path / "repeated.yaml"), "--results", str(results), "--json"]) == 0
    out, err = capsys.readouterr()
    assert "holds this very sweep already, with nothing left to do" in err
    answer = json.loads(out)
    again = run_ablation(tmp_path / "repeated.yaml", results=results, quiet=True)
    assert {path: path.read_bytes() for path in folder.rglob("ledger.jsonl")} == ledgers
    assert again.status == "finished"
    assert verify([str(folder)]) == 0
    assert "search_1: tables as the ledger gives them" in capsys.readouterr().out
    means = {row["name"]: row["mean"] for row in again.table.to_pylist()}
    assert {row["name"]: row["mean"] for row in answer["variants"]} == means
    assert means == {arm: pytest.approx((scores[0][arm] + scores[1][arm]) / 2) for arm in scores[0]}

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow uses what SQLAlchemy deprecates
        client = mlflow.MlflowClient(f"sqlite:///{results / 'mlflow.db'}")
        runs = client.search_runs([client.get_experiment_by_name("tailtune").experiment_id])
    kinds = {run.info.run_name: run.data.tags["tailtune.kind"] for run in runs if run.data.tags["tailtune.kind"] != "trial"}
    assert kinds.pop("difficulty_net") == kinds.pop("cross_entropy") == "variant"
    assert kinds == {"repeated": "ablation", "repeated/search_0": "sweep", "repeated/search_1": "sweep"}
    assert not (folder / "mlflow.db").exists()
