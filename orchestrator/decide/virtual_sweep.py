"""Runs whole sweeps in virtual time: the real conductor, schedulers and samplers, with trials whose learning curves are formulas.

The clock advances by the durations of epochs, so that waiting shows, too. Used to estimate how long a sweep takes, and by
benchmarks that ask whether a search learns.
"""

import heapq
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from orchestrator.config.sweep_config import SweepConfig
from orchestrator.decide.conductor import Conductor, Stint
from orchestrator.ledger.events import Event, Kind, Status
from trainables.settings import flatten

Curve = Callable[[dict[str, Any], int], float | None]
"""What a trial with these settings (by dotted name) reaches in an epoch; None ends the trial as diverged."""


class Virtual(NamedTuple):
    """A sweep that has run."""

    events: list[Event]
    conductor: Conductor
    wall: float
    """Virtual time from the first epoch to the last, in epochs."""
    idle: float
    """The share of the slots' time in which they waited."""


def run(config: SweepConfig, curve: Curve, slots: int, seed: int = 0, jitter: float = 0.2) -> Virtual:
    """Runs a sweep to its end.

    Args:
        config: of the sweep.
        curve: learning curves of all trials.
        slots: trials at a time.
        seed: of the durations of epochs.
        jitter: an epoch takes between 1 - jitter and 1 + jitter units of time.
    """
    clock = _Clock(config, curve, slots, random.Random(seed), jitter)
    while clock.step():
        pass
    wall = max(clock.now, 1e-9)
    return Virtual(clock.events, clock.conductor, wall, 1 - clock.busy / (wall * slots))


@dataclass
class _Clock:
    config: SweepConfig
    curve: Curve
    slots: int
    random: random.Random
    jitter: float
    now: float = 0.0
    busy: float = 0.0
    events: list[Event] = field(default_factory=list)
    _due: list[tuple[float, int, Stint, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.conductor = Conductor(self.config, self.slots, self._append, self.config.resources.fused)

    def step(self) -> bool:
        """Fills free slots, then lets the next epoch end; False when nothing runs any more."""
        while stints := self.conductor.next_stints():
            for stint in stints:
                epoch = stint.checkpoints[0].epoch if stint.checkpoints else stint.first_epoch - 1
                self._append(Kind.TRIAL_START, trial_id=stint.trial_id, attempt=stint.attempt)
                self._begin(stint, epoch + 1)
        if not self._due:
            return False
        self.now, _, stint, epoch = heapq.heappop(self._due)
        if not self._end_epoch(stint, epoch):
            self._begin(stint, epoch + 1)
        return True

    def _begin(self, stint: Stint, epoch: int) -> None:
        duration = 1 + self.jitter * (2 * self.random.random() - 1)
        self.busy += duration
        heapq.heappush(self._due, (self.now + duration, len(self.events) + epoch, stint, epoch))

    def _end_epoch(self, stint: Stint, epoch: int) -> bool:
        """Whether the process leaves the trial."""
        trial_id, value = stint.trial_id, self.curve(flatten(stint.config), epoch)
        if value is None:
            self.conductor.after_ending(trial_id, Status.DIVERGED, "by the formula")
            return True
        self._append(Kind.CHECKPOINT, trial_id=trial_id, epoch=epoch, path=f"{trial_id}/{epoch}", sha256="")
        metrics = dict.fromkeys([self.config.trial.select_by, *self.config.objectives()], value)
        self._append(Kind.EPOCH, trial_id=trial_id, epoch=epoch, attempt=1, metrics=metrics)
        self.conductor.drop_checkpoints(trial_id)
        return self.conductor.after_epoch(trial_id)

    def _append(self, event: Kind, **fields: Any) -> Event:
        record: Any = {"event": event, "n": len(self.events), "time": self.now, **json.loads(json.dumps(fields))}
        self.events.append(record)
        self.conductor.apply(record)
        return record  # type: ignore[no-any-return]
