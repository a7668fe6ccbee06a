"""What a sweep prints before it starts and after it has ended."""

import json
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from orchestrator.config.scheduler_config import HyperbandConfig, RungSettings
from orchestrator.config.sweep_config import SEARCHED, SweepConfig, read_sweep
from orchestrator.decide.schedulers import Hyperband, rungs
from orchestrator.ledger.ledger import Event, last, read_ledger
from orchestrator.ledger.trial_states import trial_states_of
from orchestrator.ledger.usage import Usage, usage_of
from orchestrator.outcome.confirmation import CONFIRMED, Confirmation, Row, confirmation, verdict
from orchestrator.outcome.stats import Comparison
from orchestrator.outcome.tables import best_trial, not_dominated, objective, trial_rows
from orchestrator.run.placement import arrange, this_machine
from orchestrator.terminal.progress import STYLES
from orchestrator.tracking.tracker import Tracker, tracking_uri
from trainables.data import LongTailedData
from trainables.machine import choose_device


def print_start(console: Console, name: str, config: SweepConfig, data: LongTailedData, warnings: list[str]) -> None:
    """One line on what begins, and one for each warning."""
    counts = data.class_counts
    console.print(
        f"[bold]{name}[/bold]: {config.search.trials} trials of up to {config.trial.epochs} epochs on {config.trial.data.source} "
        f"({len(data.train)} training images in {len(counts)} classes, {counts.max()} to {counts.min()} a class)",
        highlight=False,
        soft_wrap=True,
    )
    if data.num_flipped:
        console.print(
            f"{data.num_flipped} training labels are wrong on purpose ({config.trial.data.noise.kind})", highlight=False
        )
    if config.trial.data.val == "meta":
        print_note(console, "data.val is meta: trials are selected on images that have driven their training, as in the papers")
    for warning in warnings:
        print_note(console, warning)


def print_going_on(console: Console, past: Sequence[Event]) -> None:
    """One line on what a sweep that is resumed keeps, and where its trials go on."""
    trials = trial_states_of(past).values()
    ended = sum(trial.state == "ended" for trial in trials)
    text = f"going on: {ended} of {len(trials)} trials have ended"
    for trial in trials:
        if trial.state in ("waiting", "running", "due"):
            goes_on = f"continues after epoch {trial.checkpoints[-1].epoch}" if trial.checkpoints else "begins"
            text += f", {trial.trial_id} {goes_on}"
    if paused := sum(trial.state == "paused" for trial in trials):
        text += f", {paused} {'is' if paused == 1 else 'are'} paused"
    console.print(text, highlight=False, soft_wrap=True)


def print_note(console: Console, text: str) -> None:
    """What a person should know and nothing stops for."""
    console.print(f"note: {text}", style="yellow", highlight=False, markup=False, soft_wrap=True)


def print_plan(console: Console, config: SweepConfig, folder: Path, data: LongTailedData, warnings: list[str]) -> None:
    """Splits, space, trials and an estimate that rests on one epoch, trained here and now."""
    print_start(console, folder.name, config, data, warnings)
    sets = Table("set", "images", "a class", "used for", title=f"split (seed {config.trial.seed})", title_justify="left")
    uses = {
        "train": "phi",
        "meta": "theta and the class accuracies",
        "val": "choosing epochs and trials",
        "test": "one reading at the end",
    }
    for set_name, use in uses.items():
        part = getattr(data, set_name)
        sets.add_row(
            set_name,
            str(len(part)),
            class_sizes(np.bincount(part.labels, minlength=len(data.class_counts)), data.class_names),
            use,
        )
    console.print(sets)
    space = Table("setting", "range", title="space", title_justify="left")
    for name, parameter in config.space.items():
        given = parameter.model_dump(exclude={"type"}, exclude_defaults=True)
        space.add_row(name, f"{parameter.type} " + " ".join(f"{key}={value}" for key, value in given.items()))
    console.print(space)
    console.print("timing some steps of the sweep's own trial ...", style="dim")
    epochs, seconds = expected_epochs(config), seconds_per_epoch(config)
    if seconds is None:
        print_note(console, "the sweep's own trial diverges within two epochs, so there is no estimate of the time")
    else:
        here = arrange(config, [this_machine(config)])
        concurrent = max(here.slots, 1)
        workers = f" of {here.workers} workers each, timed with one" if here.workers > 1 else ""
        device = choose_device("cpu" if config.trial.device == "cpu" else "auto").type
        console.print(
            f"about {epochs:.0f} epochs in all, {duration(seconds * epochs / concurrent)} of training with {concurrent} trials "
            f"at a time{workers} (an epoch takes {duration(seconds)} on this machine's {device}), and about 20 s for starting "
            "Ray.",
            highlight=False,
        )
        for line in expected_cost(config, seconds * epochs * here.workers):
            console.print(line, highlight=False)
    console.print(f"Results would go to {folder}. Nothing was started.", highlight=False, markup=False, soft_wrap=True)


