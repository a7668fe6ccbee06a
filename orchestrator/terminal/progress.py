"""What a person sees while trials run: lines in the live display of a terminal, plain lines elsewhere. Input: ledger's events."""

import math
from collections.abc import Sequence
from types import TracebackType
from typing import NamedTuple

from rich.text import Text

from orchestrator.config.sweep_config import SweepConfig
from orchestrator.ledger.events import (
    Action,
    EpochEvent,
    Event,
    GroupLostEvent,
    Kind,
    Role,
    Status,
    SuggestEvent,
    TrialEndEvent,
    shared_by,
)
from orchestrator.outcome.differences import counting_images, interval
from orchestrator.terminal.display import Display, packed, shortened, time_of_day
from orchestrator.terminal.lines import STYLES, describe_values, last_line
from trainables.collapse import verdict
from trainables.words import plural

BAR = 20
"""Columns of the bar."""
MOST_LINES = 16
"""Trials that have a line in the display."""
LONGEST_NAME = 24
"""Columns of a name in the display."""


class Running(NamedTuple):
    """A trial that runs."""

    since: float
    """When it began, or ended its last epoch; seconds since 1970."""
    epoch: EpochEvent | None = None
    """The last one."""
    trained_s: float = 0.0
    """Seconds of the epochs of this process, of which the mean is taken."""
    num_trained: int = 0


