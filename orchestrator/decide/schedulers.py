"""Decides which trials stop, pause or are replaced at the end of an epoch. Measured values go in, verdicts come out.

The state of a scheduler is the history of each trial. After a crash, the scheduler is rebuilt by recording the ledger's epochs.
"""

import math
from array import array
from bisect import bisect_left, insort
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import numpy as np

from orchestrator.config.scheduler_config import HyperbandConfig, MedianConfig, PbtConfig, RungSettings
from orchestrator.config.search_config import FloatParameter, Parameter
from orchestrator.config.space import is_drawn
from orchestrator.config.sweep_config import SweepConfig
from orchestrator.ledger.events import Action
from trainables.config import MUTABLE
from trainables.config_file import ConfigError
from trainables.registry import lookup
from trainables.seeds import derive_seed

PERTURBATIONS = (0.8, 1.2)
"""Factors by which population-based training changes a setting."""
WORST = -1e300
"""Replaces a value that is not a number. Finite, because quantiles of infinite values are undefined."""
NOTHING = (WORST, 0.0, 0.0)
"""The best value, the sum and the number of values before the first epoch."""
MOST_TRIALS = 2**32
"""More trials than any sweep has, so that `epoch * MOST_TRIALS + number` is unique."""
MOST_ATTEMPTS = 1000
"""Upper limit of the attempts to find new settings that satisfy the constraints."""


class Verdict(NamedTuple):
    """What happens to a trial, and why."""

    action: Action
    """`continue`, `stop`, `pause`, `promote` (a paused trial continues) or `replace` (by a trial that continues from `donor`)."""
    cutoff: float | None = None
    """The value that the trial's value was compared with."""
    rank: int | None = None
    """The trial's rank among `of` trials; 1 is the best."""
    of: int | None = None
    """Number of compared trials that have reached the same epoch, this one included."""
    donor: int | None = None
    """Number of the trial whose state and settings the replacement takes over."""


class _Point(NamedTuple):
    """A trial's record after an epoch."""

    value: float
    """The value of this epoch."""
    best: float
    """The best value of all epochs so far."""
    total: float
    """The sum over all epochs that gave a number."""
    epochs: int
    """The number of epochs that gave a number."""


class Scheduler:
    """Never stops a trial: every trial runs to its last epoch. Base of all schedulers. Trials are known by their numbers."""

    waits_for_all: ClassVar[bool] = False
    """Whether all trials wait for each other at the same epoch."""

    def __init__(self, config: SweepConfig) -> None:
        self._epochs = config.trial.epochs
        self._running: dict[int, array[float]] = {}
        self._points: dict[int, dict[int, _Point]] = {}

    def join(self, number: int, group: str) -> None:
        """Takes a new trial, which is compared with the trials of its own group only. Without arms there is one group."""

    def record(self, number: int, epoch: int, value: float | None) -> None:
        """Records the value of a trial in an epoch; None stands for a value that is not a number.

        When an epoch is repeated, the last attempt counts.
        """
        # Three numbers for each epoch of each trial: points of all of them would fill the memory.
        running = self._running.setdefault(number, array("d"))
        while len(running) < 3 * (epoch + 1):  # an epoch without a record is an empty history; offspring start late
            running.extend(NOTHING)
        best, total, epochs = running[3 * (epoch - 1) : 3 * epoch]
        point = _Point(WORST, best, total, int(epochs))  # an epoch without a number changes neither the best value nor the mean
        if value is not None:
            point = _Point(value, max(best, value), total + value, int(epochs) + 1)
        running[3 * epoch : 3 * epoch + 3] = array("d", point[1:])
        if self.judges_at(epoch):
            self._points.setdefault(epoch, {})[number] = point

    def judges_at(self, epoch: int) -> bool:
        """Whether trials are judged at the end of `epoch`."""
        return False

    def is_due(self, number: int, epoch: int) -> bool:
        """Whether trial `number` is judged at the end of `epoch`."""
        return self.judges_at(epoch)

    def judge(self, number: int, epoch: int) -> Verdict:
        """The verdict on a trial that is due, from all values that have been recorded."""
        raise NotImplementedError

    def settle(self, due: dict[int, int]) -> dict[int, Verdict]:
        """The verdicts on several trials at once, by trial number; `due` holds the epoch of each trial."""
        return {number: self.judge(number, due[number]) for number in sorted(due)}

    def donor(self, epoch: int, number: int) -> int | None:
        """The trial whose state a new trial takes over in the place of `number`, which broke down; None: it is not replaced."""
        return None

    def promote(self, paused: dict[int, int]) -> tuple[int, Verdict] | None:
        """The paused trial that continues next; None when every paused trial keeps waiting.

        Args:
            paused: the epoch of each paused trial, by number.
        """
        return None

    def _at(self, epoch: int) -> dict[int, "_Point"]:
        """The records of the trials that have reached `epoch`, at which they are judged."""
        return self._points.get(epoch, {})


