"""Prints what a person sees before a sweep starts: one line about the sweep, or the whole plan of a dry run."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestrator.config.ablation_config import AdaptiveSeedsConfig
from orchestrator.config.sweep_config import SweepConfig
from orchestrator.ledger.events import Event
from orchestrator.ledger.trial_states import State, trial_states_of
from orchestrator.run.disk import DiskUse, in_words
from orchestrator.run.estimate import MOST_S, Estimate
from orchestrator.terminal.ablation import print_variants
from orchestrator.terminal.lines import print_note, print_text
from trainables.data import LongTailedData
from trainables.words import duration, plural


def print_start(console: Console, name: str, config: SweepConfig, data: LongTailedData, warnings: list[str]) -> None:
    """Prints one line about the sweep that begins, and one line for each warning."""
    counts = data.class_counts
    what = (
        f"{number_of_trials(config)} of up to {plural(config.trial.epochs, 'epoch')} on {config.trial.data.source} "
        f"({plural(len(data.train), 'training image')} in {len(counts)} classes, {counts.max()} to {counts.min()} a class)"
    )
    console.print(Text.assemble((name, "bold"), f": {what}"), soft_wrap=True)
    if data.num_flipped:
        console.print(
            f"{data.num_flipped} training labels are wrong on purpose ({config.trial.data.noise.kind})", highlight=False
        )
    if config.trial.data.val == "meta":
        print_note(console, "data.val is meta: trials are selected on images that have driven their training, as in the papers")
    for warning in [*(f"trial.{note}" for note in data.notes), *warnings]:
        print_note(console, warning)


def number_of_trials(config: SweepConfig) -> str:
    """The trials that run before any confirmation, in words."""
    references, searched = len(config.search.plain_references()), f"{config.num_searched()} searched"
    text = plural(config.num_trials(), "trial")
    if (plan := config.ablation) and config.trains_variants:
        conditions = len(plan.conditions())
        under = f" under {conditions} conditions" if conditions > 1 else ""
        more = f", up to {plan.most_seeds()} while undecided" if isinstance(plan.seeds, AdaptiveSeedsConfig) else ""
        seeds = len(plan.seeds_from(config.trial.seed))
        return f"{text} ({len(plan.changes_by_variant())} variants{under} on {plural(seeds, 'seed')}{more})"
    if config.compares_arms:
        searched += f" in {len(config.arms())} arms of {config.search.num_proposed()}"
    if references:
        searched += f", {plural(references, 'reference')}"
    if references or config.compares_arms:
        text += f" ({searched})"
    text += f" and {plural(config.num_confirmations(), 'confirmation')}" if config.search.confirm else ""
    return f"{len(config.searches())} searches, each of {text}" if config.repeats_search else text


def print_going_on(console: Console, past: Sequence[Event]) -> None:
    """Prints one line about what a resumed sweep keeps, and where its trials continue."""
    trials = trial_states_of(past).values()
    ended = sum(trial.state == State.ENDED for trial in trials)
    text = f"going on: {ended} of {plural(len(trials), 'trial')} ended"
    for trial in trials:
        if trial.state in (State.WAITING, State.RUNNING, State.DUE):
            goes_on = f"continues after epoch {trial.checkpoints[-1].epoch}" if trial.checkpoints else "begins"
            text += f", {trial.trial_id} {goes_on}"
    if paused := sum(trial.state == State.PAUSED for trial in trials):
        text += f", {paused} {'is' if paused == 1 else 'are'} paused"
    console.print(text, highlight=False, soft_wrap=True)


def print_plan(console: Console, name: str, config: SweepConfig, data: LongTailedData, warnings: list[str]) -> None:
    """Prints what the sweep `name` would do: trials, split and space."""
    print_start(console, name, config, data, warnings)
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
    if config.trains_variants:
        print_variants(console, config)
        return
    space = Table("setting", "range", title="space", title_justify="left")
    for name, parameter in config.space.items():
        given = parameter.model_dump(exclude={"type"}, exclude_defaults=True)
        space.add_row(name, f"{parameter.type} " + " ".join(f"{key}={value}" for key, value in given.items()))
    console.print(space)
    if config.compares_arms:
        arms = Table("arm", "trials", "searched settings", title="arms", title_justify="left")
        for arm in config.arms():
            arms.add_row(arm.name, str(arm.trials), ", ".join(arm.space))
        console.print(arms)


def print_estimate(console: Console, config: SweepConfig, estimate: Estimate) -> None:
    """Prints how long the sweep would take, and what its GPUs would cost."""
    if estimate.epoch_s is None:
        print_note(console, "the sweep's own trial diverges within two epochs, so there is no estimate of the time")
    elif lacks_gpu(config, estimate):
        there = f"the cluster's machine {estimate.machine}" if estimate.machine else "this machine"
        print_text(
            console,
            f"about {plural(round(estimate.rehearsal.epochs), 'epoch')} in all; GPU time unknown here: "
            f"resources.gpus_per_worker is {config.resources.gpus_per_worker:g}, and torch sees no GPU on {there} "
            f"(on its cpu an epoch would take about {duration(estimate.epoch_s)}).",
        )
    else:
        workers = f" of {estimate.workers} workers each, timed with one" if estimate.workers > 1 else ""
        of_several = f" of {estimate.fused} trials together" if estimate.fused > 1 else ""
        where, start = f"this machine's {estimate.device}", "about 20 s for starting Ray"
        if estimate.machine:
            where, start = f"{estimate.device} of the cluster's machine {estimate.machine}", "the time that machines take to come"
        console.print(
            f"about {plural(round(estimate.rehearsal.epochs), 'epoch')} in all, {duration(estimate.training_s)} of training with "
            f"{plural(estimate.concurrent, 'trial')} at a time{workers}, {estimate.waiting:.0%} of the time waiting (an "
            f"epoch{of_several} takes {duration(estimate.epoch_s)} on {where}), and {start}.",
            highlight=False,
        )
        if estimate.cut:
            print_note(console, f"the timing was cut after {MOST_S:.0f} s, so the time of an epoch is a rough one")
        for line in expected_cost(config, estimate.worker_s):
            console.print(line, highlight=False)
    print_disk_use(console, config, estimate.disk)


def lacks_gpu(config: SweepConfig, estimate: Estimate) -> bool:
    """Whether trials want a GPU and the steps were timed without one."""
    return config.resources.gpus_per_worker > 0 and estimate.device == "cpu" and config.trial.device != "cpu"


def print_disk_use(console: Console, config: SweepConfig, use: DiskUse) -> None:
    """Prints how much space the sweep would take at most, and of what."""
    states = f"{use.num_states} states of {in_words(use.state_bytes)}"
    console.print(
        f"at most {in_words(use.total)} on the disk: {states} (checkpoints.keep is {config.checkpoints.keep}), and "
        f"{in_words(use.record_bytes)} of ledger and tables.",
        highlight=False,
        soft_wrap=True,
    )


def expected_cost(config: SweepConfig, worker_seconds: float) -> list[str]:
    """GPU hours and cost of `worker_seconds` of one worker, as lines; no line for trials without a GPU."""
    if not config.resources.gpus_per_worker:
        return []
    hours = worker_seconds * config.resources.gpus_per_worker / 3600
    line = f"about {hours:.1f} GPU hours"
    if price := config.budget.cost_per_gpu_hour:
        line += f", cost {hours * price:.2f}, {hours * price / config.num_trials():.2f} for a trial"
    return [line]


def class_sizes(per_class: NDArray[np.int64], class_names: tuple[str, ...]) -> str:
    """Images in each class, in short form. Class names are given unless all of them are numbers."""
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
