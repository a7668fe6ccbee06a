"""Every number of the summary, against one that the test computes from the parquet tables."""

import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pyarrow.parquet as pq
import pytest
from scipy import stats
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from benchmarks.virtual_folder import BEGAN, VAL_PER_CLASS
from orchestrator.config.sweep_config import SweepConfig, read_sweep
from orchestrator.ledger.ledger import Ledger
from orchestrator.report.material import gather
from orchestrator.report.sentences import at_the_edge, summary

NUM_VAL = 10 * VAL_PER_CLASS


def parts_of(folder: Path) -> dict[str, list[str]]:
    material = gather(folder)
    return {part.title: part.sentences for part in summary(material.sweep, [])}


def table(folder: Path, name: str = "trials") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(folder / f"{name}.parquet").to_pylist()
    return found


def test_the_result_of_a_search(folder_of: Callable[[str], Path]) -> None:
    folder = folder_of("plain")
    rows = table(folder)
    finished = [row for row in rows if row["status"] == "finished"]
    best = max(finished, key=lambda row: row["best/val/acc"])
    value = best["best/val/acc"]
    low, high = proportion_confint(value * NUM_VAL, NUM_VAL, method="wilson")
    expected = [
        f"{best['trial_id']} is the best of {len(finished)} finished trials: val/acc {value:.4f} in epoch {best['best/epoch']} "
        f"of 6, with a 95 % interval of {low:.3f} to {high:.3f} over the {NUM_VAL} validation images."
    ]
    for row in rows:
        if row["role"] == "reference":
            other = row["best/val/acc"]
            low, high = confint_proportions_2indep(
                value * NUM_VAL, NUM_VAL, other * NUM_VAL, NUM_VAL, method="newcomb", compare="diff"
            )
            so = (
                "the validation images do not tell the two apart"
                if low <= 0 <= high
                else "that is more than the choice of images explains"
            )
            expected.append(
                f"The reference {row['variant']} ({row['trial_id']}) reached {other:.4f}, so the best leads by "
                f"{value - other:+.4f} (95 % interval {low:+.3f} to {high:+.3f}): {so}."
            )
    found = parts_of(folder)["Result"]
    assert found[:3] == expected
    assert found[3].endswith(f"among {len(rows)} trials, so its value is optimistic.")
    assert len(found) == 4


def test_the_cost_and_the_failures(folder_of: Callable[[str], Path]) -> None:
    folder = folder_of("plain")
    rows, last = table(folder), max(row["time"] for row in table(folder, "epochs"))
    waiting = 1 - sum(row["wall_s"] for row in rows) / (2 * (last - BEGAN))
    parts = parts_of(folder)
    assert parts["Cost"][0] == f"8 trials took {last - BEGAN:.0f} s on 2 slots, of whose time {100 * waiting:.0f} % was waiting."
    assert parts["Cost"][1:] == [f"They used {2 * 0.5 * (last - BEGAN) / 3600:.2f} GPU hours."]
    count = Counter(row["status"] for row in rows)
    assert parts["Failures"] == [f"{count['finished']} finished, {count['stopped_early']} stopped early."]


def test_what_came_of_fresh_seeds(folder_of: Callable[[str], Path]) -> None:
    folder = folder_of("confirmed")
    scores: dict[str, list[float]] = {}
    rows = [row for row in table(folder) if row["role"] == "confirm"]
    for row in rows:
        scores.setdefault(row["confirms"], []).append(row["best/val/acc"])
    by_mean = sorted(scores, key=lambda name: -mean(scores[name]))
    text = parts_of(folder)["Result"]
    best = max((row for row in rows if row["confirms"] == by_mean[0]), key=lambda row: row["best/val/acc"])
    assert text[0].startswith(
        f"The configuration of {by_mean[0]} has the highest mean on fresh seeds; its best run is {best['trial_id']}: "
        f"val/acc {best['best/val/acc']:.4f} in epoch {best['best/epoch']}"
    )
    for name in by_mean:
        low, high = stats.t.interval(0.95, 2, mean(scores[name]), stdev(scores[name]) / 3**0.5)
        assert (
            f"The configuration of {name}, again on 3 fresh seeds: val/acc {mean(scores[name]):.4f} on average "
            f"(sd {stdev(scores[name]):.4f}, 95 % t-interval {low:.4f} to {high:.4f})."
        ) in text
    assert not [sentence for sentence in text if "One seed" in sentence]
    for row in table(folder):
        if row["role"] == "reference" and row["trial_id"] != by_mean[0]:
            gains = [one - other for one, other in zip(scores[by_mean[0]], scores[row["trial_id"]], strict=True)]
            low, high = stats.t.interval(0.95, 2, mean(gains), stdev(gains) / 3**0.5)
            assert any(
                f"{row['variant']} ({row['trial_id']}) reached {mean(scores[row['trial_id']]):.4f} on average over the same "
                f"3 fresh seeds, so the best leads by {mean(gains):+.4f} (95 % t-interval {low:+.3f} to {high:+.3f})" in sentence
                for sentence in text
            )


