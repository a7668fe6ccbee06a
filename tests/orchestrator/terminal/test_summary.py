import itertools
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from orchestrator.config.limits_config import BudgetConfig
from orchestrator.config.scheduler_config import HyperbandConfig, RunAllConfig
from orchestrator.config.search_config import ConfirmConfig
from orchestrator.config.sweep_config import SweepConfig
from orchestrator.decide.schedulers import Hyperband
from orchestrator.ledger.ledger import Ledger, read_ledger
from orchestrator.run.estimate import expected_epochs
from orchestrator.terminal.lines import duration
from orchestrator.terminal.plan import class_sizes, expected_cost, print_going_on, print_start
from orchestrator.terminal.progress import Progress
from orchestrator.terminal.summary import gains, open_mlflow, print_interrupted, print_outcome, seconds_in_all, trade_offs
from trainables.config_file import dump_yaml
from trainables.data import build_data
from trainables.data_config import NoiseConfig
from trainables.method_config import CrossEntropyConfig


@pytest.fixture
def console() -> Console:
    return Console(width=150, record=True, force_terminal=False)


def record(folder: Path, config: SweepConfig, console: Console, statuses: dict[str, str]) -> None:
    """A sweep in which each of some variants ended with a status; the later ones are better. Each event takes a second."""
    (folder / "sweep.yaml").write_text(dump_yaml(config.model_dump()))
    clock = itertools.count()
    with Ledger(folder, clock=lambda: float(next(clock))) as ledger, Progress(config, "demo", console) as progress:
        ledger.listen(progress)
        ledger.append("sweep_start")
        ledger.append("slots", slots=2, gpus_per_slot=0.5)
        for number, (variant, status) in enumerate(statuses.items()):
            trial = config.trial.model_copy(update={"method": CrossEntropyConfig()} if variant == "cross_entropy" else {})
            value, trial_id = 0.5 + number / 10, f"t{number:04d}"
            known = (
                {"role": "search", "variant": ""} if variant.startswith("search") else {"role": "reference", "variant": variant}
            )
            ledger.append("suggest", trial_id=trial_id, seed=0, config=trial.model_dump(), **known)
            ledger.append("trial_start", trial_id=trial_id, attempt=1)
            ledger.append("epoch", trial_id=trial_id, epoch=1, attempt=1, metrics={"val/acc": value})
            reason = "train/loss became nan in epoch 1" if status == "diverged" else None
            ledger.append("trial_end", trial_id=trial_id, status=status, stop_reason=reason, best_epoch=1, best_value=value)
        ledger.append("sweep_end", status="finished")


def test_plain_lines_say_how_each_trial_ended_and_which_is_best(config: SweepConfig, console: Console, tmp_path: Path) -> None:
    statuses = {
        "cross_entropy": "finished",
        "paper": "finished",
        "search1": "stopped_early",
        "search2": "diverged",
        "search3": "finished",
    }
    record(tmp_path, config, console, statuses)
    lines = [line for line in console.export_text().splitlines() if line.startswith("[")]
    assert [("best so far" in line) for line in lines] == [True, True, False, False, True]
    assert "stopped early" in lines[2]
    assert "driver_weight=0.3" in lines[2]
    assert "[  5/24] t0004 finished      val/acc 0.9000 (epoch 1)" in lines[4]
    assert "eta" in lines[4]


def test_a_resumed_sweep_counts_what_has_ended_and_prints_it_no_second_time(
    config: SweepConfig, console: Console, tmp_path: Path
) -> None:
    record(tmp_path, config, console, {"cross_entropy": "finished", "paper": "interrupted"})
    console.export_text()
    resumed = Progress(config, "demo", console, read_ledger(tmp_path))
    assert console.export_text() == ""
    resumed({"event": "trial_start", "trial_id": "t0001", "attempt": 2})
    end = {"event": "trial_end", "trial_id": "t0001", "status": "finished", "stop_reason": None}
    resumed({**end, "best_epoch": 1, "best_value": 0.9})
    assert "[  2/24] t0001 finished      val/acc 0.9000 (epoch 1)" in console.export_text()


