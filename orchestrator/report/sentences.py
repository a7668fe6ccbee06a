"""The summary of a report: what came out, how far it can be trusted, what it cost, what failed, and what to try next."""

import math
import shlex
from collections import Counter
from collections.abc import Iterator
from statistics import mean, stdev
from typing import NamedTuple

from orchestrator.config.search_config import CategoricalParameter
from orchestrator.config.sweep_config import SweepConfig
from orchestrator.decide.importance import Importance
from orchestrator.ledger.events import Role, Status
from orchestrator.ledger.ledger import start_of
from orchestrator.ledger.usage import Usage
from orchestrator.outcome.ablation import compared, explanation, findings
from orchestrator.outcome.arm_results import arm_results
from orchestrator.outcome.confirmation import Row, confirmation, verdict
from orchestrator.outcome.differences import differences, interval, reference_behind
from orchestrator.outcome.searches import complete_searches, rows_of
from orchestrator.outcome.tables import not_dominated, objective
from orchestrator.report.reading import Sweep
from orchestrator.statistics.proportions import wilson
from orchestrator.statistics.t_interval import half_width
from trainables.words import duration, plural

EDGE = 0.05
"""A value this near to the end of its range, as a share of the range on its own scale, may have wanted to go further."""
LATE = 0.9
"""A best epoch after this share of the epochs says that the trial was still getting better."""
UNIMPORTANT = 0.1
"""A setting whose importance has an interval below this share may be fixed."""
SHOWN_HOURS = 0.005
"""Of GPUs; less is shown as 0."""
MOST_REASONS = 3
"""Of failures."""


class Part(NamedTuple):
    """A part of the summary."""

    title: str
    sentences: list[str]


def summary(sweep: Sweep, importances: list[Importance]) -> list[Part]:
    """The summary; parts without a sentence are left out.

    Args:
        sweep: or ablation.
        importances: of the searched settings, the most important first; none where there were too few trials.
    """
    result = _ablation(sweep) if sweep.config.ablation else _result(sweep)
    parts = [
        Part("Result", list(result)),
        Part("How to read this", explanation(sweep.config) if sweep.config.ablation else []),
        Part("Cost", list(_cost(sweep))),
        Part("Failures", list(_failures(sweep))),
        Part("What to try next", list(_next(sweep, importances))),
    ]
    return [part for part in parts if part.sentences]


def _result(sweep: Sweep) -> Iterator[str]:
    config, rows = sweep.config, sweep.rows
    best, name = sweep.best, config.trial.selection()
    finished = sum(row["status"] == Status.FINISHED for row in rows)
    if not sweep.is_over:
        begun = sum(row["epochs"] > 0 for row in rows)
        yield f"The sweep is not over: {begun} of {config.num_trials()} trials have begun, {finished} have finished."
    elif reason := sweep.end.get("reason"):
        yield f"Not all trials ran to their ends: {reason}."
    if best is None:
        yield "No trial has finished, so there is no best one."
        return
    value, epochs = objective(best), best["config/epochs"]
    within = interval(sweep.counting_images, value)
    who = f"{_called(best)} is the best of {finished} finished trials"
    if best["confirms"]:
        who = f"The configuration of {best['confirms']} has the highest mean on fresh seeds; its best run is {_called(best)}"
    yield (
        f"{who}: {name} {value:.4f} in epoch {best['best/epoch']} of {epochs}"
        + (
            f", with a 95 % interval of {within[0]:.3f} to {within[1]:.3f} over the {sweep.num_val} validation images."
            if within
            else "."
        )
    )
    yield from _against_references(sweep, best)
    if len(config.objectives()) > 1:
        front = not_dominated(rows, config.objectives())
        names = " and ".join(config.objectives())
        are = "trial is" if len(front) == 1 else "trials are"
        yield f"{len(front)} {are} on the Pareto front of {names}: no other is better in one and as good in all."
    if config.compares_arms:
        yield from _arms(rows, config)
    yield from _trust(sweep, best)
    yield from _test(sweep)


def _against_references(sweep: Sweep, best: Row) -> Iterator[str]:
    found = {one.trial_id: one for one in differences(sweep.config, sweep.rows, best, sweep.counting_images)}
    for row in sweep.rows:
        if row["role"] != Role.REFERENCE or row["trial_id"] in (best["trial_id"], best["confirms"]):
            continue
        if row["status"] != Status.FINISHED:
            yield f"The reference {row['variant']} ({row['trial_id']}) has no result: {in_words(row['status'])}."
            continue
        if (one := found.get(row["trial_id"])) is None:
            value = objective(row)
            yield f"The reference {row['variant']} ({row['trial_id']}) reached {value:.4f} on another seed, {row['seed']}."
            continue
        where = f" on average over the same {one.num_seeds} fresh seeds" if one.num_seeds else ""
        text = (
            f"The reference {one.name} ({one.trial_id}) reached {one.reference:.4f}{where}, so the best leads by {one.lead:+.4f}"
        )
        if one.interval:
            low, high = one.interval
            chance = "seeds" if one.num_seeds else "images"
            blind = "seeds" if one.num_seeds else "validation images"
            so = (
                f"the {blind} do not tell the two apart"
                if low <= 0 <= high
                else f"that is more than the choice of {chance} explains"
            )
            text += f" (95 % {'t-' if one.num_seeds else ''}interval {low:+.3f} to {high:+.3f}): {so}"
        yield f"{text}."


