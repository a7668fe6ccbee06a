"""python -m orchestrator.suspects, on results that are written here, of a trial that was really trained, on image files."""

import csv
import hashlib
import json
import pickle
import re
from pathlib import Path
from typing import Any

import miniatures
import numpy as np
import pytest

from orchestrator.config.scheduler_config import AshaConfig
from orchestrator.config.search_config import SearchConfig
from orchestrator.config.sweep_config import SweepConfig
from orchestrator.export import main as export
from orchestrator.ledger.ledger import Ledger
from orchestrator.run.facts import own_program
from orchestrator.run.sealed_test import examine_of
from orchestrator.suspects import best_epoch_of, main
from orchestrator.verify import main as verify
from trainables.config import TrialConfig
from trainables.config_file import dump_yaml
from trainables.suspects import examine
from trainables.trial_run import TrialRun

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The results of a sweep of one trial on images in folders; it was exported."""
    images = tmp_path / "images"
    counts = miniatures.own_images(images, endings=(".png",))
    data = {
        "source": "image_folder",
        "root": str(images),
        "profile": "natural",
        "loading": "memory",
        "image_size": 8,
        "augment": [],
        **counts,
    }
    settings = {
        "epochs": 2,
        "data": data,
        "method": {"name": "meta_weight_net"},
        "bilevel": {"meta_batch_size": 3},
        "device": "cpu",
    }
    trial = TrialConfig.model_validate(settings)
    sweep = SweepConfig(trial=trial, search=SearchConfig(trials=1), scheduler=AshaConfig(grace_epochs=1))
    folder, run = tmp_path / "results" / "demo", TrialRun()
    folder.mkdir(parents=True)
    (folder / "sweep.yaml").write_text(dump_yaml(sweep.model_dump()))
    run.start(trial)
    facts = {"split_sha256": run.loaded.data.sha256, "class_counts": run.loaded.data.class_counts.tolist(), "split": {}}
    with Ledger(folder) as ledger:
        program = {name: value for name, value in own_program().facts.items() if name != "changes"}
        ledger.append("sweep_start", config=sweep.model_dump(), **facts, **program)
        config = trial.model_dump()
        ledger.append("suggest", trial_id="t0000", role="search", variant="", seed=0, config=config)
        ledger.append("trial_start", trial_id="t0000", attempt=1)
        for epoch in (1, 2):
            metrics = run.run_epoch()
            place = f"checkpoints/t0000/{epoch:04d}-1"
            digest = run.save(folder / place, is_complete=epoch == 2)
            ledger.append("checkpoint", trial_id="t0000", epoch=epoch, path=place, sha256=digest)
            ledger.append("epoch", trial_id="t0000", epoch=epoch, attempt=1, metrics=metrics)
        ledger.append("trial_end", trial_id="t0000", status="finished", stop_reason=None)
    assert export([str(folder)]) == 0
    return folder


def rows_in(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(file.read_text().splitlines()))


def answer_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    capsys.readouterr()
    code = main([*arguments, "--json"])
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert answer["exit_code"] == code
    return answer


def test_from_export_to_list_to_folds(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The export has a list already; the command makes the same one again, and another one by cross-validation."""
    exported = rows_in(folder / "best" / "suspects.csv")
    split = json.loads((folder / "best" / "split.json").read_text())["sets"]["train"]
    names = {f"{place}/{name}" for place, listed in split for name in listed}
    assert {row["image"] for row in exported} == names
    root = folder.parents[1] / "images"
    assert all((root / row["image"]).is_file() and row["image"].split("/")[0] == row["given"] for row in exported)
    assert all(0 < float(row["weight"]) < 1 for row in exported)

    answer = answer_of(capsys, str(folder))
    assert (answer["exit_code"], answer["list"]) == (0, str(folder / "suspects" / "suspects.csv"))
    assert rows_in(folder / "suspects" / "suspects.csv") == exported
    assert (answer["images"], answer["judged"], answer["shown"]) == (len(names),) * 3
    text = (folder / "suspects" / "suspects.html").read_text()
    assert text.count("data:image/jpeg;base64,") == len(names)

    answer = answer_of(capsys, str(folder), "--folds", "3")
    assert answer["exit_code"] == 0
    folds = rows_in(folder / "suspects_3_folds" / "suspects.csv")
    assert {row["image"] for row in folds} == names
    assert {row["fold"] for row in folds} == {"1", "2", "3"}
    for name in ("cat", "dog", "fish"):
        counts = np.bincount([int(row["fold"]) for row in folds if row["given"] == name], minlength=4)[1:]
        assert counts.max() - counts.min() <= 1

    assert main([str(folder)]) == 0  # a list may be made anew
    assert verify([str(folder)]) == 0
    capsys.readouterr()
    file = folder / "best" / "suspects.csv"
    file.write_text(file.read_text().replace("cat", "dog", 1))
    assert verify([str(folder)]) == 1
    assert f"does not match: {file} was changed" in capsys.readouterr().err
    assert answer_of(capsys, str(folder))["exit_code"] == 1  # nothing is said about a model that may be another one


def test_what_is_wrong_is_refused_before_anything_is_trained(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: hashlib.sha256(path.read_bytes()).digest() for path in folder.rglob("*") if path.is_file()}
    for words, expected in {
        ("--folds", "1"): r"--folds is 1; allowed: 2 to \d+, the number of training images",
        ("--folds", "999"): r"--folds is 999; allowed: 2 to \d+",
        ("--out", str(folder / "best")): "holds card.md; allowed: a new folder, or that of an earlier list",
        ("--out", str(folder / "sweep.yaml")): "which is a file; allowed: a new folder",
    }.items():
        answer = answer_of(capsys, str(folder), *words)
        assert answer["exit_code"] == 2
        assert re.search(expected, answer["error"]), answer["error"]
    assert answer_of(capsys, str(folder / "nowhere"))["exit_code"] == 2
    assert {path: hashlib.sha256(path.read_bytes()).digest() for path in folder.rglob("*") if path.is_file()} == before
    (folder / "best").rename(folder / "best.1")
    answer = answer_of(capsys, str(folder))
    (command,) = re.findall(r"`.*? -m orchestrator.export (.*?)`", answer["error"])
    assert export([command]) == 0
    assert answer_of(capsys, str(folder))["exit_code"] == 0


def test_where_the_state_is_gone_there_are_no_weights_and_a_note(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for state in (folder / "checkpoints").rglob("state.pt"):
        state.unlink()
    assert main([str(folder)]) == 0
    assert "note: the list has no weights" in capsys.readouterr().err
    assert {row["weight"] for row in rows_in(folder / "suspects" / "suspects.csv")} == {""}


def test_other_images_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = folder.parents[1] / "images"
    next((root / "cat").iterdir()).unlink()
    answer = answer_of(capsys, str(folder))
    assert answer["exit_code"] == 1
    assert "the images or labels are not those of" in answer["error"]
    assert not (folder / "suspects").exists()


def test_a_machine_of_a_cluster_finds_the_same_from_what_is_sent_to_it(folder: Path) -> None:
    model, best = folder / "best" / "model.safetensors", best_epoch_of(folder, "t0000")
    here, there = examine(model, best), pickle.loads(pickle.dumps(examine_of(model.read_bytes(), best)))
    assert there.names == here.names
    assert there.thumbnails == here.thumbnails
    assert all(np.array_equal(*pair) for pair in zip(there.judged, here.judged, strict=True))