def test_a_resumed_sweep_says_what_it_keeps_and_where_it_goes_on(config: SweepConfig, console: Console, tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        for trial_id in ("t0000", "t0001", "t0002", "t0003"):
            ledger.append("suggest", trial_id=trial_id, role="search", variant="", seed=0, config=config.trial.model_dump())
        for trial_id, epochs in {"t0000": 3, "t0001": 2, "t0002": 3}.items():
            ledger.append("trial_start", trial_id=trial_id, attempt=1)
            for epoch in range(1, epochs + 1):
                ledger.append("checkpoint", trial_id=trial_id, epoch=epoch, path=f"{trial_id}/{epoch}", sha256="")
        ledger.append("trial_end", trial_id="t0000", status="finished", stop_reason=None)
        ledger.append("trial_end", trial_id="t0001", status="interrupted", stop_reason=None)
        ledger.append("decide", trial_id="t0002", epoch=3, action="pause")
    print_going_on(console, read_ledger(tmp_path))
    expected = "going on: 1 of 4 trials have ended, t0001 continues after epoch 2, t0003 begins, 1 is paused"
    assert console.export_text().strip() == expected


def test_several_objectives_show_what_there_is_to_choose_from(config: SweepConfig, console: Console, tmp_path: Path) -> None:
    search = config.search.model_copy(update={"sampler": "nsga2", "objectives": ["val/acc", "val/acc_few"]})
    with Ledger(tmp_path) as ledger:
        ledger.append("sweep_start")
        for number, (accuracy, few) in enumerate(((0.9, 0.1), (0.8, 0.5), (0.7, 0.4))):
            trial_id = f"t{number:04d}"
            ledger.append("suggest", trial_id=trial_id, role="search", variant="", seed=0, config=config.trial.model_dump())
            ledger.append("epoch", trial_id=trial_id, epoch=1, attempt=1, metrics={"val/acc": accuracy, "val/acc_few": few})
            ledger.append("trial_end", trial_id=trial_id, status="finished", stop_reason=None)
    print_outcome(console, tmp_path, config.model_copy(update={"search": search}))
    text = console.export_text()
    assert re.search(r"t0000 +│ 0.9000 +│ 0.1000", text)
    assert re.search(r"t0001 +│ 0.8000 +│ 0.5000", text)
    assert "0.4000" not in text


def test_the_reason_of_a_divergence_is_shown(config: SweepConfig, console: Console, tmp_path: Path) -> None:
    record(tmp_path, config, console, {"search1": "diverged"})
    assert "train/loss became nan in epoch 1" in console.export_text()


def test_the_outcome_compares_the_best_with_both_references(config: SweepConfig, console: Console, tmp_path: Path) -> None:
    record(tmp_path, config, console, {"cross_entropy": "finished", "paper": "finished", "search1": "finished"})
    tracker = SimpleNamespace(compare_path=lambda trials: "/#/" + "+".join(trials))
    assert print_outcome(console, tmp_path, config, tracker) == 0
    text = console.export_text()
    assert "best vs cross_entropy: +0.2000 val/acc" in text
    assert "best vs paper: +0.1000 val/acc" in text
    assert "http://127.0.0.1:5000/#/t0002+t0000+t0001" in text
    assert "-m trainables.train" in text


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


def test_a_reference_that_is_best_wins_and_says_so(config: SweepConfig, console: Console, tmp_path: Path) -> None:
    record(tmp_path, config, console, {"search1": "finished", "cross_entropy": "finished"})
    print_outcome(console, tmp_path, config)
    text = console.export_text()
    assert "best: t0001" in text
    assert "no searched configuration beat the references" in text


def test_a_reference_that_failed_has_no_score(config: SweepConfig, console: Console, tmp_path: Path) -> None:
    record(tmp_path, config, console, {"paper": "failed", "search1": "finished"})
    print_outcome(console, tmp_path, config)
    row = next(line for line in console.export_text().splitlines() if "val/acc, best epoch" in line)
    assert "failed" in row
    assert "0.5000" not in row


def test_a_server_of_ones_own_is_opened_by_its_address() -> None:
    assert open_mlflow("http://host:5000/", False, "/#/x") == ["  http://host:5000/#/x", "      compares the trials in MLflow"]
    assert open_mlflow("sqlite:///results/mlflow.db", True, None)[0] == "  make ui"


def test_a_sweep_without_a_finished_trial_fails(config: SweepConfig, console: Console, tmp_path: Path) -> None:
    record(tmp_path, config, console, {"search1": "failed", "search2": "diverged"})
    assert print_outcome(console, tmp_path, config) == 1
    assert "No trial finished" in console.export_text()


def test_an_interruption_prints_what_to_type_next(config: SweepConfig, console: Console, tmp_path: Path) -> None:
    record(tmp_path, config, console, {"cross_entropy": "finished", "search1": "interrupted"})
    assert print_interrupted(console, tmp_path) == 130
    text = console.export_text()
    assert "Interrupted after 1 of 24 trials" in text
    assert f"-m orchestrator.sweep --name {tmp_path.name} --results {tmp_path.parent} --resume" in text
    assert f"-m orchestrator.export {tmp_path}" in text


def test_gains_are_differences_in_the_objective() -> None:
    def row(variant: str, value: float, status: str = "finished") -> dict[str, object]:
        role = variant if variant in ("search", "confirm") else "reference"
        return {"role": role, "variant": variant, "status": status, "config/select_by": "val/acc", "best/val/acc": value}

    rows = [row("paper", 0.5), row("broken", 0.1, "failed"), row("search", 0.75)]
    assert gains(rows[2], rows) == {"paper": 0.25}
    confirmed = row("confirm", 0.8)  # on another seed than the references
    assert gains(confirmed, [*rows, confirmed]) == {}
    assert gains(rows[2], [*rows, confirmed]) == {"paper": 0.25}


def test_of_the_trials_to_choose_from_the_best_in_the_first_objective_comes_first() -> None:
    rows = [
        {"trial_id": name, "status": "finished", "role": "search", "variant": "", "best/a": a, "best/b": b}
        for name, a, b in (("t0", 0.1, 0.9), ("t1", 0.8, 0.2), ("t2", 0.5, 0.5))
    ]
    assert list(trade_offs(rows, ["a", "b"]).columns[0].cells) == ["t1", "t2", "t0"]


def test_the_time_between_an_interruption_and_the_resumption_does_not_count() -> None:
    times = [
        ("sweep_start", 0),
        ("trial_end", 10),
        ("sweep_end", 12),
        ("sweep_resume", 1000),
        ("trial_end", 1030),
        ("export", 1090),
    ]
    assert seconds_in_all([{"event": kind, "time": float(time)} for kind, time in times]) == 10 + 30


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(59, "59 s"), (119, "119 s"), (120, "2.0 min"), (7199, "120.0 min"), (9000, "2.5 h"), (259200, "3.0 days")],
)
def test_a_time_is_said_in_the_unit_of_which_there_are_two(seconds: float, words: str) -> None:
    assert duration(seconds) == words


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


