"""Prints what a person sees after a sweep: the best trial beside the references, the files, and the next commands."""

import json
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from orchestrator.config.sweep_config import SweepConfig, read_sweep
from orchestrator.ledger.events import Event, Kind, Role, Status
from orchestrator.ledger.ledger import last, read_ledger, start_of
from orchestrator.ledger.usage import MachineHours, Usage, clock_of, usage_of
from orchestrator.outcome.arm_results import ArmResult, arm_results
from orchestrator.outcome.confirmation import Confirmation, Row, confirmation, verdict
from orchestrator.outcome.differences import counting_images, differences, images_in, reference_behind, scores_of, worth
from orchestrator.outcome.searches import complete_searches, rows_of
from orchestrator.outcome.stats import Comparison
from orchestrator.outcome.suspect_files import SHEET, extent_in_export
from orchestrator.outcome.tables import best_trial, not_dominated, trial_rows
from orchestrator.terminal.ablation import files_of, print_table
from orchestrator.terminal.lines import (
    STYLES,
    describe_values,
    entry,
    print_note,
    print_text,
    resume_command,
    short,
    tables_entry,
)
from orchestrator.tracking.local_store import home_of
from orchestrator.tracking.tracker import Tracker, given_uri, tracking_uri
from trainables.settings import without_password
from trainables.shown_commands import python_command, shown_command
from trainables.words import accuracies, duration, plural

WIDEST = 10_000
"""Columns in which a table is measured."""


def print_outcome(
    console: Console,
    folder: Path,
    config: SweepConfig,
    tracker: Tracker | None = None,
    place: str = "",
    now: float | None = None,
) -> int:
    """Prints the outcome of a sweep: the best trial beside the references, the files, and the next commands.

    Args:
        console: where to print.
        folder: results folder of the sweep.
        config: of the sweep.
        tracker: gives the address of the MLflow page that compares the trials.
        place: options that say where the sweep runs and is copied to, for the command that resumes it.
        now: when the sweep's own command ends, in seconds since 1970; None for a sweep that had ended before.

    Returns: the exit code.
    """
    events = read_ledger(folder)
    clock = clock_of(events, now)
    whole = f" over {clock.commands} commands" if clock.commands > 1 else ""
    took = f"{duration(clock.seconds)}{whole}, start and export included"
    if config.repeats_search:
        print_text(console, f"\n{len(config.searches())} searches in {took}")
        return print_ablation(console, folder, config, events, place)
    rows = trial_rows(events)
    count = {status: sum(row["status"] == status for row in rows) for status in STYLES}
    ended = ", ".join(f"{number} {status.replace('_', ' ')}" for status, number in count.items() if number)
    print_text(console, f"\n{plural(len(rows), 'trial')} in {took}: {ended}")
    usage = usage_of(events)
    for line in used(usage, config):
        console.print(line, highlight=False)
    if (hours := usage.machine_hours()) and hours.total:
        console.print(machine_table(hours, config.budget.cost_per_gpu_hour))
    searched = sum(row["role"] == Role.SEARCH for row in rows)
    unread = unreadable_images(rows)
    if reason := last(events, Kind.SWEEP_END).get("reason"):
        go_on = "" if unread else f" To go on: {resume_command(folder, config, place)}"
        console.print(f"Not all trials ran to their ends: {reason}.{go_on}", style="yellow", soft_wrap=True)
    elif config.search.sampler == "grid" and searched < config.num_searched():
        text = f"search.constraints leave the grid fewer points: {searched} trials instead of {config.num_searched()}"
        console.print(text, style="yellow", highlight=False, soft_wrap=True)
    if unread:
        console.print(about_images(unread, folder, config, place), style="red", highlight=False, markup=False, soft_wrap=True)
    if config.ablation:
        return print_ablation(console, folder, config, events, place)
    if (best := best_trial(rows)) is None:
        console.print("No trial finished, so there is no best trial. The reasons are in trials.parquet.", style="red")
        return 1
    console.print(comparison(console, config, rows, best))
    print_differences(console, config, rows, best, start_of(events))
    if config.search.objectives:
        console.print(trade_offs(rows, config.search.objectives))
    confirmed = confirmation(rows)
    if config.compares_arms:
        print_arms(console, rows, config)
    if confirmed:
        print_confirmation(console, confirmed, config, rows)
    if reference_behind(best, rows):
        console.print("no searched configuration beat the references", style="yellow")
    metrics = folder / "best" / "metrics.json"
    if metrics.is_file():
        found = json.loads(metrics.read_text(encoding="utf-8"))
        if found["test"]:
            text = accuracies(found["test"], "test", remark=" of the exported model, read once:")
            console.print(text, highlight=False, soft_wrap=True)
        if seeds := found.get("test_over_seeds"):
            console.print(
                f"test/acc over {seeds['num_seeds']} seeds: {seeds['mean']:.4f} (sd {seeds['sd']:.4f})", highlight=False
            )
    console.print(next_steps(folder, config, tracker.pages() if tracker else []), highlight=False, markup=False, soft_wrap=True)
    return 1 if last(events, Kind.SWEEP_END).get("status") == Status.FAILED else 0