class Asha(Scheduler):
    """Asynchronous successive halving that stops trials. Source: Li et al., MLSys 2020, in the stopping form of Ray Tune."""

    def __init__(self, config: SweepConfig) -> None:
        super().__init__(config)
        assert isinstance(config.scheduler, RungSettings)
        self._factor = config.scheduler.reduction_factor
        self.rungs = rungs(config.scheduler, config.trial.epochs)

    def judges_at(self, epoch: int) -> bool:
        """At the rungs."""
        return epoch in self.rungs

    def judge(self, number: int, epoch: int) -> Verdict:
        """Continues a trial whose best value is no worse than that of the best 1/reduction_factor of the others at the rung."""
        mine = self._at(epoch)[number].best
        others = [point.best for other, point in self._at(epoch).items() if other != number and self._are_rivals(number, other)]
        numbers = [value for value in others if value > WORST]  # a quantile would interpolate with WORST
        cutoff = float(np.quantile(numbers, 1 - 1 / self._factor)) if numbers else None
        rank = 1 + sum(value > mine for value in others)
        return Verdict(Action.STOP if cutoff is not None and mine < cutoff else Action.CONTINUE, cutoff, rank, len(others) + 1)

    def _are_rivals(self, number: int, other: int) -> bool:
        """Whether two trials are compared with each other."""
        return True


class Promotion(Asha):
    """Asynchronous successive halving that promotes trials. Source: Li et al., MLSys 2020, Algorithm 2."""

    def __init__(self, config: SweepConfig) -> None:
        super().__init__(config)
        self._ranked: dict[int, list[tuple[float, int]]] = {rung: [] for rung in self.rungs}
        """At each rung (minus the best value, number) of the trials that have reached it, the best first; among equals, the
        lowest number first."""

    def record(self, number: int, epoch: int, value: float | None) -> None:
        """Records the value of a trial in an epoch."""
        before = self._at(epoch).get(number)
        super().record(number, epoch, value)
        if epoch in self._ranked:
            ranked = self._ranked[epoch]
            if before:
                del ranked[bisect_left(ranked, (-before.best, number))]
            insort(ranked, (-self._at(epoch)[number].best, number))

    def judge(self, number: int, epoch: int) -> Verdict:
        """Pauses every trial at every rung."""
        ranked = self._ranked[epoch]
        place = bisect_left(ranked, (-self._at(epoch)[number].best, number))
        return Verdict(Action.PAUSE, None, place + 1, len(ranked))

    def promote(self, paused: dict[int, int]) -> tuple[int, Verdict] | None:
        """Chooses the best paused trial that is among the best 1/reduction_factor of all that reached its rung; the highest rung
        comes first.

        Trials that ended at the rung keep their ranks: otherwise a resumed sweep would promote trials that are worse than those
        that it has given up.
        """
        for rung in reversed(self.rungs):
            reached = self._ranked[rung]
            places = int(len(reached) / self._factor + 1e-9)  # the margin absorbs rounding in the division
            for rank, (_, number) in enumerate(reached[:places], 1):
                if paused.get(number) == rung:
                    return number, Verdict(Action.PROMOTE, -reached[places - 1][0], rank, len(reached))
        return None


class Hyperband(Asha):
    """Asha in brackets. Bracket b begins at rung b. Sizes of the brackets as in Li et al., JMLR 2018, Algorithm 1."""

    def __init__(self, config: SweepConfig) -> None:
        super().__init__(config)
        assert isinstance(config.scheduler, HyperbandConfig)
        last = len(self.rungs)  # the last bracket has no rung and stops no trial
        sizes = [math.ceil((last + 1) / (last - b + 1) * self._factor ** (last - b)) for b in range(last + 1)]
        self._shares = np.array(sizes) / sum(sizes)
        self._dealt: list[int] = []

    def bracket(self, number: int) -> int:
        """The bracket of a trial. At any time, the number of trials in each bracket is as close to its share as possible."""
        # Dealt in the order of trial numbers, so that the bracket depends on the number alone, also after a crash.
        while len(self._dealt) <= number:
            counts = np.bincount(np.array(self._dealt, dtype=int), minlength=len(self._shares))
            self._dealt.append(int(np.argmax(self._shares * (len(self._dealt) + 1) - counts)))
        return self._dealt[number]

    def is_due(self, number: int, epoch: int) -> bool:
        """At the rungs of the trial's bracket."""
        return epoch in self.rungs[self.bracket(number) :]

    def _are_rivals(self, number: int, other: int) -> bool:
        return self.bracket(number) == self.bracket(other)


