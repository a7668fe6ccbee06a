from dataclasses import replace
from pathlib import Path

import miniatures
import numpy as np
import pytest
from recorded import record
from rich.console import Console

from orchestrator.config.limits_config import BudgetConfig
from orchestrator.config.sweep_config import SweepConfig, read_sweep
from orchestrator.ledger.ledger import Ledger, read_ledger
from orchestrator.run.disk import DiskUse
from orchestrator.run.estimate import Estimate, Rehearsal
from orchestrator.terminal.lines import terminal_console
from orchestrator.terminal.plan import class_sizes, expected_cost, print_estimate, print_going_on, print_plan, print_start
from orchestrator.terminal.summary import print_outcome
from trainables.data import build_data
from trainables.data_config import ImageFolderConfig, NoiseConfig


def test_a_resumed_sweep_says_what_it_keeps_and_where_it_goes_on(config: SweepConfig, console: Console, tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        for trial_id in ("t0000", "t0001", "t0002", "t0003"):
            ledger.append("suggest", trial_id=trial_id, role="search", variant="", seed=0, config=config.trial.model_dump())
        for trial_id, epochs in {"t0000": 3, "t0001": 2, "t0002": 3}.items():
            ledger.append("trial_start", trial_id=trial_id, attempt=1)
            for epoch in range(1, epochs + 1):
                ledger.append(
                    "checkpoint", trial_id=trial_id, epoch=epoch, path=f"checkpoints/{trial_id}/{epoch:04d}-1", sha256=""
                )
        ledger.append("trial_end", trial_id="t0000", status="finished", stop_reason=None)
        ledger.append("trial_end", trial_id="t0001", status="interrupted", stop_reason=None)
        ledger.append("decide", trial_id="t0002", epoch=3, action="pause")
    print_going_on(console, read_ledger(tmp_path))
    expected = "going on: 1 of 4 trials ended, t0001 continues after epoch 2, t0003 begins, 1 is paused"
    assert console.export_text().strip() == expected


def test_notes_about_the_data_are_shown_before_the_start(config: SweepConfig, console: Console, tmp_path: Path) -> None:
    miniatures.own_images(tmp_path)
    (tmp_path / "cat" / "[red]scan.heic").write_text("something")
    data = ImageFolderConfig(root=str(tmp_path), meta_per_class=1, val_per_class=1, test_per_class=2)
    print_start(console, "demo", config, build_data(data, 0), ["a warning"])
    text = console.export_text()
    assert (
        "note: trial.data.extra_endings is []: 1 file in the class folders is not read (1 .heic)\nnote: trial.data.source is"
        in text
    )
    assert text.endswith("note: a warning\n")


def test_class_names_are_shown_as_they_are(config: SweepConfig, capsys: pytest.CaptureFixture[str]) -> None:
    data = build_data(config.trial.data, 0)
    names = ("[red]fox", "[/b]", *data.class_names[2:])
    print_plan(
        terminal_console(), "[bold]demo", config, replace(data, source=replace(data.source, class_names=names)), ["[x] is a note"]
    )
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("[red]fox", "[/b]", "[bold]demo: 24 trials", "note: [x] is a note"))


def test_the_plan_of_a_comparison_says_how_many_trials_each_arm_gets(console: Console) -> None:
    crt = "{tuned: true, method.name: cross_entropy, stages: [{name: representation}, {name: crt, epochs: 5}]}"
    methods = "{type: categorical, choices: [focal, difficulty_net]}"
    changes = [f"space.method.name={methods}", "space.optim.lr={type: float, low: 0.01, high: 0.1}", "search.per_method=6"]
    space = Path(__file__).parents[3] / "search_spaces" / "digits_lt.yaml"
    config = read_sweep(space, [*changes, f"search.references.crt={crt}", "search.confirm={top: 2, seeds: 3}"])
    print_plan(console, "demo", config, build_data(config.trial.data, 0), [])
    text = " ".join(console.export_text().split())
    assert "20 trials (18 searched in 3 arms of 6, 2 references) and 24 confirmations" in text
    assert "│ focal │ 6 │ optim.lr │" in text
    assert "│ difficulty_net │ 6 │ method.driver_weight, method.meta_lr, method.hidden_width, method.refresh_interval, " in text
    assert "│ crt │ 6 │ optim.lr │" in text


def test_numbers_of_images_by_class_are_said_in_short() -> None:
    digits = tuple("0123")
    assert class_sizes(np.array([5, 5, 5, 5]), digits) == "5"
    assert class_sizes(np.array([9, 5, 2, 1]), digits) == "9 5 2 1"
    assert class_sizes(np.array([9, 5]), ("cat", "dog")) == "cat 9, dog 5"
    assert class_sizes(np.arange(1, 22), tuple(map(str, range(21)))) == "21 to 1"


def test_the_expected_cost_is_that_of_the_gpus(config: SweepConfig) -> None:
    assert expected_cost(config, 7200) == []
    halves = config.model_copy(update={"resources": config.resources.model_copy(update={"gpus_per_worker": 0.5})})
    assert expected_cost(halves, 7200) == ["about 1.0 GPU hours"]
    priced = halves.model_copy(update={"budget": BudgetConfig(cost_per_gpu_hour=48.0)})
    assert expected_cost(priced, 7200) == ["about 1.0 GPU hours, cost 48.00, 2.00 for a trial"]  # 24 trials


def test_tables_say_where_the_meta_set_served_as_val(config: SweepConfig, console: Console, tmp_path: Path) -> None:
    data = config.trial.data.model_copy(
        update={"val": "meta", "imbalance_factor": 9.0, "noise": NoiseConfig(kind="flip", rate=0.4)}
    )
    shared = config.model_copy(update={"trial": config.trial.model_copy(update={"data": data})})
    print_start(console, "demo", shared, build_data(data, 0), [])
    record(tmp_path, shared, console, {"cross_entropy": "finished", "search1": "finished"})
    print_outcome(console, tmp_path, shared)
    text = " ".join(console.export_text().split())
    assert "training labels are wrong on purpose (flip)" in text
    assert "note: data.val is meta: trials are selected on images that have driven their training" in text
    assert "val/acc (val = meta), best epoch" in text
    assert "best vs cross_entropy: +0.1000 val/acc (val = meta)" in text


def test_without_the_gpu_that_trials_want_their_time_is_unknown(config: SweepConfig, console: Console) -> None:
    wanting = config.model_copy(update={"resources": config.resources.model_copy(update={"gpus_per_worker": 1})})
    found = Estimate(Rehearsal(960, 480), 1800.0, 2, 1, "cpu", DiskUse(4, 100, 50))
    print_estimate(console, wanting, found)
    text = console.export_text()
    assert "GPU time unknown here: resources.gpus_per_worker is 1, and torch sees no GPU" in text
    assert "GPU hours" not in text
    print_estimate(console, wanting, found._replace(device="cuda", cut=True))
    text = console.export_text()
    assert "about 480.0 GPU hours" in text
    assert "note: the timing was cut after 20 s" in text
    print_estimate(console, config, found._replace(epoch_s=0.18))
    assert "an epoch takes 180 ms on this machine's cpu" in " ".join(console.export_text().split())