class Progress:
    """Shows the progress of a sweep. A listener of the ledger, and a context manager."""

    def __init__(self, config: SweepConfig, name: str, display: Display, past: Sequence[Event] = ()) -> None:
        """Takes the events from before this process.

        Args:
            config: of the sweep.
            name: of the sweep.
            display: where to print.
            past: events that the ledger holds already. They count, but are not printed.
        """
        self._config, self._name, self._display, self._console = config, name, display, display.console
        self._described: dict[str, str] = {}
        self._running: dict[str, Running] = {}
        self._ended: dict[str, Status] = {}
        self._best: tuple[float, str] | None = None
        self._began: float | None = None
        self._ended_before = self._slots = 0
        self._images = 0.0
        self._gpus_per_slot = 0.0
        self._collapsed: set[str] = set()
        """Trials whose collapse has been told."""
        self._lost: set[tuple[int, float | None]] = set()
        """Slots and times of the losses that several trials had in common and that have been told."""
        for event in past:
            self._take(event)
            self._collapse_of(event)
        # Trials that an earlier process ran or interrupted run no more; `trial_start` will bring them back.
        self._running.clear()
        self._ended = {trial_id: status for trial_id, status in self._ended.items() if status != Status.INTERRUPTED}
        self._began, self._ended_before = None, len(self._ended)

    def __enter__(self) -> "Progress":
        """Shows itself in the display."""
        self._display.show(self.lines)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Leaves the display. The lines of ended trials stay."""
        self._display.hide()

    def __call__(self, event: Event) -> None:
        """Takes one event."""
        self._take(event)
        if event["event"] == Kind.GROUP_LOST:
            self._tell_loss(event)
        elif event["event"] == Kind.RETRY:
            how = "failed and is tried again" if shared_by(event) == 1 else "lost its process and goes on in one of its own"
            self._say(f"{event['trial_id']} {how}: {last_line(event['reason'])}")
        elif event["event"] == Kind.DAMAGED:
            self._say(f"{event['trial_id']}: a checkpoint is damaged, the one before is used: {event['reason']}")
        elif collapse := self._collapse_of(event):
            self._say(f"{event.get('trial_id')} goes on, but its weighting has collapsed: {collapse}")
        elif event["event"] == Kind.SLOTS and self._began is None:
            places = event["slots"] * self._config.resources.fused
            self._display.phase(f"starting {plural(min(places, self._total - len(self._ended)), 'trial')}")
        elif event["event"] == Kind.TRIAL_START:
            self._display.begin_trials()
        elif event["event"] == Kind.TRIAL_END:
            self._console.print(self._line(event), highlight=False, soft_wrap=True)

    def _take(self, event: Event) -> None:
        if event["event"] == Kind.SWEEP_START:
            self._images = counting_images(self._config, event)
        elif event["event"] == Kind.SLOTS:
            self._slots, self._gpus_per_slot = event["slots"], event["gpus_per_slot"]
        elif event["event"] == Kind.SUGGEST:
            self._described[event["trial_id"]] = self._describe(event)
        elif event["event"] == Kind.TRIAL_START:
            now = self._display.clock()
            self._began = self._began or now
            self._running.setdefault(event["trial_id"], Running(now))
        elif event["event"] == Kind.EPOCH:
            self._take_epoch(event)
        elif event["event"] == Kind.DECIDE and event["action"] == Action.PAUSE:
            self._running.pop(event["trial_id"], None)
        elif event["event"] == Kind.TRIAL_END:
            self._take_end(event)

    def _take_epoch(self, event: EpochEvent) -> None:
        before = self._running.get(event["trial_id"], Running(0.0))
        took = event["metrics"].get("time/epoch_s")
        number = before.num_trained + (took is not None)
        passed_s = (took or 0.0) * shared_by(event)  # the epoch's time is the trial's share of it
        self._running[event["trial_id"]] = Running(self._display.clock(), event, before.trained_s + passed_s, number)

    def _tell_loss(self, event: GroupLostEvent) -> None:
        """Tells of a loss of workers, once for all trials that they trained together."""
        loss, others = (event["slot"], event.get("lost_at")), shared_by(event) - 1
        if others and loss in self._lost:
            return
        self._lost.add(loss)
        lost = f" and {plural(others, 'other')} lost their worker" if others else " lost its workers"
        self._say(f"{event['trial_id']}{lost} in epoch {event['epoch']}: {event['reason']}")

    def _collapse_of(self, event: Event) -> str:
        """The verdict on a weighting that has collapsed, once for each trial; empty otherwise."""
        if event["event"] != Kind.EPOCH or event["trial_id"] in self._collapsed:
            return ""
        if said := verdict(event["metrics"]):
            self._collapsed.add(event["trial_id"])
        return said

    def _take_end(self, event: TrialEndEvent) -> None:
        trial_id, value = event["trial_id"], event.get("best_value")
        self._running.pop(trial_id, None)
        self._ended[trial_id] = event["status"]
        if event["status"] == Status.FINISHED and value is not None and (self._best is None or value > self._best[0]):
            self._best = (value, trial_id)

    def _say(self, text: str) -> None:
        when = " " * 8 if self._console.is_terminal else time_of_day(self._display.clock())
        self._console.print(Text(f"{when}  {text}", "yellow"), soft_wrap=True)

    @property
    def _total(self) -> int:
        """Number of trials that the sweep will have, as far as known."""
        return max(self._config.num_trials() + self._config.num_confirmations(), len(self._described))

    @property
    def _total_in_words(self) -> str:
        """With `+` as long as an ablation may add seeds."""
        total, plan = self._total, self._config.ablation
        may_grow = plan is not None and self._config.trains_variants and total < self._config.most_trials()
        return f"{total}+" if may_grow else f"{total}"

    def _line(self, event: TrialEndEvent) -> Text:
        """One line about an ended trial, and for a failure a second line with the reason."""
        status, value = event["status"], event.get("best_value")
        line = Text("" if self._console.is_terminal else f"{time_of_day(self._display.clock())} ")
        line.append(f"[{len(self._ended):>3}/{self._total_in_words}] {event['trial_id']} ")
        line.append(f"{status.replace('_', ' '):<13}", STYLES[status])
        score = "-" if value is None else f"{value:.4f} (epoch {event['best_epoch']})"
        line.append(f" {self._config.trial.select_by} {score:<18} {self._described[event['trial_id']]}")
        if self._best and self._best[1] == event["trial_id"] and not self._config.ablation:
            line.append("  best so far", "bold green")
        if event["stop_reason"] and status in (Status.DIVERGED, Status.FAILED):
            line.append(f"\n          {last_line(event['stop_reason'])}", "red")
        if not self._console.is_terminal:
            line.append(f"  eta {self._eta()}")
        return line

    def _describe(self, suggestion: SuggestEvent) -> str:
        """The name of a reference or arm, and the confirmed trial and the seed, or the searched values."""
        if suggestion.get("confirms"):
            return f"{suggestion['variant']} {suggestion['confirms']} with seed {suggestion['seed']}".lstrip()
        if suggestion["role"] == Role.REFERENCE:
            return suggestion["variant"] + (f", seed {suggestion['seed']}" if self._config.ablation else "")
        return describe_values(self._config, suggestion["config"], suggestion["variant"])

    def _eta(self) -> str:
        # Trials that ended before a resumption do not count, because this process did not measure their time.
        ended = len(self._ended) - self._ended_before
        if not ended or self._began is None:
            return "-"
        seconds = (self._display.clock() - self._began) / ended * (self._total - len(self._ended))
        return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"

    def lines(self, width: int) -> list[Text]:
        """What is shown now, in lines of at most `width` columns."""
        if not self._slots:
            return []
        stopped = sum(status == Status.STOPPED_EARLY for status in self._ended.values())
        running, busy = len(self._running), self._num_busy()
        parts = [
            Text(shortened(self._name, LONGEST_NAME), "bold"),
            bar(len(self._ended), self._total),
            Text(f"{len(self._ended)}/{self._total_in_words} done, {running} running, {stopped} stopped early"),
            Text(f"eta {self._eta()}"),
            Text(f"{busy} of {plural(self._slots, 'slot')} busy"),
        ]
        if self._gpus_per_slot:
            parts.append(Text(f"{busy * self._gpus_per_slot:g} of {self._slots * self._gpus_per_slot:g} GPUs used"))
        lines = packed([*parts, Text(self._best_in_words(), "bold green")], width)
        shown = sorted(self._running.copy().items())
        for trial_id, trial in shown[:MOST_LINES]:
            lines.append(self._line_of(trial_id, trial, width))
        if (more := len(shown) - MOST_LINES) > 0:
            lines.append(Text(f"  and {more} more", "dim"))
        return lines

    def _num_busy(self) -> int:
        """Slots in which a trial runs; trials that are trained together have one in common."""
        if self._config.resources.fused == 1:
            return len(self._running)
        shares = (1 / shared_by(trial.epoch) if trial.epoch else 1.0 for trial in self._running.copy().values())
        return min(self._slots, math.ceil(sum(shares) - 1e-9))

    def _best_in_words(self) -> str:
        """The best trial so far, and how far the number of validation images bounds its value."""
        if self._best is None:
            return "no trial finished yet"
        value, trial_id = self._best
        text = f"best {self._config.trial.select_by} {value:.4f}"
        if within := interval(self._images, value):
            text += f" (95 %: {within[0]:.3f} to {within[1]:.3f})"
        return f"{text}, {trial_id}"

    def _line_of(self, trial_id: str, trial: Running, width: int) -> Text:
        """A line about a trial that runs: the epoch with the part of it that has probably passed, and what the last one gave."""
        total, done = self._config.trial.epochs, trial.epoch["epoch"] if trial.epoch else 0
        now = f"epoch {done}/{total}"
        if part := self._part_of_epoch(trial):
            now += f" +{part}"
        line = Text("  ").append(f"{trial_id}  {now:<{len(f'epoch {total}/{total} +~99 %')}}")
        if trial.epoch:
            value = trial.epoch["metrics"][self._config.trial.select_by]
            line.append(f"  {self._config.trial.select_by} " + ("-" if value is None else f"{value:.4f}"))
        room = width - line.cell_len - 2
        return line.append("  ").append(shortened(self._described[trial_id], room), "dim") if room > 2 else line

    def _part_of_epoch(self, trial: Running) -> str:
        """How much of the present epoch has passed: the time since the last one as a share of this trial's mean epoch; seconds
        while no epoch has been measured.
        """
        passed = max(0.0, self._display.clock() - trial.since)
        if not trial.num_trained or not trial.trained_s:
            return f"{passed:.0f} s" if passed >= 1 else ""
        return f"~{min(99, int(100 * passed * trial.num_trained / trial.trained_s))} %"


def bar(done: int, total: int) -> Text:
    """A bar of BAR columns."""
    full = BAR * done // total if total else 0
    return Text("━" * full, "green").append("━" * (BAR - full), "bright_black")