def print_ablation(console: Console, folder: Path, config: SweepConfig, events: Sequence[Event], place: str) -> int:
    """Prints the table of an ablation, the files, and the next command. Returns the exit code."""
    if config.repeats_search and (reason := last(events, Kind.SWEEP_END).get("reason")):
        text = f"Not all searches are complete: {reason}. To go on: {resume_command(folder, config, place)}"
        console.print(text, style="yellow", soft_wrap=True)
    print_table(console, config, rows_of(folder, config, events))
    lines = files_of(folder, config)
    if config.tracking.mlflow:
        lines += ["\nNext:", *open_mlflow(config, folder, [])]
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)
    return 1 if last(events, Kind.SWEEP_END).get("status") == Status.FAILED else 0


def unreadable_images(rows: list[Row]) -> list[Row]:
    """The trials that failed because of an image; other errors about the data name other settings than `data.root`."""
    return [row for row in rows if row["status"] == Status.FAILED and str(row["stop_reason"]).startswith("data.root: ")]


def about_images(failed: list[Row], folder: Path, config: SweepConfig, place: str) -> str:
    """Lines about trials that failed because of an image.

    To resume the sweep does not help: the same images would fail again, and a sweep cannot go on with other images.
    """
    verb, file = f"orchestrator.{'ablate' if config.ablation else 'sweep'}", shlex.quote(str(folder / "sweep.yaml"))
    results = "" if folder.parent == Path("results") else f" --results {shlex.quote(str(folder.parent))}"
    return (
        f"{plural(len(failed), 'trial')} failed because of an image: {failed[0]['stop_reason']}\n"
        "This finds all images that cannot be read:\n"
        f"  {shown_command('orchestrator.doctor', file)}\n"
        "Mend them, and run the sweep anew with another --name; or run it anew without them:\n"
        f"  {shown_command(verb, file, f'--name {folder.name}_2', f'trial.data.broken=skip{results}{place}')}\n"
        "If all can be read by now, go on:\n"
        f"  {resume_command(folder, config, place)}"
    )


def used(usage: Usage, config: SweepConfig) -> list[str]:
    """Lines about how busy the slots were, and what the GPUs cost."""
    lines = [f"{plural(usage.most_slots, 'slot')}, {usage.idle_share():.0%} of the time waiting"]
    if hours := usage.gpu_hours():
        busy = usage.busy_s()
        lines.append(f"{hours:.2f} GPU hours, {hours / max(len(busy), 1):.2f} for a trial")
        if price := config.budget.cost_per_gpu_hour:
            lines[-1] += f"; cost {hours * price:.2f}, {hours * price / max(len(busy), 1):.2f} for a trial"
    return lines