class Median(Scheduler):
    """The median rule. Source: Golovin et al., KDD 2017 (Vizier), section 3.2."""

    def __init__(self, config: SweepConfig) -> None:
        super().__init__(config)
        assert isinstance(config.scheduler, MedianConfig)
        self._settings = config.scheduler

    def judges_at(self, epoch: int) -> bool:
        """Every `interval_epochs`, beginning at `grace_epochs`; not at the last epoch."""
        past = epoch - self._settings.grace_epochs
        return epoch < self._epochs and past >= 0 and past % self._settings.interval_epochs == 0

    def judge(self, number: int, epoch: int) -> Verdict:
        """Stops a trial whose best value is below the median of the other trials' running means."""
        others = [point for other, point in self._at(epoch).items() if other != number and point.best > WORST]
        means = [point.total / point.epochs for point in others]
        if len(means) < self._settings.min_trials:
            return Verdict(Action.CONTINUE, of=len(means) + 1)
        mine, cutoff = self._at(epoch)[number].best, float(np.median(means))
        # isclose, because rounding can put the mean of equal values slightly above them.
        stops = mine < cutoff and not math.isclose(mine, cutoff, rel_tol=1e-9)
        return Verdict(Action.STOP if stops else Action.CONTINUE, cutoff, 1 + sum(mean > mine for mean in means), len(means) + 1)


class Pbt(Scheduler):
    """Population-based training in generations. Source: Jaderberg et al., 2017, with truncation selection."""

    waits_for_all: ClassVar[bool] = True

    def __init__(self, config: SweepConfig) -> None:
        super().__init__(config)
        assert isinstance(config.scheduler, PbtConfig)
        self._settings, self._seed = config.scheduler, config.search.seed

    def judges_at(self, epoch: int) -> bool:
        """At the end of each generation except the last."""
        return epoch < self._epochs and epoch % self._settings.interval_epochs == 0

    def settle(self, due: dict[int, int]) -> dict[int, Verdict]:
        """Replaces the worst members by offspring of the best members, ranked by their values in the generation's last epoch."""
        if not due:
            return {}
        epoch = max(due.values())
        # Ranks all members at the epoch, not only those in `due`: after a crash, some of the verdicts may have been written.
        points = self._at(epoch)
        ranked = sorted(points, key=lambda number: (-points[number].value, number))
        count = max(1, int(len(ranked) * self._settings.quantile)) if len(ranked) > 1 else 0
        verdicts = {}
        for rank, number in enumerate(ranked, 1):
            verdict = Verdict(Action.CONTINUE, None, rank, len(ranked))
            if rank > len(ranked) - count:
                donor = self.donor(epoch, number)
                # The cutoff is the value of the worst member that stays.
                verdict = Verdict(Action.REPLACE, points[ranked[-count - 1]].value, rank, len(ranked), donor)
            verdicts[number] = verdict
        return verdicts

    def donor(self, epoch: int, number: int) -> int | None:
        """One of the best members at the end of a generation, drawn for the member `number` that is replaced."""
        points = self._at(epoch)
        ranked = sorted(points, key=lambda member: (-points[member].value, member))
        if not ranked:
            return None
        # A generator for each member: the donor does not depend on the verdicts that were made before.
        rng = np.random.default_rng(derive_seed(self._seed, "exploit", epoch * MOST_TRIALS + number))
        return ranked[int(rng.integers(max(1, int(len(ranked) * self._settings.quantile))))]