def _arms(rows: list[Row], config: SweepConfig) -> Iterator[str]:
    results = arm_results(rows, [arm.name for arm in config.arms()])
    for result in results:
        text = f"{result.name}: {plural(result.num_trials, 'trial')}, "
        text += "none of which finished" if result.best is None else f"best {result.best:.4f}"
        if result.mean is not None and result.sd is not None:
            text += f", {result.mean:.4f} on average over fresh seeds (sd {result.sd:.4f})"
        if result.gain is not None and result.gain_half is not None:
            low, high = result.gain - result.gain_half, result.gain + result.gain_half
            text += (
                f", {result.gain:+.4f} against {config.arms()[0].name} on the same seeds "
                f"(95 % t-interval {low:+.4f} to {high:+.4f})"
            )
        yield f"{text}."


def _trust(sweep: Sweep, best: Row) -> Iterator[str]:
    rows, config = sweep.rows, sweep.config
    confirmed = confirmation(rows)
    if confirmed is None or confirmed.comparison is None:
        number = sum(row["role"] == Role.SEARCH for row in rows)
        if reference_behind(best, rows):
            yield f"None of {plural(number, 'searched trial')} beat the references."
        yield (
            "One seed says little. The best trial and its epoch were chosen on the same validation images that measure it, "
            f"among {plural(len(rows), 'trial')}, so its value is optimistic."
        )
        return
    seeds = confirmed.comparison.num_seeds
    for summary in confirmed.comparison.summaries:
        half = half_width(summary.sd, seeds)
        yield (
            f"The configuration of {summary.name}, again on {seeds} fresh seeds: {config.trial.selection()} {summary.mean:.4f} "
            f"on average (sd {summary.sd:.4f}, 95 % t-interval {summary.mean - half:.4f} to {summary.mean + half:.4f})."
        )
    yield f"On fresh seeds, {verdict(confirmed.comparison)}."
    if name := reference_behind(best, rows):
        yield f"No searched configuration beat the reference {name}."
    if confirmed.left_out:
        yield f"Left out, without a result on every seed: {', '.join(confirmed.left_out)}."


def _test(sweep: Sweep) -> Iterator[str]:
    """The readings of the sealed test set for what was exported last."""
    exported, readings = sweep.course.exported, sweep.course.readings
    if exported is None or exported["metrics"].get("test/acc") is None:
        return
    value, number = exported["metrics"]["test/acc"], len((start_of(sweep.events).get("split") or {}).get("test") or ())
    assert value is not None
    text = f"The exported model, {exported['trial_id']}, has test/acc {value:.4f}"
    if number and sweep.config.trial.data.test_distribution == "balanced":
        low, high = wilson(value, number)
        text += f" (95 % interval {low:.3f} to {high:.3f} over {number} images)"
    times = "once" if len(readings) == 1 else f"{len(readings)} times, once for each model"
    yield f"{text}. The sealed test set was read {times}."
    tested = [event["metrics"]["test/acc"] for event in readings if event["metrics"].get("test/acc") is not None]
    if len(tested) > 1:
        scores = [score for score in tested if score is not None]
        yield f"Over these {len(scores)} runs, test/acc is {mean(scores):.4f} on average (sd {stdev(scores):.4f})."


def _ablation(sweep: Sweep) -> Iterator[str]:
    config = sweep.config
    rows = rows_of(sweep.folder, config, sweep.events)
    if config.repeats_search:
        complete = len(complete_searches(sweep.folder, config))
        yield f"{complete} of {len(config.searches())} searches are complete. Each has a report of its own."
    elif not sweep.is_over:
        yield "The ablation is not over: later seeds may change what is said here."
    if sweep.is_over and (reason := sweep.end.get("reason")):
        yield f"Not everything ran to its end: {reason}."
    lines = compared(config, rows)
    if not lines:
        yield "No variant has a result yet."
    for line in lines:
        row, where = line.row, f" with {line.condition}" if line.condition else ""
        text = f"{line.label}{where}: {config.comparison.metric} {row.mean:.4f} on average over {row.num_seeds} "
        text += ("searches" if config.repeats_search else "seeds") if row.num_seeds != 1 else "seed"
        if row.difference is not None:
            text += f", {row.difference:+.4f} against {config.comparison.reference_name}"
        if row.difference_low is not None and row.difference_high is not None:
            text += f" (95 % t-interval {row.difference_low:+.4f} to {row.difference_high:+.4f})"
        yield f"{text}{f': {row.verdict}' if row.verdict else ''}."
    yield from findings(config, rows)


