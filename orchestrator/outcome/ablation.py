"""The outcome of an ablation: what may be said of each variant, in numbers and in sentences."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from orchestrator.config.ablation_config import FULL, PATH, AblationConfig, AdaptiveSeedsConfig, Cell
from orchestrator.config.sweep_config import SweepConfig
from orchestrator.decide.path_steps import path_of
from orchestrator.ledger.events import Status
from orchestrator.outcome.confirmation import Row
from orchestrator.statistics.paired import PairedRow, PrimaryTest, Rule, paired_differences, paired_table
from orchestrator.statistics.seeds import seeds_needed, smallest_p

OTHERS = ("acc_many", "acc_medium", "acc_few")
"""The bands of classes whose means stand beside the metric."""


OVER = (Status.FINISHED, Status.DIVERGED, Status.FAILED)
"""How a trial of an ablation ends, if nobody interrupts it."""


class Compared(NamedTuple):
    """A line of the table."""

    condition: str
    """Levels of the factors; empty without factors."""
    row: PairedRow
    failed: int
    """Seeds without a result, because the trial diverged or failed; or searches, because those of an arm did."""
    means: dict[str, float]
    """Means over seeds of the metric at the best-val and at the last epoch, and of the bands, by name."""
    published: float | None
    label: str
    """The variant's name; of a step of a path, what the step adds."""


def rule_of(plan: AblationConfig) -> Rule:
    """How the plan's results are judged."""
    num_looks = len(plan.seeds.looks()) if isinstance(plan.seeds, AdaptiveSeedsConfig) else 1
    return Rule(margin=plan.margin, test=PrimaryTest(plan.test or "paired_t"), level=plan.level, num_looks=num_looks)


def column_of(metric: str) -> str:
    """The column of trials.parquet that holds a metric of the plan."""
    part, name = metric.split("/", 1)
    return {"val": f"best/val/{name}", "last": f"last/val/{name}"}.get(part, metric)


def compared(config: SweepConfig, rows: Sequence[Row]) -> list[Compared]:
    """The table: a line for each variant that has a result, under each combination of the factors' levels.

    Args:
        config: of an ablation.
        rows: of its trials, or of the arms of its searches; see `rows_of`.
    """
    plan, of_cell, lines = config.comparison, by_cell(rows), []
    shown = plan.cells() if plan.kind != PATH else path_cells(config, rows)
    labels = {cell.variant: f"+ {' + '.join(added)}" for _, cell, added in steps(plan, shown)} if plan.kind == PATH else {}
    for condition in plan.conditions():
        cells = [cell for cell in shown if cell.condition == condition]
        scores = {cell.variant: scores_of(of_cell.get(cell.name, []), plan.metric) for cell in cells}
        table = {row.name: row for row in _judged(scores, plan)}
        for cell in cells:
            own = of_cell.get(cell.name, [])
            if cell.variant in table:
                failed = sum(row["status"] in (Status.FAILED, Status.DIVERGED) for row in own)
                means = _means(own, plan.metric)
                label = labels.get(cell.variant, cell.variant)
                lines.append(Compared(condition, table[cell.variant], failed, means, plan.published_of(cell), label))
    return lines