class Apart(Scheduler):
    """Compares trials within their groups: each group has a scheduler of its own, which knows a trial by its place in the group.

    Arms are compared at the end, when each has been tuned. A trial of one arm must not stop a trial of another one, because a
    method that starts slowly may be the best in the end.
    """

    def __init__(self, config: SweepConfig) -> None:
        super().__init__(config)
        self._config = config
        self._groups: dict[str, Scheduler] = {}
        self._members: dict[str, list[int]] = {}
        self._places: dict[int, tuple[str, int]] = {}

    def join(self, number: int, group: str) -> None:
        """Takes a new trial, which is compared with the trials of its own group only."""
        if group not in self._groups:
            self._groups[group] = lookup(SCHEDULERS, self._config.scheduler.name, "scheduler")(self._config)
            self._members[group] = []
        self._places[number] = group, len(self._members[group])
        self._members[group].append(number)

    def record(self, number: int, epoch: int, value: float | None) -> None:
        """Records the value of a trial in an epoch."""
        group, place = self._places[number]
        self._groups[group].record(place, epoch, value)

    def is_due(self, number: int, epoch: int) -> bool:
        """Whether trial `number` is judged at the end of `epoch`."""
        group, place = self._places[number]
        return self._groups[group].is_due(place, epoch)

    def judge(self, number: int, epoch: int) -> Verdict:
        """The verdict of the trial's group."""
        group, place = self._places[number]
        return self._groups[group].judge(place, epoch)

    def promote(self, paused: dict[int, int]) -> tuple[int, Verdict] | None:
        """The trial that its group promotes, from the first group that promotes one."""
        for group, members in self._members.items():
            own = {place: paused[number] for place, number in enumerate(members) if number in paused}
            if promoted := self._groups[group].promote(own):
                return members[promoted[0]], promoted[1]
        return None


SCHEDULERS: dict[str, Callable[[SweepConfig], Scheduler]] = {
    "asha": Asha,
    "promotion": Promotion,
    "hyperband": Hyperband,
    "median": Median,
    "pbt": Pbt,
    "none": Scheduler,
}


def build_scheduler(config: SweepConfig) -> Scheduler:
    """Builds the scheduler of a sweep."""
    if config.ablation:
        return Scheduler(config)
    return Apart(config) if config.compares_arms else lookup(SCHEDULERS, config.scheduler.name, "scheduler")(config)


def rungs(config: RungSettings, epochs: int) -> list[int]:
    """The epochs at which trials are judged: `grace_epochs` times the powers of `reduction_factor`, below the last epoch.

    Rungs that are not whole are rounded up.
    """
    found, rung = [], float(config.grace_epochs)
    while math.ceil(rung - 1e-9) < epochs:  # the margin absorbs rounding in the products
        found.append(math.ceil(rung - 1e-9))
        rung *= config.reduction_factor
    return list(dict.fromkeys(found))  # with a factor near 1, two rungs may round up to the same epoch


def explore(config: SweepConfig, values: dict[str, Any], number: int) -> dict[str, Any]:
    """Finds new values for the mutable settings of the space, near a donor's values or drawn anew.

    All other settings keep the donor's values.

    Args:
        config: of the sweep; the scheduler is `pbt`.
        values: the donor's settings by dotted name.
        number: of the trial that gets the new values.

    Returns: the new values by dotted name.

    Raises:
        ConfigError: when MOST_ATTEMPTS attempts give no changed settings that satisfy the constraints.
    """
    assert isinstance(config.scheduler, PbtConfig)
    rng = np.random.default_rng(derive_seed(config.search.seed, "explore", number))
    drawn = {name: values[name] for name in config.space if name in values}
    mutable = {name: config.space[name] for name in drawn if name in MUTABLE and is_drawn(config.space, name, drawn)}
    if not mutable:  # the conditions of all mutable settings exclude them from this donor's configuration
        return {}
    for _ in range(MOST_ATTEMPTS):
        found = {
            name: _explored(parameter, values[name], config.scheduler.resample_probability, rng)
            for name, parameter in mutable.items()
        }
        changed = any(found[name] != values[name] for name in found)  # values at a bound or at `or_exactly` may stay
        if changed and config.accepts(drawn | found):
            return found
    raise ConfigError(
        f"no offspring of {drawn} with changed settings satisfies search.constraints ({MOST_ATTEMPTS} attempts); "
        f"allowed: constraints that leave more of the space"
    )


def _explored(parameter: Parameter, value: Any, resample: float, rng: np.random.Generator) -> float:
    """One new value: with probability `resample` drawn anew, otherwise perturbed and limited to the parameter's range."""
    assert isinstance(parameter, FloatParameter)  # all mutable settings are real numbers
    if rng.random() >= resample:
        factor = PERTURBATIONS[int(rng.integers(2))]
        # `or_exactly` stays as it is: a multiple of it, limited to the range, would be a bound.
        return float(value) if value == parameter.or_exactly else min(max(value * factor, parameter.low), parameter.high)
    if parameter.or_exactly is not None and rng.random() < 0.5:
        return parameter.or_exactly
    if parameter.log:
        # Clipped, because exp(log(bound)) may lie outside the range by a rounding error.
        return float(np.exp(rng.uniform(math.log(parameter.low), math.log(parameter.high))).clip(parameter.low, parameter.high))
    return float(rng.uniform(parameter.low, parameter.high))
