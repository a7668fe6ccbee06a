"""The display at three widths, compared with kept texts in shown/. To write them anew: SHOWN=write pytest test_display.py."""

import io
import os
import re
from pathlib import Path
from typing import Any

import pytest
from recorded import DIGITS, record, record_virtual
from rich.console import Console
from scipy import stats

from orchestrator.config.sweep_config import SweepConfig, read_sweep
from orchestrator.decide.virtual_sweep import run
from orchestrator.ledger.ledger import Ledger, read_ledger
from orchestrator.outcome.differences import differences, worth
from orchestrator.outcome.tables import best_trial, trial_rows
from orchestrator.terminal.display import Display, shortened
from orchestrator.terminal.progress import Progress
from orchestrator.terminal.summary import comparison, print_outcome
from trainables.shown_commands import python_command

SHOWN = Path(__file__).parent / "shown"
WIDTHS = (80, 100, 200)


def terminal(width: int) -> Console:
    return Console(width=width, height=40, force_terminal=True, record=True, file=io.StringIO(), color_system=None)


def compare_with_kept(name: str, text: str, width: int) -> None:
    text = "\n".join(line.rstrip() for line in text.splitlines()) + "\n"
    file = SHOWN / f"{name}_{width}.txt"
    if os.environ.get("SHOWN") == "write":
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    assert text == file.read_text()
    assert max(map(len, text.splitlines())) <= width


@pytest.mark.parametrize("width", WIDTHS)
def test_the_display_fits(config: SweepConfig, width: int) -> None:
    now = [1000.0]
    console = terminal(width)
    display = Display(console, lambda: now[0])
    frames = []

    def frame() -> None:
        with console.capture() as capture:
            console.print(display.render())
        frames.append(capture.get())

    display.phase("reading the data")
    frame()
    display.phase("loading Ray and torch, which takes some seconds")
    now[0] += 7
    frame()
    trial = {"seed": 0, "config": config.trial.model_dump()}
    suggest = [
        ("t0000", {"role": "reference", "variant": "cross_entropy"}),
        ("t0001", {"role": "search", "variant": ""}),
        ("t0002", {"role": "search", "variant": "an_arm_with_a_name_that_is_longer_than_any_terminal_" + "x" * 200}),
    ]
    with Progress(config, "a_sweep_with_a_name_that_is_much_too_long", display) as progress:

        def tell(kind: str, trial_id: str = "", **fields: Any) -> None:
            progress({"event": kind, "time": now[0], "trial_id": trial_id, **fields})

        tell("sweep_start", split={"val": list(range(240))})
        tell("slots", slots=3, gpus_per_slot=0.5)
        frame()
        for trial_id, fields in suggest:
            tell("suggest", trial_id, **trial, **fields)
            tell("trial_start", trial_id, attempt=1)
        now[0] += 4
        frame()
        for trial_id in ("t0000", "t0001", "t0002"):
            tell("epoch", trial_id, epoch=15, metrics={"val/acc": 0.75, "time/epoch_s": 4.0})
        tell("trial_end", "t0000", status="finished", stop_reason=None, best_epoch=15, best_value=0.75)
        now[0] += 1
        frame()
    display.phase("exporting the best trial; its test set, 240 images, is read once")
    frame()
    low, high = stats.binomtest(180, 240).proportion_ci(method="wilson")
    assert f"best val/acc 0.7500 (95 %: {low:.3f} to {high:.3f}), t0000" in " ".join(frames[4].split())
    assert "epoch 15/40 +~25 %" in frames[4]
    assert frames[3].count("epoch 0/40 +4 s") == 3
    assert "3 of 3 slots busy 1.5 of 1.5 GPUs used" in " ".join(frames[3].split())
    compare_with_kept("display", "----\n".join(frames), width)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("num_references", [2, 7])
def test_the_outcome_fits(config: SweepConfig, tmp_path: Path, width: int, num_references: int) -> None:
    """With seven references, those that do not fit as columns are rows."""
    variants = [f"reference_{number}" for number in range(num_references)]
    record(tmp_path, config, Console(file=io.StringIO()), dict.fromkeys([*variants, "search1"], "finished"))
    events, console = read_ledger(tmp_path), terminal(width)
    rows = trial_rows(events)
    best = best_trial(rows)
    assert best is not None
    console.print(comparison(console, config, rows, best))
    text = console.export_text()
    compare_with_kept(f"outcome_of_{num_references}", text, width)
    assert all(re.search(rf"{name}: t\d{{4}}", text) for name in variants)
    print_outcome(console, tmp_path, config)
    folder = str(tmp_path)
    assert all(len(line) <= width for line in console.export_text().splitlines() if folder not in line)


def better_with_lambda(settings: dict[str, Any], epoch: int) -> float:
    return 0.6 + 0.1 * float(settings["method.driver_weight"]) - 0.1 / epoch