def expected_cost(config: SweepConfig, worker_seconds: float) -> list[str]:
    """GPU hours and money for so many seconds of a worker."""
    if not config.resources.gpus_per_worker:
        return []
    hours = worker_seconds * config.resources.gpus_per_worker / 3600
    line = f"about {hours:.1f} GPU hours"
    if price := config.budget.cost_per_gpu_hour:
        line += f", cost {hours * price:.2f}, {hours * price / config.search.trials:.2f} for a trial"
    return [line]


def class_sizes(per_class: NDArray[np.int64], class_names: tuple[str, ...]) -> str:
    """Numbers of images by class, in short; with the names of the classes where they say more than their number."""
    if len(set(per_class.tolist())) == 1:
        return str(per_class[0])
    if len(per_class) > 20:
        return f"{per_class.max()} to {per_class.min()}"
    plain = all(name.isdecimal() for name in class_names)
    return (
        " ".join(map(str, per_class))
        if plain
        else ", ".join(f"{name} {n}" for name, n in zip(class_names, per_class, strict=True))
    )


def duration(seconds: float) -> str:
    """A time as people say it."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def expected_epochs(config: SweepConfig) -> float:
    """Epochs of all trials together when each rung keeps exactly its share; the references and a confirmation run to the end."""
    total, references, confirm = config.trial.epochs, len(config.search.references), config.search.confirm
    searched, confirming = config.search.trials - references, confirm.top * confirm.seeds if confirm else 0
    if not isinstance(config.scheduler, RungSettings):
        return total * (config.search.trials + confirming)
    at = rungs(config.scheduler, total)
    first = [0]
    if isinstance(config.scheduler, HyperbandConfig):
        brackets = Hyperband(config)
        first = [brackets.bracket(number) for number in range(config.search.trials)]
    each = [_epochs_by_halving(at[bracket:], config.scheduler.reduction_factor, total) for bracket in first]
    return total * (references + confirming) + searched * sum(each) / len(each)


def _epochs_by_halving(at: list[int], factor: float, total: int) -> float:
    epochs, share, reached = 0.0, 1.0, 0
    for rung in at:
        epochs, share, reached = epochs + share * (rung - reached), share / factor, rung
    return epochs + share * (total - reached)


def seconds_per_epoch(config: SweepConfig) -> float | None:
    """Times some steps of the sweep's trial in this process; None when it diverges."""
    from trainables.engine.health import TrialEnded
    from trainables.trial_run import TrialRun

    run = TrialRun()
    run.start(config.trial)
    try:
        return run.time_epoch()
    except TrialEnded:
        return None