def test_an_ablation_says_its_means_and_paired_differences(folder_of: Callable[[str], Path]) -> None:
    folder = folder_of("ablation")
    scores: dict[str, dict[int, float]] = {}
    for row in table(folder):
        scores.setdefault(row["variant"], {})[row["seed"]] = row["best/val/acc"]
    text, reference = parts_of(folder)["Result"], scores["lambda_0_3"]
    for name, of_seed in scores.items():
        start = f"{name}: val/acc {mean(of_seed.values()):.4f} on average over 4 seeds"
        (sentence,) = (sentence for sentence in text if sentence.startswith(f"{name}:"))
        if name != "lambda_0_3":
            gains = [of_seed[seed] - reference[seed] for seed in of_seed]
            low, high = stats.t.interval(0.95, 3, mean(gains), stdev(gains) / 2)
            start += f", {mean(gains):+.4f} against lambda_0_3 (95 % t-interval {low:+.4f} to {high:+.4f}): "
        assert sentence.startswith(start)


def test_sweeps_without_a_finished_trial_say_so(folder_of: Callable[[str], Path]) -> None:
    just_begun, failed = parts_of(folder_of("none_finished")), parts_of(folder_of("failures"))
    assert just_begun["Result"][0].startswith("The sweep is not over: ")
    assert just_begun["Result"][-1] == failed["Result"][-1] == "No trial has finished, so there is no best one."
    assert failed["Failures"] == ["4 diverged.", "4 trials ended with: by the formula"]
    assert "doctor" in failed["What to try next"][0]


def test_the_pareto_front_is_counted(folder_of: Callable[[str], Path]) -> None:
    folder = folder_of("objectives")
    points = [
        (row["best/val/acc"], row["best/val/acc_few"])
        for row in table(folder)
        if row["status"] == "finished" and row["role"] != "confirm"
    ]
    front = [one for one in points if not any(other != one and other[0] >= one[0] and other[1] >= one[1] for other in points)]
    (sentence,) = (sentence for sentence in parts_of(folder)["Result"] if "Pareto" in sentence)
    assert int(re.match(r"\d+", sentence)[0]) == len(front)  # type: ignore[index]


def test_the_sealed_test_set_is_quoted_from_the_export(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folder_of("one_trial"), tmp_path / "exported")
    with Ledger(folder) as ledger:
        metrics = {"test/acc": 0.804}
        ledger.append("test_read", trial_id="t0000", metrics=metrics)  # type: ignore[arg-type]
        ledger.append("export", trial_id="t0000", path=str(folder / "best"), metrics=metrics)  # type: ignore[arg-type]
    low, high = proportion_confint(0.804 * 500, 500, method="wilson")
    assert (
        f"The exported model, t0000, has test/acc 0.8040 (95 % interval {low:.3f} to {high:.3f} over 500 images). The sealed "
        "test set was read once."
    ) in parts_of(folder)["Result"]


@pytest.mark.parametrize(
    ("name", "value", "end"),
    [
        ("method.meta_lr", 1.1e-4, "lower"),
        ("method.meta_lr", 9e-2, "upper"),
        ("method.meta_lr", 3e-3, None),
        ("method.driver_weight", 0.0, None),  # `or_exactly` is no end of the range
        ("method.hidden_width", 64, "upper"),
    ],
)
def test_a_best_value_at_an_end_of_its_range_is_named(name: str, value: float, end: str | None) -> None:
    config: SweepConfig = read_sweep(Path(__file__).parents[3] / "search_spaces" / "digits_lt.yaml")
    assert at_the_edge(config, name, value) == end
