"""Compares the methods of a finished sweep on fresh seeds, each with the configuration that was best for it: docs/methods.md.

    python -m benchmarks.methods RESULTS/NAME [--seeds 5] [--processes 2] [--json | --markdown]

A sweep compares methods by `search.per_method`, by references, or by a searched `method.name`. Of each method's finished trials,
the configuration with the best val accuracy is trained again, on seeds that no trial of the sweep has used. Each seed has its own
split, initial weights and batches, and is the same for all methods, so differences to cross-entropy are paired. Val selects the
epoch; the test set is read once for each training. Trainings run side by side on the CPU, with one thread each.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

from orchestrator.decide.fresh_seeds import fresh_seeds
from orchestrator.ledger.events import Role
from orchestrator.ledger.ledger import read_ledger
from orchestrator.ledger.trial_states import trial_states_of
from orchestrator.outcome.confirmation import Row
from orchestrator.outcome.tables import best_runs, objective, trial_rows
from trainables.config import TrialConfig

BASELINE = "cross_entropy"
"""The method that all others are compared with."""

Train = Callable[[TrialConfig], "Result"]


class Chosen(NamedTuple):
    """A method's best configuration in the sweep."""

    config: TrialConfig
    search_val: float
    """The val accuracy by which it was chosen, mean over its runs; too high, because it is the best of several."""


class Result(NamedTuple):
    """A training on a fresh seed."""

    val: float
    test: float
    ended: str = ""
    """Why the training ended early, if it did; then there are no accuracies."""


class Line(NamedTuple):
    """A method's line in the table. Accuracies are fractions."""

    method: str
    search_val: float
    val: float
    test: float
    test_sd: float
    difference: float | None
    """Mean over seeds of the test accuracy minus the baseline's on the same seed; None without a baseline."""
    difference_se: float | None
    """Standard error of `difference`."""


def best_of_methods(rows: list[Row]) -> dict[str, list[Row]]:
    """The runs of each method's best configuration. A method is a reference's or arm's name, or else `method.name`.

    Args:
        rows: the table of trials. Confirmations are not looked at: they repeat configurations of the search.
    """
    methods: dict[str, list[Row]] = {}
    for row in rows:
        if row["role"] != Role.CONFIRM:
            methods.setdefault(row["variant"] or row["config/method.name"], []).append(row)
    return {method: runs for method, of_method in methods.items() if (runs := best_runs(of_method))}


def read_sweep_results(folder: Path, num_seeds: int) -> tuple[dict[str, Chosen], list[int]]:
    """The best configuration of each method of a sweep, and seeds that the sweep has not used.

    Raises:
        ValueError: when no trial has finished.
    """
    events = read_ledger(folder)
    trials, rows = trial_states_of(events), trial_rows(events)
    best = best_of_methods(rows)
    if not best:
        raise ValueError(f"{folder}: no trial has finished, so there is no configuration to train")
    chosen = {
        method: Chosen(TrialConfig.model_validate(trials[runs[0]["trial_id"]].config), statistics.mean(map(objective, runs)))
        for method, runs in best.items()
    }
    return chosen, fresh_seeds((row["seed"] for row in rows), num_seeds)


def train(config: TrialConfig) -> Result:
    """Trains a configuration; test is read with the model of the best-val epoch."""
    from benchmarks.seeds import val_and_test
    from trainables.engine.health import TrialEnded

    try:
        return Result(*val_and_test(config))
    except TrialEnded as reason:
        return Result(float("nan"), float("nan"), f"{type(reason).__name__}: {reason}")


def results_of(chosen: dict[str, Chosen], seeds: list[int], processes: int) -> dict[str, dict[int, Result]]:
    """Trains each configuration on each seed, in separate processes; says on stderr what is done. Results by seed."""
    changes = {"threads": 1, "device": "cpu"}
    found: dict[str, dict[int, Result]] = {method: {} for method in chosen}
    began, number = time.monotonic(), len(seeds) * len(chosen)
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        # Seed by seed, so that the first seeds of all methods are complete first.
        runs = {
            pool.submit(train, one.config.model_copy(update={"seed": seed, **changes})): (method, seed)
            for seed in seeds
            for method, one in chosen.items()
        }
        for done, run in enumerate(as_completed(runs), start=1):
            method, seed = runs[run]
            result = found[method][seed] = run.result()
            seconds = time.monotonic() - began
            words = result.ended or f"val {result.val:.3f}, test {result.test:.3f}"
            print(f"{done}/{number}, {seconds:.0f} s: {method}, seed {seed}: {words}", file=sys.stderr, flush=True)
    return found