def _cost(sweep: Sweep) -> Iterator[str]:
    usage, seconds = sweep.course.usage, sweep.course.seconds
    if not sweep.rows:
        return
    trials, slots = plural(len(sweep.rows), "trial"), plural(usage.most_slots, "slot")
    yield f"{trials} took {duration(seconds)} on {slots}, of whose time {100 * usage.idle_share():.0f} % was waiting."
    yield from _gpus(usage, sweep.config)


def _gpus(usage: Usage, config: SweepConfig) -> Iterator[str]:
    hours, price = usage.gpu_hours(), config.budget.cost_per_gpu_hour
    if hours >= SHOWN_HOURS:
        cost = f", which cost {hours * price:.2f}" if price else ""
        yield f"They used {hours:.2f} GPU hours{cost}."
    if (machines := usage.machine_hours()) and machines.total:
        cost = f", which cost {machines.total * price:.2f}" if price else ""
        yield f"Machines were up for {machines.total:.2f} GPU hours{cost}; in {machines.trials:.2f} of these trials trained."


def _failures(sweep: Sweep) -> Iterator[str]:
    count = Counter(row["status"] for row in sweep.rows)
    if count:
        yield f"{', '.join(f'{count[status]} {in_words(status)}' for status in Status if count[status])}."
    reasons = Counter(
        last_line(row["stop_reason"] or "no reason is known")
        for row in sweep.rows
        if row["status"] in (Status.FAILED, Status.DIVERGED)
    )
    for reason, number in reasons.most_common(MOST_REASONS):
        yield f"{plural(number, 'trial')} ended with: {reason}"
    if lost := sweep.course.num_losses:
        yield f"{plural(lost, 'time')} a process or its workers were lost; their trials went on from the last checkpoint."
    if collapsed := [row for row in sweep.rows if row["collapse"]]:
        which = ", ".join(row["trial_id"] for row in collapsed[:5]) + (", ..." if len(collapsed) > 5 else "")
        yield f"The weighting collapsed in {plural(len(collapsed), 'trial')} ({which})."


def _next(sweep: Sweep, importances: list[Importance]) -> Iterator[str]:
    config, rows, folder = sweep.config, sweep.rows, shlex.quote(str(sweep.folder))
    best = sweep.best
    if config.ablation or best is None:
        if not config.ablation and sweep.is_over and rows:
            yield "The reasons are in the table of trials below; python -m orchestrator.doctor looks at data and machine."
        return
    if not config.search.confirm:
        yield (
            "Confirm the result: search.confirm={top: 3, seeds: 5} runs the best configurations again on fresh seeds; --resume "
            "may add it."
        )
    if best["role"] == Role.SEARCH:
        for name in config.space:
            if end := at_the_edge(config, name, best.get(f"config/{name}")):
                bound = f"space.{name}.{'low' if end == 'lower' else 'high'}"
                yield f"The best {name} is at the {end} end of its range: widen {bound}."
        if len(config.space) > 1:
            yield f"Train without each of its settings, to see which matter: python -m orchestrator.ablate --from-sweep {folder}"
    if best["best/epoch"] > LATE * best["config/epochs"]:
        yield f"The best epoch is {best['best/epoch']} of {best['config/epochs']}: longer trials may reach more (trial.epochs)."
    for found in importances:
        if found.ped_anova_high < UNIMPORTANT:
            yield (
                f"{found.name} made little difference (importance {found.ped_anova:.2f}, 90 % interval {found.ped_anova_low:.2f} "
                f"to {found.ped_anova_high:.2f}): fix it, and search the others more densely."
            )


def at_the_edge(config: SweepConfig, name: str, value: object) -> str | None:
    """`lower` or `upper`, when a number lies at an end of its range, which is not its `or_exactly`."""
    parameter = config.space[name]
    if isinstance(parameter, CategoricalParameter) or not isinstance(value, int | float) or isinstance(value, bool):
        return None
    if value == getattr(parameter, "or_exactly", None) or not parameter.low < parameter.high:
        return None
    scale = math.log if parameter.log else float
    place = (scale(value) - scale(parameter.low)) / (scale(parameter.high) - scale(parameter.low))
    return "lower" if place < EDGE else "upper" if place > 1 - EDGE else None


def _called(row: Row) -> str:
    return f"{row['variant']} ({row['trial_id']})" if row["variant"] else str(row["trial_id"])


def in_words(status: str) -> str:
    """A status as people read it."""
    return status.replace("_", " ")


def last_line(text: str) -> str:
    """The last line of an error, without the traceback before it."""
    return (text.strip().splitlines() or [""])[-1]