def machine_table(hours: MachineHours, price: float | None) -> Table:
    """A table of where the GPU hours of a cluster's machines went, and their cost at a price for an hour."""
    table = Table("GPUs of the machines", "hours", "share", *(["cost"] if price else []))
    rows = {
        "train trials": hours.trials,
        "held by a slot without a trial": hours.waiting,
        "held by no slot": hours.idle,
        "their machine starts": hours.starting,
        "after the end, at most": hours.afterwards,
        "all": hours.total,
    }
    for name, amount in rows.items():
        if amount is not None:
            share = f"{amount / hours.total:.0%}" if hours.total else ""
            table.add_row(name, f"{amount:.2f}", share, *([f"{amount * price:.2f}"] if price else []))
    return table


def trade_offs(rows: list[Row], objectives: Sequence[str]) -> Table:
    """A table of the Pareto front of several objectives. The best trial in the first objective comes first."""
    table = Table("", *objectives, title="no other trial is better in one and as good in all", title_justify="left")
    found = not_dominated(rows, list(objectives))
    for row in sorted(found, key=lambda row: [-(row[f"best/{name}"] or 0.0) for name in objectives]):
        table.add_row(row["trial_id"], *(short(row[f"best/{name}"], 4) for name in objectives))
    return table


def print_arms(console: Console, rows: list[Row], config: SweepConfig) -> None:
    """Prints what each arm of a comparison reached, and how far the numbers can be trusted."""
    results = arm_results(rows, [arm.name for arm in config.arms()])
    console.print(arms_table(results, config))
    if all(result.mean is None for result in results):
        cure = "" if config.search.confirm else " (search.confirm, which --resume may add)"
        text = f"one seed each, and the luckiest of its trials: run the best of each arm on fresh seeds{cure} before you compare"
        print_note(console, text)


def arms_table(results: list[ArmResult], config: SweepConfig) -> Table:
    """A table with a row for each arm, the highest confirmed mean first. It fits into 80 columns."""
    first, confirm = config.arms()[0], config.search.confirm
    title = f"{config.trial.selection()}, {len(results)} arms, each tuned with {plural(first.trials, 'trial')}"
    if not confirm:
        table = Table("arm", "best", title=title, title_justify="left")
        for result in results:
            table.add_row(result.name, short(result.best, 4))
        return table
    title += (
        f"; mean, sd and gain over {confirm.seeds} fresh seeds; gain: paired difference to {first.name}, with its 95 % t-interval"
    )
    table = Table("arm", "best", "mean", "sd", "gain", "95 %", title=title, title_justify="left")
    for result in results:
        gain = "" if result.gain is None else f"{result.gain:+.4f}"
        scores = [short(value, 4) for value in (result.best, result.mean, result.sd)]
        table.add_row(result.name, *scores, gain, "" if result.gain_half is None else f"±{result.gain_half:.4f}")
    return table


def print_confirmation(console: Console, confirmed: Confirmation, config: SweepConfig, rows: list[Row]) -> None:
    """Prints the confirmed configurations, and whether their difference is significant."""
    labels = labels_of_arms(rows) if config.compares_arms else {}
    references = {row["trial_id"]: f"{row['variant']} ({row['trial_id']})" for row in rows if row["role"] == Role.REFERENCE}
    if confirmed.left_out:
        left_out = ", ".join((labels | references).get(name, name) for name in confirmed.left_out)
        print_note(console, f"without a result on every fresh seed, and so out of the running: {left_out}")
    if confirmed.comparison is None:
        print_note(console, "no configuration has a result on every fresh seed, so the best trial is the search's, unconfirmed")
        return
    if not labels:  # the table of the arms has the same numbers
        console.print(confirmation_table(confirmed.comparison, config, references))
    print_text(console, verdict(confirmed.comparison, labels | references))


