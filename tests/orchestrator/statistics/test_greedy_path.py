"""Ablation paths, compared with a search through all sets of components."""

import itertools
import random
from collections.abc import Collection

import pytest

from orchestrator.statistics.greedy_path import Walk, walk

NAMES = list("abcd")


def test_each_step_takes_the_component_that_gains_most_with_those_before_it() -> None:
    gains = {"a": 1.0, "b": 3.0, "c": 2.0}

    def score_of(names: Collection[str]) -> tuple[int, float]:
        return 1, sum(gains[name] for name in names) - (4 if {"b", "c"} <= set(names) else 0)

    assert walk("abc", score_of) == Walk(["b", "a", "c"], [])  # c alone is better than a, but not beside b


@pytest.mark.parametrize("seed", range(20))
def test_of_all_orders_the_path_is_the_one_whose_means_are_largest_step_by_step(seed: int) -> None:
    draw = random.Random(seed)
    means = {frozenset(names): draw.random() for size in range(5) for names in itertools.combinations(NAMES, size)}
    best = max(itertools.permutations(NAMES), key=lambda order: [means[frozenset(order[:size])] for size in range(1, 5)])
    assert walk(NAMES, lambda names: (1, means[frozenset(names)])) == Walk(list(best), [])


def test_the_candidates_of_the_first_step_without_results_are_asked_for() -> None:
    known = {frozenset("b"): (2, 0.5), frozenset("a"): (2, 0.4), frozenset("c"): (2, 0.3), frozenset("ab"): (2, 0.6)}
    found = walk("abc", lambda names: known.get(frozenset(names)))
    assert found.steps == ["b"]
    assert set(found.open) == {frozenset("ab"), frozenset("bc")}


def test_a_set_that_diverges_on_a_seed_loses_and_equal_sets_go_by_their_order() -> None:
    scores = {frozenset("a"): (1, 0.9), frozenset("b"): (2, 0.1), frozenset("c"): (2, 0.1), frozenset("abc"): (2, 0.5)}
    assert walk("abc", lambda names: scores.get(frozenset(names), (0, 0.0))).steps == ["b", "a", "c"]