def print_outcome(console: Console, folder: Path, config: SweepConfig, tracker: Tracker | None = None) -> int:
    """The best trial beside the references, the files, and the next commands. Returns the exit code.

    `tracker` knows the page of the MLflow UI that compares trials.
    """
    events = read_ledger(folder)
    rows = trial_rows(events)
    count = {status: sum(row["status"] == status for row in rows) for status in STYLES}
    ended = ", ".join(f"{number} {status.replace('_', ' ')}" for status, number in count.items() if number)
    console.print(f"\n{len(rows)} trials in {duration(seconds_in_all(events))}: {ended}", highlight=False)
    for line in used(usage_of(events), config):
        console.print(line, highlight=False)
    searched = sum(row["variant"] != CONFIRMED for row in rows)
    if reason := last(events, "sweep_end").get("reason"):
        console.print(
            f"Not all trials ran to their ends: {reason}. To go on: {resume_command(folder)}", style="yellow", soft_wrap=True
        )
    elif config.search.sampler == "grid" and searched < config.search.trials:
        text = f"search.constraints leave the grid fewer points: {searched} trials instead of {config.search.trials}"
        console.print(text, style="yellow", highlight=False, soft_wrap=True)
    if (best := best_trial(rows)) is None:
        console.print("No trial finished, so there is no best one; the reasons stand in trials.parquet.", style="red")
        return 1
    columns = {f"best: {best['trial_id']}": best}
    columns |= {f"{row['variant']}: {row['trial_id']}": row for row in rows if row["variant"] in config.search.references}
    console.print(comparison(config, columns))
    for name, gain in gains(best, rows).items():
        console.print(f"best vs {name}: {gain:+.4f} {config.trial.selection()}", highlight=False)
    if config.search.objectives:
        console.print(trade_offs(rows, config.search.objectives))
    if confirmed := confirmation(rows):
        print_confirmation(console, confirmed, config)
    if best["variant"] in config.search.references:
        console.print("no searched configuration beat the references", style="yellow")
    metrics = folder / "best" / "metrics.json"
    if metrics.is_file():
        found = json.loads(metrics.read_text(encoding="utf-8"))
        console.print(f"test/acc of the exported model, read once: {found['test']['test/acc']:.4f}", highlight=False)
        if seeds := found.get("test_over_seeds"):
            console.print(
                f"test/acc over {seeds['num_seeds']} seeds: {seeds['mean']:.4f} (sd {seeds['sd']:.4f})", highlight=False
            )
    compared = list(dict.fromkeys(row["trial_id"] for row in columns.values()))
    page = tracker.compare_path(compared) if tracker and len(compared) > 1 else None
    console.print(next_steps(folder, config, page), highlight=False, markup=False, soft_wrap=True)
    return 1 if last(events, "sweep_end").get("status") == "failed" else 0


def seconds_in_all(events: list[Event]) -> float:
    """From the start to the last trial's end, without the time between an interruption and the resumption."""
    seconds, began, ended = 0.0, 0.0, 0.0
    for event in events:
        if event["event"] in ("sweep_start", "sweep_resume"):
            seconds, began = seconds + ended - began, event["time"]
        if event["event"] not in ("sweep_end", "export", "test_read"):
            ended = event["time"]
    return seconds + ended - began


def used(usage: Usage, config: SweepConfig) -> list[str]:
    """How busy the slots were, and what GPUs cost."""
    lines = [f"{usage.slots} {'slot' if usage.slots == 1 else 'slots'}, {usage.idle_share():.0%} of the time waiting"]
    if hours := usage.gpu_hours():
        busy = usage.busy_s()
        lines.append(f"{hours:.2f} GPU hours, {hours / max(len(busy), 1):.2f} for a trial")
        if price := config.budget.cost_per_gpu_hour:
            lines[-1] += f"; cost {hours * price:.2f}, {hours * price / max(len(busy), 1):.2f} for a trial"
    return lines


def trade_offs(rows: list[Row], objectives: Sequence[str]) -> Table:
    """The trials among which one has to choose by what matters more, the best in the first objective first."""
    table = Table("", *objectives, title="no other trial is better in one and as good in all", title_justify="left")
    found = not_dominated(rows, list(objectives))
    for row in sorted(found, key=lambda row: [-(row[f"best/{name}"] or 0.0) for name in objectives]):
        table.add_row(row["trial_id"], *(_short(row[f"best/{name}"], 4) for name in objectives))
    return table


def print_confirmation(console: Console, confirmed: Confirmation, config: SweepConfig) -> None:
    """The confirmed configurations, and what their numbers say."""
    if confirmed.left_out:
        print_note(console, f"without a result on every fresh seed, and so out of the running: {', '.join(confirmed.left_out)}")
    if confirmed.comparison is None:
        print_note(console, "no configuration has a result on every fresh seed: the best trial is the search's, unconfirmed")
        return
    console.print(confirmation_table(confirmed.comparison, config))
    console.print(verdict(confirmed.comparison), highlight=False, soft_wrap=True)


def confirmation_table(found: Comparison, config: SweepConfig) -> Table:
    """The confirmed configurations, the best mean first."""
    title = f"{config.trial.selection()}, best epoch, over {found.num_seeds} fresh seeds"
    table = Table("", "mean", "sd", "shrunken", "p, best is no better", title=title, title_justify="left")
    for summary in found.summaries:
        chance = "" if summary is found.summaries[0] else f"{summary.p_value:.3f}"
        table.add_row(summary.name, f"{summary.mean:.4f}", f"{summary.sd:.4f}", f"{summary.shrunken:.4f}", chance)
    return table