def labels_of_arms(rows: list[Row]) -> dict[str, str]:
    """What to call the confirmed configurations of arms, by trial: their arm, with the trial where an arm has several."""
    arm_of = {row["confirms"]: row["variant"] for row in rows if row["role"] == Role.CONFIRM}
    number = Counter(arm_of.values())
    return {trial_id: arm if number[arm] == 1 else f"{trial_id} ({arm})" for trial_id, arm in arm_of.items()}


def confirmation_table(found: Comparison, config: SweepConfig, labels: Mapping[str, str]) -> Table:
    """A table of the confirmed configurations, the best mean first. `labels`: what to call references."""
    title = f"{config.trial.selection()}, best epoch, over {found.num_seeds} fresh seeds"
    table = Table("", "mean", "sd", "shrunken", "p, best is no better", title=title, title_justify="left")
    for summary in found.summaries:
        chance = "" if summary is found.summaries[0] else f"{summary.p_value:.3f}"
        table.add_row(
            labels.get(summary.name, summary.name), f"{summary.mean:.4f}", f"{summary.sd:.4f}", f"{summary.shrunken:.4f}", chance
        )
    return table


def comparison(console: Console, config: SweepConfig, rows: list[Row], best: Row) -> Table:
    """A table of scores and searched settings of the best configuration and the references: a column for each, or a row where the
    columns do not fit the console. After a confirmation the scores are means over the fresh seeds.

    A trial that did not finish has a status in place of a score.
    """
    confirms = best["confirms"] if best["role"] == Role.CONFIRM else None
    first = next((row for row in rows if row["trial_id"] == confirms), best)
    name = f", {first['variant']}" if reference_behind(best, rows) else ""
    shown = {f"best: {first['trial_id']}{name}": first}
    others = [row for row in rows if row["role"] == Role.REFERENCE and row["trial_id"] != first["trial_id"]]
    shown |= {f"{row['variant']}: {row['trial_id']}": row for row in others}
    scores = means_over_seeds(rows, shown) if confirms else scores_of_epochs(config, shown)
    table = Table("", *shown)
    table.columns[1].style = "bold green"
    for number, (label, values) in enumerate(scores.items(), 1):
        table.add_row(f"{config.trial.selection()}, {label}", *values, end_section=number == len(scores))
    for setting in config.space:
        chosen = [row.get(f"config/{setting}") for row in shown.values()]
        if any(value is not None for value in chosen):  # other methods have other settings
            table.add_row(setting, *map(short, chosen))
    if Measurement.get(console, console.options.update_width(WIDEST), table).maximum <= console.width:
        return table
    table = Table("", *scores, "settings", title=config.trial.selection(), title_justify="left")
    for number, (label, row) in enumerate(shown.items()):
        settings = {key.removeprefix("config/"): value for key, value in row.items() if key.startswith("config/")}
        described = describe_values(config, {key: value for key, value in settings.items() if value is not None})
        table.add_row(label, *(values[number] for values in scores.values()), described, style="" if number else "bold green")
    return table


def scores_of_epochs(config: SweepConfig, shown: dict[str, Row]) -> dict[str, list[str]]:
    """The scores of some trials at their best and at their last epochs."""
    return {
        label: [
            short(row[f"{part}/{config.trial.select_by}"], 4)
            if row["status"] == Status.FINISHED
            else row["status"].replace("_", " ")
            for row in shown.values()
        ]
        for part, label in (("best", "best epoch"), ("last", "last epoch"))
    }


def means_over_seeds(rows: list[Row], shown: dict[str, Row]) -> dict[str, list[str]]:
    """Mean and standard deviation over the fresh seeds of the configurations of some trials; `-` for one without all seeds."""
    scores = scores_of(rows)
    found = [scores.get(row["trial_id"]) for row in shown.values()]
    number = max((len(values) for values in found if values), default=0)
    return {
        f"mean of {number} fresh seeds": [short(fmean(values) if values else None, 4) for values in found],
        "sd": [short(stdev(values) if values else None, 4) for values in found],
    }