@pytest.mark.parametrize("width", WIDTHS)
def test_the_outcome_of_an_ablation_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.chdir(tmp_path)
    plan = DIGITS.with_name("ablation_lambda.yaml")
    config = read_sweep(plan, ["ablation.seeds=4", "trial.epochs=4", "ablation.metric=val/acc", "ablation.margin=0.02"])
    folder, console = Path("results/ablation_lambda"), terminal(width)
    record_virtual(folder, config, run(config, better_with_lambda, 2), {"status": "finished", "complete": True})
    print_outcome(console, folder, config)
    text = console.export_text().replace(f"{python_command()} -m", "python -m")
    compare_with_kept("ablation", re.sub(r" in .*, start and export", " in SECONDS, start and export", text), width)


def test_without_a_terminal_phases_are_lines_with_the_time(console: Console) -> None:
    with Display(console, lambda: 0.0) as display:
        display.phase("reading the data")
    assert re.fullmatch(r"\d\d:\d\d:\d\d reading the data\n", console.export_text())


def test_a_text_is_cut_after_a_word_or_in_a_word_that_is_too_long() -> None:
    assert shortened("one two three", 13) == "one two three"
    assert shortened("one two three", 12) == "one two …"
    assert shortened("onetwothree", 6) == "onetw…"
    assert shortened("one two", 0) == ""


def test_on_one_seed_a_difference_has_the_interval_of_two_proportions(config: SweepConfig, tmp_path: Path) -> None:
    """Newcombe's interval, from scipy's Wilson intervals."""
    counts = {"cross_entropy": 150, "paper": 170, "search": 180}
    with Ledger(tmp_path) as ledger:
        ledger.append("sweep_start", split={"val": list(range(240))})
        for number, (variant, right) in enumerate(counts.items()):
            known = {"role": "search", "variant": ""} if variant == "search" else {"role": "reference", "variant": variant}
            finish(ledger, number, right / 240, seed=0, config=config.trial.model_dump(), **known)
    rows = trial_rows(read_ledger(tmp_path))
    first, second = differences(config, rows, rows[2], 240)
    for found, right in ((first, 150), (second, 170)):
        p, q = 180 / 240, right / 240
        own, other = (stats.binomtest(k, 240).proportion_ci(method="wilson") for k in (180, right))
        low = p - q - ((p - own.low) ** 2 + (other.high - q) ** 2) ** 0.5
        high = p - q + ((own.high - p) ** 2 + (q - other.low) ** 2) ** 0.5
        assert (found.lead, *(found.interval or ())) == pytest.approx((p - q, low, high), abs=1e-9)
    assert worth(first, 240, 3).startswith("one seed, 240 val images: the interval lies above 0, but best is the luckiest of 3")
    assert "includes 0, so this does not show that best is better" in worth(second, 240, 3)


@pytest.mark.parametrize("winner", ["search", "reference"])
def test_after_a_confirmation_means_are_compared_over_the_same_seeds(
    config: SweepConfig, console: Console, tmp_path: Path, winner: str
) -> None:
    """Student's interval of the paired differences, from scipy. The search's luck on its own seed no longer counts."""
    good, bad = [0.70, 0.74, 0.69], [0.66, 0.67, 0.68]
    of_search, of_reference = (good, bad) if winner == "search" else (bad, good)
    trial = config.trial.model_dump()
    with Ledger(tmp_path) as ledger:
        ledger.append("sweep_start", split={"val": list(range(240))})
        finish(ledger, 0, 0.5, role="reference", variant="paper", seed=0, config=trial)
        finish(ledger, 1, 0.9, role="search", variant="", seed=0, config=trial | {"epochs": 39})
        for seed in (1, 2, 3):
            for confirms, scores in (("t0001", of_search), ("t0000", of_reference)):
                number = 2 * seed + (confirms == "t0000")
                settings = trial | {"seed": seed}
                known = {"role": "confirm", "variant": "", "seed": seed, "confirms": confirms}
                finish(ledger, number, scores[seed - 1], config=settings, **known)
        ledger.append("sweep_end", status="finished")
    rows = trial_rows(read_ledger(tmp_path))
    best = best_trial(rows)
    assert best is not None
    print_outcome(console, tmp_path, config)
    text = console.export_text()
    if winner == "reference":
        assert "best: t0000, paper" in text
        assert "no searched configuration beat the references" in text
        assert " vs paper" not in text  # it is not compared with itself
        assert differences(config, rows, best, 240) == []
        return
    (found,) = differences(config, rows, best, 240)
    low, high = stats.ttest_rel(of_search, of_reference).confidence_interval(0.95)
    assert (*(found.interval or ()), found.num_seeds) == pytest.approx((low, high, 3))
    assert f"best vs paper: +0.0400 val/acc, 95 % interval {low:+.3f} to {high:+.3f}" in text
    assert "3 fresh seeds: the interval includes 0, so this does not show that best is better" in text
    assert re.search(r"mean of 3 fresh seeds +│ 0.7100 +│ 0.6700 ", text)


def finish(ledger: Ledger, number: int, value: float, **fields: Any) -> None:
    """A trial of one epoch."""
    trial_id = f"t{number:04d}"
    ledger.append("suggest", trial_id=trial_id, **fields)
    ledger.append("epoch", trial_id=trial_id, epoch=1, attempt=1, metrics={"val/acc": value})
    ledger.append("trial_end", trial_id=trial_id, status="finished", stop_reason=None, best_epoch=1, best_value=value)