def lines_of(chosen: dict[str, Chosen], found: dict[str, dict[int, Result]]) -> list[Line]:
    """The lines of the methods whose trainings all came to their end, the best mean test accuracy first."""
    whole = {method: runs for method, runs in found.items() if not any(result.ended for result in runs.values())}
    baseline = whole.get(BASELINE)
    lines = []
    for method, runs in whole.items():
        tests = [result.test for result in runs.values()]
        differences = [runs[seed].test - baseline[seed].test for seed in runs] if baseline else []
        lines.append(
            Line(
                method,
                chosen[method].search_val,
                statistics.mean(result.val for result in runs.values()),
                statistics.mean(tests),
                statistics.stdev(tests),
                statistics.mean(differences) if differences else None,
                statistics.stdev(differences) / len(differences) ** 0.5 if differences else None,
            )
        )
    return sorted(lines, key=lambda line: -line.test)


def endings(found: dict[str, dict[int, Result]]) -> Iterator[str]:
    """A sentence for each training that did not come to its end; its method has no line."""
    for method, runs in found.items():
        for seed, result in runs.items():
            if result.ended:
                yield f"{method} has no line: with seed {seed} the training ended early: {result.ended}"


COLUMNS = ("method", "val of the search", "val", "test", "sd", "minus cross-entropy", "se")


def cells(line: Line) -> list[str]:
    """A line as words, without the baseline's difference to itself."""
    numbers = [f"{value:.3f}" for value in line[1:5]]
    if line.difference is None or line.difference_se is None or line.method == BASELINE:
        return [line.method, *numbers, "", ""]
    return [line.method, *numbers, f"{line.difference:+.3f}", f"{line.difference_se:.3f}"]


def markdown(lines: list[Line]) -> str:
    """The table in docs/methods.md."""
    rows = [(f"`{line.method}`", *cells(line)[1:]) for line in lines]
    table = [COLUMNS, ("---",) * len(COLUMNS), *rows]
    return "\n".join("|" + "|".join(f" {cell} " if cell else " " for cell in row) + "|" for row in table)


def text(lines: list[Line]) -> str:
    """The table for a terminal."""
    width = max(len(line.method) for line in lines) + 2
    rows = [COLUMNS, *(cells(line) for line in lines)]
    return "\n".join(f"{row[0]:<{width}}" + "".join(f"{cell:>21}" for cell in row[1:]) for row in rows)


def flat(lines: list[Line], seeds: list[int]) -> dict[str, float]:
    """The table as one flat object; fields of a method begin with its name."""
    result: dict[str, float] = {"num_seeds": len(seeds), "first_seed": seeds[0]}
    for line in lines:
        named = {"search_val": line.search_val, "val_mean": line.val, "test_mean": line.test, "test_sd": line.test_sd}
        result |= {f"{line.method}_{key}": value for key, value in named.items()}
        if line.difference is not None and line.difference_se is not None and line.method != BASELINE:
            result[f"{line.method}_minus_{BASELINE}_test_mean"] = line.difference
            result[f"{line.method}_minus_{BASELINE}_test_se"] = line.difference_se
    return result


def main(arguments: list[str]) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.methods")
    parser.add_argument("folder", type=Path, help="results folder of a finished sweep")
    parser.add_argument("--seeds", type=int, default=5, help="fresh seeds, at least 2 (default: 5)")
    parser.add_argument("--processes", type=int, default=2, help="trainings at a time (default: 2)")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print one flat JSON object")
    output.add_argument("--markdown", action="store_true", help="print the table of docs/methods.md")
    given = parser.parse_args(arguments)
    if given.seeds < 2 or given.processes < 1:
        parser.error(f"--seeds is {given.seeds}, --processes is {given.processes}; allowed: at least 2 seeds and 1 process")
    try:
        chosen, seeds = read_sweep_results(given.folder, given.seeds)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    found = results_of(chosen, seeds, given.processes)
    for words in endings(found):
        print(words, file=sys.stderr)
    lines = lines_of(chosen, found)
    if not lines:
        return 1
    print(json.dumps(flat(lines, seeds)) if given.json else markdown(lines) if given.markdown else text(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