def test_the_best_epoch_stands_above_the_last(config: SweepConfig, console: Console, tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        ledger.append("sweep_start")
        ledger.append("suggest", trial_id="t0000", role="search", variant="", seed=0, config=config.trial.model_dump())
        for epoch, value in enumerate((0.75, 0.5), 1):
            ledger.append("epoch", trial_id="t0000", epoch=epoch, attempt=1, metrics={"val/acc": value})
        ledger.append("trial_end", trial_id="t0000", status="finished", stop_reason=None)
    print_outcome(console, tmp_path, config)
    text = console.export_text()
    assert re.search(r"best epoch +│ 0.7500", text)
    assert re.search(r"last epoch +│ 0.5000", text)


@pytest.mark.parametrize(("status", "code"), [("finished", 0), ("failed", 1)])
def test_a_sweep_that_was_given_up_says_why_and_how_to_go_on(
    config: SweepConfig, console: Console, tmp_path: Path, status: str, code: int
) -> None:
    record(tmp_path, config, console, {"search1": "finished"})
    with Ledger(tmp_path) as ledger:
        ledger.append("sweep_end", status=status, reason="budget.cost of 5 is used up")
    assert print_outcome(console, tmp_path, config) == code
    text = console.export_text()
    assert "Not all trials ran to their ends: budget.cost of 5 is used up. To go on: " in text
    assert f"--name {tmp_path.name} --results {tmp_path.parent} --resume" in text


def test_the_reading_of_the_test_set_is_shown(config: SweepConfig, console: Console, tmp_path: Path) -> None:
    record(tmp_path, config, console, {"search1": "finished"})
    (tmp_path / "best").mkdir()
    seeds = {"num_seeds": 3, "mean": 0.625, "sd": 0.25}
    (tmp_path / "best" / "metrics.json").write_text(json.dumps({"test": {"test/acc": 0.75}, "test_over_seeds": seeds}))
    print_outcome(console, tmp_path, config)
    text = console.export_text()
    assert "test/acc of the exported model, read once: 0.7500" in text
    assert "test/acc over 3 seeds: 0.6250 (sd 0.2500)" in text


def events_of(*kinds: tuple[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"event": kind, "time": 0.0, "trial_id": "t0000", **fields} for kind, fields in kinds]


def test_losses_are_told_with_the_last_line_of_their_reason(config: SweepConfig, console: Console) -> None:
    progress = Progress(config, "demo", console)
    for event in events_of(
        ("group_lost", {"epoch": 3, "reason": "rank 1 died"}),
        ("retry", {"reason": "Traceback\nValueError: it"}),
        ("damaged", {"reason": "a bit flipped"}),
    ):
        progress(event)
    assert [line.strip() for line in console.export_text().splitlines()] == [
        "t0000 lost its workers in epoch 3: rank 1 died",
        "t0000 failed and is tried again: ValueError: it",
        "t0000: a checkpoint is damaged, the one before is used: a bit flipped",
    ]


def test_a_trial_is_called_by_what_it_is_of(config: SweepConfig, console: Console) -> None:
    confirming = config.search.model_copy(update={"confirm": ConfirmConfig(top=2, seeds=3)})
    progress = Progress(config.model_copy(update={"search": confirming}), "demo", console)
    trial = {"config": config.trial.model_dump(), "seed": 7}
    end = ("trial_end", {"status": "finished", "stop_reason": None, "best_value": 0.5, "best_epoch": 1})
    for fields in (
        {"role": "reference", "variant": "paper"},
        {"role": "search", "variant": ""},
        {"role": "confirm", "variant": "", "confirms": "t0002"},
    ):
        for event in events_of(("suggest", trial | fields), end):
            progress(event)
    first, second, third = console.export_text().splitlines()
    assert "[  1/30]" in first  # 24 trials, and the best two on three seeds each
    assert "(epoch 1)   paper  " in first
    assert "(epoch 1)   driver_weight=0.3 meta_lr=0.001 hidden_width=128 refresh_interval=1  " in second
    assert "(epoch 1)   t0002 with seed 7  " in third


def test_the_display_shows_who_is_running_and_what_has_ended(config: SweepConfig, console: Console) -> None:
    suggest = ("suggest", {"role": "search", "variant": "", "seed": 0, "config": config.trial.model_dump()})
    epoch = ("epoch", {"epoch": 15, "metrics": {"val/acc": 0.5}})
    progress = Progress(config, "demo", console, events_of(suggest, ("trial_start", {}), epoch))

    def shown(*kinds: tuple[str, dict[str, Any]]) -> str:
        for event in events_of(*kinds):
            progress._take(event)
        with console.capture() as capture:
            console.print(progress._render())
        return capture.get()

    assert "0/24 done, 0 running, 0 stopped early" in shown()  # nobody runs any more what an earlier process began
    text = shown(("trial_start", {}), epoch)
    assert "0/24 done, 1 running, 0 stopped early" in text
    assert re.search(r"t0000 +epoch 15/40 +val/acc 0.5000 +driver_weight=0.3", text)
    assert "0 running" in shown(("decide", {"action": "pause"}))
    text = shown(("trial_start", {}), ("trial_end", {"status": "stopped_early", "best_value": 0.5}))
    assert "1/24 done, 0 running, 1 stopped early" in text
    assert "no trial finished yet" in text


def test_the_time_that_is_left_is_that_of_the_trials_that_are_left(
    config: SweepConfig, console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a resumption the time of the earlier trials is not known, so that they do not count."""
    record(tmp_path, config, console, {"search1": "finished", "search2": "finished", "search3": "interrupted"})
    progress = Progress(config, "demo", console, read_ledger(tmp_path))
    console.export_text()
    now = [1000.0]
    monkeypatch.setattr("orchestrator.terminal.progress.time", SimpleNamespace(monotonic=lambda: now[0]))
    ends = {"status": "finished", "stop_reason": None, "best_value": 0.5, "best_epoch": 1}
    progress({"event": "trial_start", "trial_id": "t0002"})
    now[0] += 10
    progress({"event": "trial_end", "trial_id": "t0002", **ends})
    assert "eta 3:30" in console.export_text()  # ten seconds for each of 21


def test_expected_epochs_follow_the_rungs(config: SweepConfig) -> None:
    # 2 references of 40; 22 trials: all reach epoch 15, half go on to 30, a quarter to 40.
    assert expected_epochs(config) == 2 * 40 + 22 * (15 + 15 / 2 + 10 / 4)
    assert expected_epochs(config.model_copy(update={"scheduler": RunAllConfig()})) == 24 * 40
    confirmed = config.search.model_copy(update={"confirm": ConfirmConfig(top=2, seeds=3)})
    assert expected_epochs(config.model_copy(update={"search": confirmed})) == expected_epochs(config) + 6 * 40
    # Half of the trials as above, a third begins at rung 30, the rest is never judged.
    hyperband = HyperbandConfig(grace_epochs=15, reduction_factor=2)
    shares = [Hyperband(config.model_copy(update={"scheduler": hyperband})).bracket(number) for number in range(24)]
    each = {0: 15 + 15 / 2 + 10 / 4, 1: 30 + 10 / 2, 2: 40}
    mean = sum(each[bracket] for bracket in shares) / 24
    assert expected_epochs(config.model_copy(update={"scheduler": hyperband})) == pytest.approx(2 * 40 + 22 * mean)


def test_the_outcome_tells_how_busy_the_slots_were_and_what_they_cost(
    config: SweepConfig, console: Console, tmp_path: Path
) -> None:
    priced = config.model_copy(update={"budget": BudgetConfig(cost_per_gpu_hour=3600.0)})
    record(tmp_path, priced, console, {"cross_entropy": "finished", "search1": "finished"})
    print_outcome(console, tmp_path, priced)
    text = console.export_text()
    # Each trial is suggested, starts, reports an epoch and ends. From the first start to the last end are 6 s, of which each
    # trial is busy for one. The two slots have a GPU in all, and a second of it costs a unit of money.
    assert "2 trials in 9 s: 2 finished" in text
    assert "2 slots, 83% of the time waiting" in text
    assert "cost 6.00, 3.00 for a trial" in text


def test_a_grid_that_constraints_have_left_fewer_points_says_so(config: SweepConfig, console: Console, tmp_path: Path) -> None:
    record(tmp_path, config, console, {"cross_entropy": "finished", "search1": "finished", "search2": "stopped_early"})
    for trials, shown in ((3, False), (4, True)):
        search = config.search.model_copy(update={"sampler": "grid", "trials": trials})
        print_outcome(console, tmp_path, config.model_copy(update={"search": search}))
        text = console.export_text()
        assert ("search.constraints leave the grid fewer points: 3 trials instead of 4" in text) == shown
        assert ("leave the grid fewer points" in text) == shown


def test_a_confirmed_winner_is_shown_with_its_spread(config: SweepConfig, console: Console, tmp_path: Path) -> None:
    search = config.search.model_copy(update={"confirm": ConfirmConfig(top=2, seeds=2)})
    confirmed = config.model_copy(update={"search": search})
    (tmp_path / "sweep.yaml").write_text(dump_yaml(confirmed.model_dump()))
    with Ledger(tmp_path) as ledger:
        ledger.append("sweep_start")
        runs = [(None, 0, 0.9), (None, 0, 0.8), ("t0000", 1, 0.6), ("t0001", 1, 0.7), ("t0000", 2, 0.62), ("t0001", 2, 0.72)]
        for number, (confirms, seed, value) in enumerate(runs):
            trial = config.trial.model_copy(update={"seed": seed})
            role, trial_id = "confirm" if confirms else "search", f"t{number:04d}"
            fields = {"role": role, "variant": "", "seed": seed, "config": trial.model_dump(), "confirms": confirms}
            ledger.append("suggest", trial_id=trial_id, **fields)
            ledger.append("epoch", trial_id=trial_id, epoch=1, attempt=1, metrics={"val/acc": value})
            ledger.append("trial_end", trial_id=trial_id, status="finished", stop_reason=None)
        ledger.append("sweep_end", status="finished")
    assert print_outcome(console, tmp_path, confirmed) == 0
    text = console.export_text()
    assert "best: t0005" in text  # the better run of the better configuration, not the luckiest trial of the search
    assert "over 2 fresh seeds" in text
    assert re.search(r"t0001 +│ 0.7100 +│ 0.0141 ", text)
    assert "t0001 is better than all the others" in text


def test_a_configuration_without_all_its_seeds_is_out_of_the_running_and_where_all_are_the_search_decides(
    config: SweepConfig, console: Console, tmp_path: Path
) -> None:
    def tell(*runs: tuple[str | None, int, float | None]) -> str:
        folder = tmp_path / str(len(runs))
        folder.mkdir()
        with Ledger(folder) as ledger:
            ledger.append("sweep_start")
            for number, (confirms, seed, value) in enumerate(runs):
                fields = {"role": "confirm" if confirms else "search", "variant": "", "seed": seed, "confirms": confirms}
                trial_id, status = f"t{number:04d}", "diverged" if value is None else "finished"
                ledger.append("suggest", trial_id=trial_id, config=config.trial.model_dump(), **fields)
                ledger.append("epoch", trial_id=trial_id, epoch=1, attempt=1, metrics={"val/acc": value})
                ledger.append("trial_end", trial_id=trial_id, status=status, stop_reason=None)
        print_outcome(console, folder, config)
        return console.export_text()

    search: list[tuple[str | None, int, float | None]] = [(None, 0, 0.9), (None, 0, 0.8), (None, 0, 0.7)]
    first = [("t0000", 1, 0.6), ("t0000", 2, None)]
    text = tell(*search, *first)
    assert "out of the running: t0000" in text
    assert "the best trial is the search's, unconfirmed" in text
    others = [("t0001", 1, 0.7), ("t0001", 2, 0.72), ("t0002", 1, 0.7), ("t0002", 2, 0.71)]
    text = tell(*search, *first, *others)
    assert "out of the running: t0000" in text
    # Differences of 0 and 0.01: t = 1 with one degree of freedom, of which the two-sided p is 1/2.
    assert re.search(r"t0001 +│ 0.7100 +│ 0.0141 ", text)
    assert re.search(r"t0002 +│ 0.7050 +│ 0.0071 .*│ 0.500 ", text)
