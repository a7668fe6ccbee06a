"""The sweeps that ship: each plans on a small copy of the folder that it is made for."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import miniatures
import pytest

from orchestrator.config.sweep_config import apply_changes, read_sweep
from orchestrator.ledger.ledger import read_ledger
from orchestrator.run import estimate
from orchestrator.sweep import main
from trainables.method_config import METHOD_SETTINGS
from trainables.stage_config import STAGE_SETTINGS

SPACES = Path(__file__).parents[3] / "search_spaces"
SMALL = [
    "trial.data.image_size=32",
    "trial.optim.batch_size=6",
    "trial.bilevel.meta_batch_size=4",
    "trial.compute.readers=0",
]


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Plans a sweep with changes, its results to be in a folder of the test's own; a plan rests on one timed step."""
    monkeypatch.setattr(estimate, "TIMED_S", 0.0)

    def run(name: str, *overrides: str) -> int:
        return main([str(SPACES / f"{name}.yaml"), *overrides, "--dry-run", "--results", str(tmp_path / "results")])

    return run


def settings_of(counts: dict[str, Any]) -> list[str]:
    return [f"trial.data.{key}={value}" for key, value in counts.items()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "smaller", "images"),
    [
        ("imagenet_lt", [], "21 training images in 3 classes, 9 to 5 a class"),
        ("places_lt", ["trial.classifier.depth=10"], "21 training images in 3 classes, 9 to 5 a class"),
        ("clothing1m", [], "69 training images in 14 classes"),
        ("own_images", ["trial.compute.readers=1"], "18 training images in 3 classes, 9 to 3 a class"),
    ],
)
def test_the_sweeps_on_files_plan_on_their_own_layout(
    name: str, smaller: list[str], images: str, plan: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = miniatures.LAYOUTS[name](tmp_path / "images")
    assert plan(name, f"trial.data.root={tmp_path / 'images'}", *settings_of(counts), *SMALL, *smaller) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert images in output
    assert "of training with" in output or "GPU time unknown here" in output
    assert "Nothing was started." in output
    assert not (tmp_path / "results").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "num_classes", "smaller"),
    [
        ("cifar10_lt", 10, "trial.classifier.depth=20"),
        ("cifar100_lt", 100, "trial.classifier.depth=20"),
        ("cifar100_lt_methods", 100, "trial.classifier={name: small_cnn, widths: [2, 2]}"),  # a step of each of 15 methods
    ],
)
def test_the_sweeps_on_cifar_plan_on_torchvision_s_layout(
    name: str,
    num_classes: int,
    smaller: str,
    plan: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    miniatures.cifar(tmp_path / "images", monkeypatch, num_classes)
    counts = {"n_max": 15, "imbalance_factor": 5, "meta_per_class": 2, "val_per_class": 3, "root": tmp_path / "images"}
    small = (smaller, "trial.optim.batch_size=16", "trial.data.download=false")
    assert plan(name, *settings_of(counts), *small) == 0
    assert f"training images in {num_classes} classes, 15 to 3 a class" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    "name",
    [
        "imagenet_lt",
        "places_lt",
        "clothing1m",
        "own_images",
        "cifar10_lt",
        "advisor_noise",
        "cifar100_lt",
        "cifar100_lt_methods",
    ],
)
def test_images_that_are_not_there_are_named_and_nothing_is_made(
    name: str, plan: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = [f"trial.data.root={tmp_path / 'nowhere'}"]
    if name.startswith(("cifar", "advisor")):  # these would be downloaded
        changes.append("trial.data.download=false")
    assert plan(name, *changes) == 2
    error = capsys.readouterr().err
    assert re.match(r"error: \S.*: trial\.data\.", error)
    assert "nowhere" in error
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_comparison_of_all_methods_on_digits_plans_and_has_a_row_for_each(
    plan: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan("methods") == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "208 trials (208 searched in 26 arms of 8) and 130 confirmations" in output
    config = read_sweep(SPACES / "methods.yaml")
    stages = {stage.name for arm in config.arms() for stage in arm.trial.stages}
    assert {arm.name for arm in config.arms()} >= METHOD_SETTINGS.keys()
    assert stages == STAGE_SETTINGS.keys()
    for row in (*METHOD_SETTINGS, *STAGE_SETTINGS.keys() - {"representation"}):
        assert f"│ {row} │ 8 │ " in output


@pytest.mark.slow
def test_the_head_of_own_images_says_how_to_keep_small_ones_in_memory(plan: Callable[..., int], tmp_path: Path) -> None:
    words = (SPACES / "own_images.yaml").read_text().split("\ntrial:")[0].split("few pixels:")[1].split("# Cost")[0].split()
    changes = [word for word in words if word.startswith("trial.")]
    assert len(changes) == 5
    counts = miniatures.own_images(tmp_path / "images")
    assert plan("own_images", f"trial.data.root={tmp_path / 'images'}", *settings_of(counts), *changes, *SMALL[1:3]) == 0


def test_a_text_in_the_clothes_of_an_image_is_found_before_anything_starts(
    plan: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = miniatures.own_images(tmp_path / "images")
    (tmp_path / "images" / "dog" / "06.jpg").write_text("a text")
    assert plan("own_images", f"trial.data.root={tmp_path / 'images'}", *settings_of(counts), *SMALL) == 2
    assert "dog/06.jpg: not an image that can be read (of no known format)" in capsys.readouterr().err


def test_pretrained_weights_are_looked_at_before_anything_starts(
    plan: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = miniatures.own_images(tmp_path / "images")
    changes = [f"trial.data.root={tmp_path / 'images'}", *settings_of(counts), *SMALL]
    assert plan("own_images", *changes, f"trial.classifier.weights={tmp_path / 'absent.pth'}") == 2
    assert "error: command line: trial.classifier.weights: " in (error := capsys.readouterr().err)
    assert "absent.pth cannot be read: No such file" in error


@pytest.mark.slow
def test_a_sweep_for_another_machine_can_be_planned_here(
    plan: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert plan("digits_lt", "resources.gpus_per_worker=1") == 0
    output = " ".join(capsys.readouterr().out.split())
    refusal = "resources.gpus_per_worker is 1, but torch sees no GPU here; allowed: 0"
    assert f"note: this machine would refuse it: command line: {refusal}" in output


@pytest.mark.slow
def test_the_papers_reference_on_digits_learns_weights_and_does_not_collapse() -> None:
    """With SGD, a step size of 10 ends near 0.77, and one of 1e-2 hardly moves theta."""
    from trainables.trial_run import TrialRun

    sweep = read_sweep(SPACES / "digits_lt.yaml", ["trial.epochs=20"])
    best: dict[str, float] = {}
    for name, changes in sweep.search.references.items():
        run = TrialRun()
        run.start(apply_changes(sweep.trial, changes, name))
        before = run.class_table()["weight"]
        metrics = [run.run_epoch() for _ in range(20)][-1]
        assert run.best is not None
        best[name] = run.best.metrics["val/acc"]
    assert best["paper"] > best["cross_entropy"] - 0.03
    assert metrics["meta/driver_loss"] < 0.1  # 0.22 at the beginning; 0.001 after 40 epochs
    moved = [abs(after - weight) for weight, after in zip(before, run.class_table()["weight"], strict=True)]
    assert max(moved) > 0.03


@pytest.mark.slow
def test_a_sweep_over_a_folder_of_own_images_that_were_moved_goes_on_and_exports_from_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = miniatures.own_images(tmp_path / "old")
    results = ["--results", str(tmp_path / "results")]
    changes = [
        *settings_of(counts),
        *SMALL,
        "trial.classifier.depth=10",
        "trial.epochs=3",
        "scheduler.name=none",
        "search.trials=1",
        "search.confirm={top: 1, seeds: 2}",
        "resources={max_concurrent: 1, gpus_per_worker: 0}",
        "tracking.mlflow=false",
        "checkpoint_interval=3",  # the state of a ResNet takes the disk a while
    ]
    begin = [str(SPACES / "own_images.yaml"), *changes, f"trial.data.root={tmp_path / 'old'}", "budget.wall_hours=1.0e-6"]
    assert main([*begin, *results]) == 1
    assert "budget.wall_hours" in capsys.readouterr().out
    (tmp_path / "old").rename(tmp_path / "new")
    go_on = [f"trial.data.root={tmp_path / 'new'}", "trial.compute.readers=1", "trial.threads=2", "budget.wall_hours=null"]
    assert main(["--resume", "--name", "own_images", *go_on, *results]) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "continues after epoch" in output
    assert "note: trial.threads was 1, is 2: trials that go on no longer equal undisturbed ones bit for bit" in output
    assert "test/acc of the exported model, read once" in output
    sweep = tmp_path / "results" / "own_images"
    assert {"config.yaml", "model.safetensors", "split.json"} <= {path.name for path in (sweep / "best").iterdir()}
    assert f"root: {tmp_path / 'new'}" in (sweep / "best" / "config.yaml").read_text()
    events = read_ledger(sweep)
    roots = [event["config"]["data"]["root"] for event in events if event["event"] == "suggest"]
    assert roots == [str(tmp_path / "old"), *[str(tmp_path / "new")] * 5]  # a trial, two confirmations of it and of the reference
    assert sum(event["event"] == "epoch" for event in events) == 6 * 3  # none was trained twice
