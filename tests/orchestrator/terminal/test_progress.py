import re
from pathlib import Path
from typing import Any

from recorded import record
from rich.console import Console

from orchestrator.config.search_config import ConfirmConfig
from orchestrator.config.sweep_config import SweepConfig
from orchestrator.ledger.ledger import read_ledger
from orchestrator.terminal.display import Display
from orchestrator.terminal.progress import Progress


def test_plain_lines_say_how_each_trial_ended_and_which_is_best(config: SweepConfig, console: Console, tmp_path: Path) -> None:
    statuses = {
        "cross_entropy": "finished",
        "paper": "finished",
        "search1": "stopped_early",
        "search2": "diverged",
        "search3": "finished",
    }
    record(tmp_path, config, console, statuses)
    lines = [line for line in console.export_text().splitlines() if re.match(r"\d\d:\d\d:\d\d \[", line)]
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
    resumed = Progress(config, "demo", Display(console), read_ledger(tmp_path))
    assert console.export_text() == ""
    resumed({"event": "trial_start", "trial_id": "t0001", "attempt": 2})
    end = {"event": "trial_end", "trial_id": "t0001", "status": "finished", "stop_reason": None}
    resumed({**end, "best_epoch": 1, "best_value": 0.9})
    assert "[  2/24] t0001 finished      val/acc 0.9000 (epoch 1)" in console.export_text()


def test_the_reason_of_a_divergence_is_shown(config: SweepConfig, console: Console, tmp_path: Path) -> None:
    record(tmp_path, config, console, {"search1": "diverged"})
    assert "train/loss became nan in epoch 1" in console.export_text()


def events_of(*kinds: tuple[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"event": kind, "time": 0.0, "trial_id": "t0000", **fields} for kind, fields in kinds]


def test_losses_are_told_with_the_last_line_of_their_reason(config: SweepConfig, console: Console) -> None:
    progress = Progress(config, "demo", Display(console))
    for event in events_of(
        ("group_lost", {"epoch": 3, "slot": 7, "reason": "rank 1 died"}),
        ("retry", {"reason": "Traceback\nValueError: it"}),
        ("damaged", {"reason": "a bit flipped"}),
    ):
        progress(event)
    assert [line[len("08:25:01  ") :] for line in console.export_text().splitlines()] == [
        "t0000 lost its workers in epoch 3: rank 1 died",
        "t0000 failed and is tried again: ValueError: it",
        "t0000: a checkpoint is damaged, the one before is used: a bit flipped",
    ]


def test_a_loss_of_trials_that_were_trained_together_is_told_once(config: SweepConfig, console: Console) -> None:
    progress = Progress(config, "demo", Display(console))
    lost = {"epoch": 3, "slot": 7, "reason": "the machine is gone", "shared_by": 3}
    of_a_trial = [("group_lost", lost | {"lost_at": lost_at}) for lost_at in (10.0, 20.0)]
    for event in events_of(*of_a_trial * 3):
        progress(event)
    told = "t0000 and 2 others lost their worker in epoch 3: the machine is gone"
    assert [line[len("08:25:01  ") :] for line in console.export_text().splitlines()] == [told] * 2


def test_a_trial_is_called_by_what_it_is_of(config: SweepConfig, console: Console) -> None:
    confirming = config.search.model_copy(update={"confirm": ConfirmConfig(top=2, seeds=3)})
    progress = Progress(config.model_copy(update={"search": confirming}), "demo", Display(console))
    trial = {"config": config.trial.model_dump(), "seed": 7}
    end = ("trial_end", {"status": "finished", "stop_reason": None, "best_value": 0.5, "best_epoch": 1})
    for fields in (
        {"role": "reference", "variant": "paper"},
        {"role": "search", "variant": ""},
        {"role": "confirm", "variant": "", "confirms": "t0002"},
        {"role": "search", "variant": "crt"},
        {"role": "confirm", "variant": "crt", "confirms": "t0004"},
    ):
        for event in events_of(("suggest", trial | fields), end):
            progress(event)
    first, second, third, fourth, fifth = console.export_text().splitlines()
    assert "[  1/36]" in first  # 24 trials, and the best two and both references on three seeds each
    assert "(epoch 1)   paper  " in first
    assert "(epoch 1)   driver_weight=0.3 meta_lr=0.001 hidden_width=128 refresh_interval=1  " in second
    assert "(epoch 1)   t0002 with seed 7  " in third
    assert "(epoch 1)   crt driver_weight=0.3 " in fourth
    assert "(epoch 1)   crt t0004 with seed 7  " in fifth