def by_cell(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The trials of each cell."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["variant"], []).append(row)
    return found


def path_cells(config: SweepConfig, rows: Sequence[Row]) -> list[Cell]:
    """The variants on an ablation path, from `none` to `full`, as far as it has come."""
    plan, part = config.comparison, "last" if "last" in config.comparison.metric.split("/")[0] else "val"
    on_val = column_of(f"{part}/{plan.metric.split('/')[1]}")
    scores = {
        cell: {row["seed"]: row.get(on_val) if row["status"] == Status.FINISHED else None for row in of if row["status"] in OVER}
        for cell, of in by_cell(rows).items()
    }
    steps = path_of(plan, scores, config.trial.seed).steps
    names = [plan.name_of(steps[:number]) for number in range(len(steps) + 1)]
    return [plan.cell_with(name) for name in dict.fromkeys([*names, FULL])]


def _judged(scores: Mapping[str, Mapping[int, float]], plan: AblationConfig) -> list[PairedRow]:
    """The comparison; without tests where the plan asks for none."""
    table = paired_table(scores, plan.reference_name, rule_of(plan))
    if plan.test is not None:
        return table
    return [
        row._replace(p_t=None, p_sign_flip=None, p_corrected=None, p_equivalence=None, verdict=None, further_seeds=None)
        for row in table
    ]


def scores_of(rows: Sequence[Row], metric: str) -> dict[int, float]:
    """The scores of a cell's finished trials, by seed."""
    column = column_of(metric)
    finished = {row["seed"]: row.get(column) for row in rows if row["status"] == Status.FINISHED}
    return {seed: score for seed, score in finished.items() if score is not None}


def _means(rows: Sequence[Row], metric: str) -> dict[str, float]:
    part, name = metric.split("/", 1)
    wanted = [f"{one}/{name}" for one in (("test", "test_last") if part.startswith("test") else ("val", "last"))]
    wanted += [f"{part}/{band}" for band in OTHERS if name == "acc"]
    found = {other: list(scores_of(rows, other).values()) for other in wanted}
    return {other: sum(values) / len(values) for other, values in found.items() if values}


def tables_by_condition(lines: Sequence[Compared]) -> dict[str, list[Compared]]:
    """The lines of each combination of levels."""
    found: dict[str, list[Compared]] = {}
    for line in lines:
        found.setdefault(line.condition, []).append(line)
    return found


def unit_of(config: SweepConfig) -> str:
    """What an ablation's variants are paired by."""
    return "searches" if config.repeats_search else "seeds"


def findings(config: SweepConfig, rows: Sequence[Row]) -> list[str]:
    """What the table does not say, in sentences: see `wins` and `gains`.

    Args:
        config: of an ablation.
        rows: of its trials, or of the arms of its searches; see `rows_of`.
    """
    return gains(config, rows) if config.comparison.kind == PATH else wins(config, rows)


def gains(config: SweepConfig, rows: Sequence[Row]) -> list[str]:
    """What each step of an ablation path gains over the step before, in sentences."""
    plan, of_cell = config.comparison, by_cell(rows)
    cells = path_cells(config, rows)
    scores = {cell.name: scores_of(of_cell.get(cell.name, []), plan.metric) for cell in cells}
    sentences: list[str] = []
    for before, cell, added in steps(plan, cells):
        row = paired_table({one.name: scores[one.name] for one in (before, cell)}, before.name, rule_of(plan))[-1]
        if row.difference is not None:
            step = f"{' and '.join(added)}: {100 * row.difference:+.2f} points on {plan.metric}"
            low, high = row.difference_low, row.difference_high
            interval = "" if low is None or high is None else f" (95 % interval {100 * low:+.2f} to {100 * high:+.2f})"
            sentences.append(f"Step {len(sentences) + 1} of the path takes {step}{interval}.")
    return sentences


def steps(plan: AblationConfig, cells: Sequence[Cell]) -> Iterator[tuple[Cell, Cell, list[str]]]:
    """The steps of a path: the variant before, the variant after, and the components that it adds; several where the path breaks
    off.
    """
    for before, cell in itertools.pairwise(cells):
        had, has = (list(plan.components) if one.variant == FULL else one.variant.split("+") for one in (before, cell))
        yield before, cell, [name for name in has if name not in had]


def wins(config: SweepConfig, rows: Sequence[Row]) -> list[str]:
    """In how many searches each arm beats the reference, in sentences; none for an ablation that does not repeat a search.

    Args:
        config: of an ablation.
        rows: of the arms of its searches; see `rows_of`.
    """
    plan = config.comparison
    names = list(plan.changes_by_variant()) if config.repeats_search else []
    scores = {name: scores_of([row for row in rows if row["variant"] == name], plan.metric) for name in names}
    sentences = []
    for name in names:
        if name != plan.reference_name and (differences := paired_differences(scores, plan.reference_name)[name]).size:
            ties = f", and equals it in {number}" if (number := int((differences == 0).sum())) else ""
            won = int((differences > 0).sum())
            sentences.append(f"{name} beats {plan.reference_name} in {won} of {len(differences)} searches{ties}.")
    return sentences


def explanation(config: SweepConfig) -> list[str]:
    """What the table's numbers mean, in sentences."""
    plan, unit = config.comparison, unit_of(config)
    rule, test = rule_of(plan), "the paired t-test" if plan.test != "sign_flip" else "the exact sign-flip test"
    looks = f" and {rule.num_looks} looks" if rule.num_looks > 1 else ""
    sentences = [
        f"{plan.metric} in percent, compared with {plan.reference_name} on the same {unit}; intervals are 95 % t-intervals of "
        "one difference.",
    ]
    if config.repeats_search:
        confirm, number = config.search.confirm, config.search.num_proposed()
        each = f"the mean of its best configuration over {confirm.seeds} fresh seeds" if confirm else "that of its best trial"
        lucky = "" if confirm else f", the luckiest of {number} for every arm alike"
        sentences.append(f"The score of an arm in a search is {each}{lucky}.")
    if plan.kind == PATH:
        sentences.append(
            "Each step of the path adds the component that gains most on val, on the same seeds; so a chosen step looks a little "
            "better than it is, and the last one, which nothing is chosen for, does not."
        )
    if plan.test is not None:
        sentences.append(
            f"p: paired t-test. p corrected: {test}, by Holm over the table{looks}. better, worse: p corrected is at most "
            f"{plan.level:g}. equivalent: a difference of {100 * plan.margin:g} points is excluded. undecided +n: n more {unit} "
            "would give a power of 80 %, if the true difference is the observed one."
        )
        if plan.test != "sign_flip" and (smallest := smallest_p(plan.most_seeds(), plan.num_tests())) > plan.level:
            sentences.append(
                f"With {plan.most_seeds()} {unit} the sign-flip test cannot reach {plan.level:g} (at best {smallest:.3g}): the "
                "verdicts rest on the t-test's assumption of normal differences. "
                f"{seeds_needed(plan.num_tests(), plan.level)} {unit} would do without."
            )
    return sentences
