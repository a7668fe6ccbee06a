"""What a person sees while a sweep runs: a live display in a terminal, plain lines elsewhere. Input: the ledger's events."""

import time
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orchestrator.config.sweep_config import SweepConfig
from orchestrator.ledger.events import Action, EpochEvent, Event, Kind, Role, Status, SuggestEvent, TrialEndEvent
from orchestrator.terminal.lines import STYLES, describe_values, last_line
from trainables.collapse import verdict


class Progress:
    """Shows the progress of a sweep. A listener of the ledger, and a context manager."""

    def __init__(self, config: SweepConfig, name: str, console: Console, past: Sequence[Event] = ()) -> None:
        """Takes the events from before this process.

        Args:
            config: of the sweep.
            name: of the sweep.
            console: where to print.
            past: events that the ledger holds already. They count, but are not printed.
        """
        self._config, self._name, self._console = config, name, console
        self._described: dict[str, str] = {}
        self._running: dict[str, EpochEvent | None] = {}
        self._ended: dict[str, Status] = {}
        self._best: tuple[float, str] | None = None
        self._began: float | None = None
        self._ended_before = 0
        self._collapsed: set[str] = set()
        """Trials whose collapse has been told."""
        for event in past:
            self._take(event)
            self._collapse_of(event)
        # Trials that an earlier process ran or interrupted run no more; `trial_start` will bring them back.
        self._running.clear()
        self._ended = {trial_id: status for trial_id, status in self._ended.items() if status != Status.INTERRUPTED}
        self._began, self._ended_before = None, len(self._ended)
        self._live = Live(console=console, refresh_per_second=4, transient=True, get_renderable=self._render)

    def __enter__(self) -> "Progress":
        """Starts the display."""
        if self._console.is_terminal:
            with suppress(Exception, SystemExit):  # rich may have another display open, or find no terminal any more
                self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Removes the display. The lines of ended trials stay."""
        with suppress(Exception, SystemExit):
            self._live.stop()

    def __call__(self, event: Event) -> None:
        """Takes one event."""
        self._take(event)
        if event["event"] == Kind.GROUP_LOST:
            self._say(f"{event['trial_id']} lost its workers in epoch {event['epoch']}: {event['reason']}")
        elif event["event"] == Kind.RETRY:
            self._say(f"{event['trial_id']} failed and is tried again: {last_line(event['reason'])}")
        elif event["event"] == Kind.DAMAGED:
            self._say(f"{event['trial_id']}: a checkpoint is damaged, the one before is used: {event['reason']}")
        elif collapse := self._collapse_of(event):
            self._say(f"{event.get('trial_id')} goes on, but its weighting has collapsed: {collapse}")
        elif event["event"] == Kind.TRIAL_END:
            self._console.print(self._line(event), highlight=False, soft_wrap=True)

    def _take(self, event: Event) -> None:
        if event["event"] == Kind.SUGGEST:
            self._described[event["trial_id"]] = self._describe(event)
        elif event["event"] == Kind.TRIAL_START:
            self._began = self._began or time.monotonic()
            self._running.setdefault(event["trial_id"], None)
        elif event["event"] == Kind.EPOCH:
            self._running[event["trial_id"]] = event
        elif event["event"] == Kind.DECIDE and event["action"] == Action.PAUSE:
            self._running.pop(event["trial_id"], None)
        elif event["event"] == Kind.TRIAL_END:
            self._take_end(event)

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
        self._console.print(Text(f"          {text}", "yellow"), soft_wrap=True)

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
        line = Text(f"[{len(self._ended):>3}/{self._total_in_words}] {event['trial_id']} ")
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
        seconds = (time.monotonic() - self._began) / ended * (self._total - len(self._ended))
        return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"

    def _render(self) -> Group:
        total, done = self._total, len(self._ended)
        stopped = sum(status == Status.STOPPED_EARLY for status in self._ended.values())
        head = Table.grid(padding=(0, 2))
        counts = f"{done}/{self._total_in_words} done, {len(self._running)} running, {stopped} stopped early"
        best = f"best {self._config.trial.select_by} {self._best[0]:.4f} ({self._best[1]})" if self._best else "starting Ray"
        if self._described and not self._best:
            best = "no trial finished yet" if self._began else "starting processes"
        head.add_row(
            Text(self._name, "bold"),
            ProgressBar(total, done, width=24),
            counts,
            Text(best, "bold green"),
            f"eta {self._eta()}",
        )
        rows = Table.grid(padding=(0, 2))
        for trial_id, epoch in sorted(self._running.items()):
            count = f"epoch {epoch['epoch']}/{self._config.trial.epochs}" if epoch else "starting"
            value = epoch["metrics"][self._config.trial.select_by] if epoch else None
            score = "" if value is None else f"{self._config.trial.select_by} {value:.4f}"
            rows.add_row("", trial_id, count, score, Text(self._described[trial_id], "dim"))
        return Group(Text(), head, rows)