def test_the_display_shows_who_is_running_and_what_has_ended(config: SweepConfig, console: Console) -> None:
    suggest = ("suggest", {"role": "search", "variant": "", "seed": 0, "config": config.trial.model_dump()})
    epoch = ("epoch", {"epoch": 15, "metrics": {"val/acc": 0.5}})
    slots = ("slots", {"slots": 2, "gpus_per_slot": 0.5})
    progress = Progress(config, "demo", Display(console), events_of(slots, suggest, ("trial_start", {}), epoch))

    def shown(*kinds: tuple[str, dict[str, Any]]) -> str:
        for event in events_of(*kinds):
            progress._take(event)
        with console.capture() as capture:
            console.print(*progress.lines(150), sep="\n")
        return capture.get()

    assert "0/24 done, 0 running, 0 stopped early" in shown()  # nobody runs any more what an earlier process began
    text = shown(("trial_start", {}), epoch)
    assert "0/24 done, 1 running, 0 stopped early" in text
    assert re.search(r"t0000 +epoch 15/40 +val/acc 0.5000 +driver_weight=0.3", text)
    assert "0 running" in shown(("decide", {"action": "pause"}))
    text = shown(("trial_start", {}), ("trial_end", {"status": "stopped_early", "best_value": 0.5}))
    assert "1/24 done, 0 running, 1 stopped early" in text
    assert "no trial finished yet" in text


def test_the_time_that_is_left_is_that_of_the_trials_that_are_left(config: SweepConfig, console: Console, tmp_path: Path) -> None:
    """After a resumption the time of the earlier trials is not known, so that they do not count."""
    record(tmp_path, config, console, {"search1": "finished", "search2": "finished", "search3": "interrupted"})
    now = [1000.0]
    progress = Progress(config, "demo", Display(console, lambda: now[0]), read_ledger(tmp_path))
    console.export_text()
    ends = {"status": "finished", "stop_reason": None, "best_value": 0.5, "best_epoch": 1}
    progress({"event": "trial_start", "trial_id": "t0002"})
    now[0] += 10
    progress({"event": "trial_end", "trial_id": "t0002", **ends})
    assert "eta 3:30" in console.export_text()  # ten seconds for each of 21


def test_a_collapsed_weighting_is_told_once_for_each_trial(config: SweepConfig, console: Console) -> None:
    def epoch(number: int, trial_id: str = "t0000", **signs: float) -> dict[str, Any]:
        metrics = {"val/acc": 0.5} | {f"collapse/{name}": value for name, value in signs.items()}
        return {"event": "epoch", "time": 0.0, "trial_id": trial_id, "epoch": number, "metrics": metrics}

    progress = Progress(config, "demo", Display(console), [epoch(1, "t0001", saturated=1.0)])  # an earlier process has told it
    for event in (
        epoch(1, zero_weight_classes=0.0, saturated=0.0, theta_still=0.0),
        epoch(2, zero_weight_classes=3.0, saturated=0.0, theta_still=0.0),
        epoch(3, zero_weight_classes=4.0, saturated=1.0, theta_still=0.0),
        epoch(2, "t0001", saturated=1.0),
    ):
        progress(event)
    assert [line[len("08:25:01  ") :] for line in console.export_text().splitlines()] == [
        "t0000 goes on, but its weighting has collapsed: the weights of 3 classes are 0"
    ]