def comparison(config: SweepConfig, columns: dict[str, Row]) -> Table:
    """Scores and searched settings of some trials, the best one first; a trial that did not finish has no score."""
    table = Table("", *columns)
    table.columns[1].style = "bold green"
    for part, label in (("best", "best epoch"), ("last", "last epoch")):
        scores = [
            _short(row[f"{part}/{config.trial.select_by}"], 4) if row["status"] == "finished" else row["status"].replace("_", " ")
            for row in columns.values()
        ]
        table.add_row(f"{config.trial.selection()}, {label}", *scores, end_section=part == "last")
    for name in config.space:
        table.add_row(name, *(_short(row.get(f"config/{name}")) for row in columns.values()))
    return table


def gains(best: Row, rows: list[Row]) -> dict[str, float]:
    """How far the best trial is above each reference that finished, in `select_by` at the best epoch, by the reference's name."""
    if best["variant"] == CONFIRMED:  # on other seeds than the references
        return {}
    references = [row for row in rows if row["variant"] not in (SEARCHED, CONFIRMED) and row["status"] == "finished"]
    return {row["variant"]: objective(best) - objective(row) for row in references}


def print_interrupted(console: Console, folder: Path) -> int:
    """What is saved, and how to go on. Returns the exit code."""
    events = read_ledger(folder)
    rows = trial_rows(events)
    ended = sum(row["status"] not in ("interrupted", "running") for row in rows)
    console.print(
        f"\nInterrupted after {ended} of {read_sweep(folder / 'sweep.yaml').search.trials} trials. Nothing is lost: ledger, "
        f"tables and the last checkpoints are in {folder}.\nTo go on:\n  {resume_command(folder)}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    if best_trial(rows):
        console.print(
            f"To export the best trial so far:\n  {python_command()} -m orchestrator.export {shlex.quote(str(folder))}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    return 130


def resume_command(folder: Path, change: str = "") -> str:
    """How to go on with a sweep."""
    place = "" if folder.parent == Path("results") else f" --results {shlex.quote(str(folder.parent))}"
    return f"{python_command()} -m orchestrator.sweep {change}--name {shlex.quote(folder.name)}{place} --resume"


def next_steps(folder: Path, config: SweepConfig, page: str | None) -> str:
    """Where the files are and what to type next."""
    best = folder / "best"
    lines = [
        f"\nbest configuration   {best / 'config.yaml'}",
        "                     (card.md, metrics.json, split.json, model.safetensors and provenance.json beside it)",
        f"tables               {folder}/trials.parquet, epochs.parquet, classes.parquet; everything: ledger.jsonl",
        "\nNext:",
        f"  {python_command()} -m trainables.train {best / 'config.yaml'}",
        "      trains the best configuration again, without a cluster",
    ]
    if config.tracking.mlflow:
        lines += open_mlflow(tracking_uri(config.tracking, folder.parent), folder.parent == Path("results"), page)
    return "\n".join(lines)


def open_mlflow(uri: str, default: bool, page: str | None) -> list[str]:
    """How to look at the trials in MLflow: a page of a server that runs already, or a server to start first."""
    if uri.startswith("http"):
        return [f"  {uri.rstrip('/')}{page or ''}", "      compares the trials in MLflow"]
    start = (
        "make ui"
        if default and uri.startswith("sqlite")
        else f"{python_command()} -m mlflow ui --backend-store-uri {shlex.quote(uri)}"
    )
    side_by_side = f"; best and references side by side:\n      http://127.0.0.1:5000{page}" if page else ""
    return [f"  {start}", f"      opens MLflow{side_by_side}"]


def python_command() -> str:
    """How to call this interpreter from a shell in the working directory."""
    if shutil.which("python") == sys.executable:
        return "python"
    here = Path(sys.executable)
    return str(here.relative_to(Path.cwd())) if here.is_relative_to(Path.cwd()) else sys.executable


def _short(value: Any, digits: int | None = None) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.{digits}f}" if digits else f"{value:.3g}"
    return str(value)
