"""What the arms of repeated searches are compared by: scores from ledgers of whole sweeps, the table, and who beats whom."""

from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from recorded import record_virtual
from scipy import stats

from orchestrator.config.sweep_config import SweepConfig
from orchestrator.decide.virtual_sweep import run
from orchestrator.ledger.events import Role, Status
from orchestrator.ledger.ledger import read_ledger
from orchestrator.outcome.ablation import compared, explanation, wins
from orchestrator.outcome.ablation_files import write_outcome
from orchestrator.outcome.confirmation import Row
from orchestrator.outcome.searches import complete_searches, rows_of, search_folder
from orchestrator.outcome.tables import trial_rows
from trainables.config_file import Origin, check

OURS, PLAIN = "difficulty_net", "cross_entropy"
GAINS = (0.03, 0.01, -0.02, 0.0)
"""What our arm gains in each search."""


def ablation(seeds: int = len(GAINS), **search: Any) -> SweepConfig:
    tree = {
        "trial": {"epochs": 1},
        "scheduler": {"name": "none"},
        "space": {"optim.lr": {"type": "float", "low": 0.1, "high": 0.5}},
        "search": {"trials": 3, "references": {PLAIN: {"method.name": PLAIN, "tuned": True}}, **search},
        "ablation": {"kind": "searches", "reference": PLAIN, "seeds": seeds, "metric": "val/acc"},
    }
    return check(SweepConfig, tree, Origin("PLAN"))


def value(settings: dict[str, Any], gain: float) -> float | None:
    """Larger steps are better up to a number that depends on the seed; our method gains something in addition."""
    best = 0.4 + settings["seed"] % 7 / 100
    return float(0.7 - abs(settings["optim.lr"] - best) + gain * (settings["method.name"] == OURS))


def search(folder: Path, config: SweepConfig, gain: float, complete: bool = True, diverges: str = "") -> None:
    """Writes the ledger of a search."""
    done = run(config, lambda settings, epoch: None if settings["method.name"] == diverges else value(settings, gain), slots=1)
    record_virtual(folder, config, done, {"status": Status.FINISHED if complete else Status.INTERRUPTED, "complete": complete})


def searched(folder: Path, config: SweepConfig) -> list[Row]:
    for number, (one, gain) in enumerate(zip(config.searches(), GAINS, strict=True)):
        search(search_folder(folder, number), one, gain)
    return rows_of(folder, config, [])


def best_of(folder: Path, arm: str) -> float:
    rows = trial_rows(read_ledger(folder))
    return max(row["best/val/acc"] for row in rows if row["variant"] == arm and row["role"] == Role.SEARCH)


def test_without_a_confirmation_the_score_of_an_arm_is_that_of_its_best_trial(tmp_path: Path) -> None:
    config = ablation()
    rows = {(row["variant"], row["seed"]): row["best/val/acc"] for row in searched(tmp_path, config)}
    assert rows == {(arm, k): best_of(search_folder(tmp_path, k), arm) for arm in (OURS, PLAIN) for k in range(len(GAINS))}


def test_with_a_confirmation_it_is_the_mean_of_the_best_configuration_over_fresh_seeds(tmp_path: Path) -> None:
    config = ablation(confirm={"top": 2, "seeds": 2})
    rows = {(row["variant"], row["seed"]): row["best/val/acc"] for row in searched(tmp_path, config)}
    for number in range(len(GAINS)):
        of_search = trial_rows(read_ledger(search_folder(tmp_path, number)))
        for arm in (OURS, PLAIN):
            own = [row for row in of_search if row["role"] == Role.CONFIRM and row["variant"] == arm]
            means = [
                fmean(row["best/val/acc"] for row in own if row["confirms"] == name) for name in {row["confirms"] for row in own}
            ]
            assert len(means) == 2
            assert rows[arm, number] == pytest.approx(max(means))


def test_no_two_searches_share_a_seed_of_trials(tmp_path: Path) -> None:
    """Else they would be confirmed on the same images, and not be independent."""
    config = ablation(confirm={"top": 1, "seeds": 3})
    seeds = []
    for number, one in enumerate(config.searches()):
        search(search_folder(tmp_path, number), one, 0)
        seeds += sorted({row["seed"] for row in trial_rows(read_ledger(search_folder(tmp_path, number)))})
    assert len(set(seeds)) == len(seeds) == 4 * len(GAINS)
    assert [one.search.seed for one in config.searches()] == [0, 1, 2, 3]


def test_the_table_compares_the_arms_over_searches(tmp_path: Path) -> None:
    config = ablation()
    rows = searched(tmp_path, config)
    scores = {arm: [row["best/val/acc"] for row in rows if row["variant"] == arm] for arm in (OURS, PLAIN)}
    ours, plain = (line.row for line in compared(config, rows))
    assert (ours.name, plain.name) == (OURS, PLAIN)
    assert ours.num_pairs == len(GAINS)
    assert ours.difference == pytest.approx(fmean(scores[OURS]) - fmean(scores[PLAIN]))
    assert ours.p_t == pytest.approx(stats.ttest_rel(scores[OURS], scores[PLAIN]).pvalue)


def test_a_sentence_says_in_how_many_searches_an_arm_beats_the_reference(tmp_path: Path) -> None:
    config = ablation()
    rows = [
        {"variant": arm, "seed": number, "status": "finished", "collapse": None, "best/val/acc": 0.8 + gain * (arm == OURS)}
        for number, gain in enumerate(GAINS)
        for arm in (OURS, PLAIN)
    ]
    assert wins(config, rows) == ["difficulty_net beats cross_entropy in 2 of 4 searches, and equals it in 1."]
    write_outcome(tmp_path, config, rows)
    text = (tmp_path / "ablation" / "table.md").read_text()
    assert wins(config, rows)[0] in text
    assert "compared with cross_entropy on the same searches" in text
    assert "that of its best trial, the luckiest of 3 for every arm alike" in text
    assert "over 5 fresh seeds" in " ".join(explanation(ablation(confirm={})))


def test_a_search_that_is_not_complete_does_not_count(tmp_path: Path) -> None:
    config = ablation(seeds=3)
    first, second, _ = config.searches()
    search(search_folder(tmp_path, 0), first, 0)
    search(search_folder(tmp_path, 1), second, 0, complete=False)
    assert complete_searches(tmp_path, config) == [0]
    assert {row["seed"] for row in rows_of(tmp_path, config, [])} == {0}


def test_an_arm_without_a_result_has_one_search_less(tmp_path: Path) -> None:
    config = ablation(seeds=3)
    for number, one in enumerate(config.searches()):
        search(search_folder(tmp_path, number), one, 0.01, diverges=OURS if number == 1 else "")
    lines = {line.row.name: line for line in compared(config, rows_of(tmp_path, config, []))}
    assert [(lines[arm].row.num_seeds, lines[arm].failed) for arm in (OURS, PLAIN)] == [(2, 1), (3, 0)]
    assert wins(config, rows_of(tmp_path, config, [])) == ["difficulty_net beats cross_entropy in 2 of 2 searches."]