def print_differences(console: Console, config: SweepConfig, rows: list[Row], best: Row, start: Mapping[str, Any]) -> None:
    """Prints the best configuration's lead over each reference with its interval, and what it is worth."""
    chosen_among = sum(row["role"] != Role.CONFIRM for row in rows)
    name = reference_behind(best, rows) or "best"
    for found in differences(config, rows, best, counting_images(config, start)):
        text = f"{name} vs {found.name}: {found.lead:+.4f} {config.trial.selection()}"
        if found.interval:
            text += f", 95 % interval {found.interval[0]:+.3f} to {found.interval[1]:+.3f}"
        print_text(console, text)
        print_text(console, f"  {worth(found, images_in(start), chosen_among)}", "dim")


def print_interrupted(console: Console, folder: Path, place: str = "") -> int:
    """Prints what is saved, and how to resume the sweep; `place` is as in `print_outcome`. Returns the exit code."""
    events = read_ledger(folder)
    rows = trial_rows(events)
    ended, config = (
        sum(row["status"] not in (Status.INTERRUPTED, Status.RUNNING) for row in rows),
        read_sweep(folder / "sweep.yaml"),
    )
    number = f"{ended} of {plural(config.num_trials(), 'trial')}"
    if config.repeats_search:
        number = f"{len(complete_searches(folder, config))} of {len(config.searches())} searches"
    console.print(
        f"\nInterrupted after {number}. Nothing is lost: ledger, "
        f"tables and the last checkpoints are in {folder}.\nTo go on:\n  {resume_command(folder, config, place)}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    if best_trial(rows) and not config.ablation:
        console.print(
            f"To export the best trial so far:\n  {shown_command('orchestrator.export', shlex.quote(str(folder)))}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    return 130


def next_steps(folder: Path, config: SweepConfig, pages: Sequence[tuple[str, str]]) -> str:
    """Lines about where the files are, and what to type next."""
    best = folder / "best"
    extent = extent_in_export(best)
    lines = [
        "",
        *entry(
            "best configuration",
            str(best / "config.yaml"),
            "with model, card.md, metrics.json, split.json and",
            "provenance.json beside it",
        ),
        *entry("report", str(folder / "report.html"), "to look at in a browser"),
        *tables_entry(folder),
        *(entry("suspicious labels", str(best / SHEET), f"shows {extent}") if extent else []),
        "\nNext:",
        f"  {shown_command('trainables.train', shlex.quote(str(best / 'config.yaml')))}",
        "      trains the best configuration again, without a cluster",
        f"  {shown_command('trainables.predict', shlex.quote(str(best)), 'IMAGES')}",
        "      predicts the classes of your own image files or folders",
    ]
    if config.tracking.mlflow:
        lines += open_mlflow(config, folder, pages)
    return "\n".join(lines)


def open_mlflow(config: SweepConfig, folder: Path, pages: Sequence[tuple[str, str]]) -> list[str]:
    """Lines about how to see the trials in MLflow: pages of a running server, or a command that starts one.

    Args:
        config: of the sweep.
        folder: its results folder.
        pages: below the address of the server, each after its name; none when they are not known.
    """
    home = home_of(folder)
    uri = tracking_uri(config.tracking, home)
    if uri.startswith("http"):
        address = without_password(uri).rstrip("/")
        return [f"  {address}{page}\n      {name}, in MLflow" for name, page in pages] or [
            f"  {address}",
            "      compares the trials in MLflow",
        ]
    if given_uri(config.tracking):
        store = shlex.quote(uri) if without_password(uri) == uri else '"$MLFLOW_TRACKING_URI"'  # the only place of a password
        return [f"  {python_command()} -m mlflow server --workers 1 --backend-store-uri {store}", "      opens MLflow"]
    start = shown_command("orchestrator.ui", shlex.quote(str(folder)))
    return [f"  {start}", "      shows the trials in MLflow, the best first"]
