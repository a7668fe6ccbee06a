"""Which trials stop, wait or are replaced at the end of an epoch. Pure: what has been measured goes in, verdicts come out.

All that a scheduler knows is the history of each trial, so it is rebuilt by handing it the epochs of a ledger.
"""

import math
from collections.abc import Callable, Collection
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
WORST = -1e300
"""Stands for a value that is no number. Not infinity, whose quantiles are undefined."""
MOST_TRIALS = 2**32
MOST_ATTEMPTS = 1000


class Verdict(NamedTuple):
    """What becomes of a trial, and why."""

    action: Action
    """`continue`, `stop`, `pause`, `promote` (a paused trial goes on) or `replace` (by one that goes on from `donor`)."""
    cutoff: float | None = None
    """What the trial's value was compared with."""
    rank: int | None = None
    """The trial's place among `of`, 1 for the best."""
    of: int | None = None
    """Trials that have come as far."""
    donor: int | None = None
    """The number of the trial whose state and settings the replacement takes over."""


class _Point(NamedTuple):
    """Where a trial stands after an epoch."""

    value: float
    best: float
    """Of all epochs so far."""
    total: float
    """Of all epochs that gave a number."""
    epochs: int
    """How many did."""


class Scheduler:
    """Judges no one: every trial runs to its last epoch. The base of all schedulers. Trials are known by their numbers."""

    waits_for_all: ClassVar[bool] = False
    """Whether nobody goes on before all are at the same epoch."""

    def __init__(self, config: SweepConfig) -> None:
        self._epochs = config.trial.epochs
        self._points: dict[int, dict[int, _Point]] = {}

    def record(self, number: int, epoch: int, value: float | None) -> None:
        """What a trial reached in an epoch; None where that is not a number. A repeated epoch replaces what it repeats."""
        before = self._points.get(epoch - 1, {}).get(number, _Point(WORST, WORST, 0.0, 0))
        point = before._replace(value=WORST)
        if value is not None:
            point = _Point(value, max(before.best, value), before.total + value, before.epochs + 1)
        self._points.setdefault(epoch, {})[number] = point

    def is_due(self, number: int, epoch: int) -> bool:
        """Whether trial `number` is judged at the end of `epoch`."""
        return False

    def judge(self, number: int, epoch: int) -> Verdict:
        """The verdict on a trial that is due, from all that has been recorded."""
        raise NotImplementedError

    def settle(self, due: dict[int, int]) -> dict[int, Verdict]:
        """The verdicts on several trials at once, by number; `due` has the epoch of each."""
        return {number: self.judge(number, due[number]) for number in sorted(due)}

    def promote(self, paused: dict[int, int], ended: Collection[int]) -> tuple[int, Verdict] | None:
        """The paused trial that may go on now, if any; `paused` has the epoch of each."""
        return None

    def _at(self, epoch: int) -> dict[int, "_Point"]:
        """Where the trials that have come so far stood then."""
        return self._points.get(epoch, {})


class Asha(Scheduler):
    """Asynchronous successive halving that stops. Source: Li et al., MLSys 2020, in the stopping form of Ray Tune."""

    def __init__(self, config: SweepConfig) -> None:
        super().__init__(config)
        assert isinstance(config.scheduler, RungSettings)
        self._factor = config.scheduler.reduction_factor
        self.rungs = rungs(config.scheduler, config.trial.epochs)

    def is_due(self, number: int, epoch: int) -> bool:
        """At the rungs."""
        return epoch in self.rungs

    def judge(self, number: int, epoch: int) -> Verdict:
        """Continues a trial that is no worse than the best 1/reduction_factor of the others at the rung."""
        mine = self._at(epoch)[number].best
        others = [point.best for other, point in self._at(epoch).items() if other != number and self._are_rivals(number, other)]
        numbers = [value for value in others if value > WORST]
        cutoff = float(np.quantile(numbers, 1 - 1 / self._factor)) if numbers else None
        rank = 1 + sum(value > mine for value in others)
        return Verdict(Action.STOP if cutoff is not None and mine < cutoff else Action.CONTINUE, cutoff, rank, len(others) + 1)

    def _are_rivals(self, number: int, other: int) -> bool:
        return True


class Promotion(Asha):
    """Asynchronous successive halving that promotes. Source: Li et al., MLSys 2020, Algorithm 2."""

    def judge(self, number: int, epoch: int) -> Verdict:
        """Everybody waits at every rung."""
        ranked = self._ranked(epoch)
        return Verdict(Action.PAUSE, None, ranked.index(number) + 1, len(ranked))

    def promote(self, paused: dict[int, int], ended: Collection[int]) -> tuple[int, Verdict] | None:
        """The best paused trial of the highest rung where one is among the best 1/reduction_factor. Trials that ended at the rung
        take no place from others: they can no longer go on.
        """
        for rung in reversed(self.rungs):
            everybody = self._ranked(rung)
            places = int(len(everybody) / self._factor + 1e-9)
            ranked = [number for number in everybody if number not in ended or number in self._at(rung + 1)]
            best = ranked[:places]
            for rank, number in enumerate(best, 1):
                if paused.get(number) == rung:
                    return number, Verdict(Action.PROMOTE, self._at(rung)[best[-1]].best, rank, len(everybody))
        return None

    def _ranked(self, rung: int) -> list[int]:
        points = self._at(rung)
        return sorted(points, key=lambda number: (-points[number].best, number))


class Hyperband(Asha):
    """Brackets of Asha. Bracket b begins at rung b; sizes as in Li et al., JMLR 2018, Algorithm 1."""

    def __init__(self, config: SweepConfig) -> None:
        super().__init__(config)
        assert isinstance(config.scheduler, HyperbandConfig)
        last = len(self.rungs)  # the bracket that judges nobody
        sizes = [math.ceil((last + 1) / (last - b + 1) * self._factor ** (last - b)) for b in range(last + 1)]
        self._shares = np.array(sizes) / sum(sizes)
        self._dealt: list[int] = []

    def bracket(self, number: int) -> int:
        """The bracket of a trial: at any time each has its share of all trials, as nearly as possible."""
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

    def is_due(self, number: int, epoch: int) -> bool:
        """Every `interval_epochs`, from `grace_epochs` on."""
        past = epoch - self._settings.grace_epochs
        return epoch < self._epochs and past >= 0 and past % self._settings.interval_epochs == 0

    def judge(self, number: int, epoch: int) -> Verdict:
        """Stops a trial whose best value is below the median of the others' running means."""
        others = [point for other, point in self._at(epoch).items() if other != number and point.best > WORST]
        means = [point.total / point.epochs for point in others]
        if len(means) < self._settings.min_trials:
            return Verdict(Action.CONTINUE, of=len(means) + 1)
        mine, cutoff = self._at(epoch)[number].best, float(np.median(means))
        stops = mine < cutoff and not math.isclose(mine, cutoff, rel_tol=1e-9)  # a mean of equals may be a bit above them
        return Verdict(Action.STOP if stops else Action.CONTINUE, cutoff, 1 + sum(mean > mine for mean in means), len(means) + 1)


class Pbt(Scheduler):
    """Population-based training in generations. Source: Jaderberg et al., 2017, with truncation selection."""

    waits_for_all: ClassVar[bool] = True

    def __init__(self, config: SweepConfig) -> None:
        super().__init__(config)
        assert isinstance(config.scheduler, PbtConfig)
        self._settings, self._seed = config.scheduler, config.search.seed

    def is_due(self, number: int, epoch: int) -> bool:
        """At the end of each generation but the last."""
        return epoch < self._epochs and epoch % self._settings.interval_epochs == 0

    def settle(self, due: dict[int, int]) -> dict[int, Verdict]:
        """Replaces the worst members by offspring of the best, by their values in the generation's last epoch."""
        if not due:
            return {}
        epoch = max(due.values())
        # All who were there, not those only who are due still: the decisions may have been broken off half way.
        points = self._at(epoch)
        ranked = sorted(points, key=lambda number: (-points[number].value, number))
        count = max(1, int(len(ranked) * self._settings.quantile)) if len(ranked) > 1 else 0
        verdicts = {}
        for rank, number in enumerate(ranked, 1):
            verdict = Verdict(Action.CONTINUE, None, rank, len(ranked))
            if rank > len(ranked) - count:
                rng = np.random.default_rng(derive_seed(self._seed, "exploit", epoch * MOST_TRIALS + number))
                donor = ranked[int(rng.integers(count))]
                verdict = Verdict(Action.REPLACE, points[ranked[-count - 1]].value, rank, len(ranked), donor)
            verdicts[number] = verdict
        return verdicts


SCHEDULERS: dict[str, Callable[[SweepConfig], Scheduler]] = {
    "asha": Asha,
    "promotion": Promotion,
    "hyperband": Hyperband,
    "median": Median,
    "pbt": Pbt,
    "none": Scheduler,
}


def build_scheduler(config: SweepConfig) -> Scheduler:
    """The scheduler of a sweep."""
    return lookup(SCHEDULERS, config.scheduler.name, "scheduler")(config)


def rungs(config: RungSettings, epochs: int) -> list[int]:
    """The epochs at which trials are judged: `grace_epochs` times the powers of `reduction_factor`, below the last epoch."""
    found, rung = [], float(config.grace_epochs)
    while math.ceil(rung - 1e-9) < epochs:
        found.append(math.ceil(rung - 1e-9))
        rung *= config.reduction_factor
    return list(dict.fromkeys(found))


def explore(config: SweepConfig, values: dict[str, Any], number: int) -> dict[str, Any]:
    """New values for the mutable settings of the space, near those of a donor or drawn anew; the rest stays with the donor.

    Args:
        config: of the sweep; its scheduler is `pbt`.
        values: the donor's settings by dotted name.
        number: of the trial that is to have the new values.
    """
    assert isinstance(config.scheduler, PbtConfig)
    rng = np.random.default_rng(derive_seed(config.search.seed, "explore", number))
    drawn = {name: values[name] for name in config.space if name in values}
    mutable = {name: config.space[name] for name in drawn if name in MUTABLE and is_drawn(config.space, name, drawn)}
    for _ in range(MOST_ATTEMPTS):
        found = {
            name: _explored(parameter, values[name], config.scheduler.resample_probability, rng)
            for name, parameter in mutable.items()
        }
        changed = any(found[name] != values[name] for name in found)  # at a bound or at `or_exactly` all may have stayed
        if changed and config.accepts(drawn | found):
            return found
    raise ConfigError(f"no offspring of {drawn} keeps search.constraints ({MOST_ATTEMPTS} attempts)")


def _explored(parameter: Parameter, value: Any, resample: float, rng: np.random.Generator) -> float:
    assert isinstance(parameter, FloatParameter)  # all mutable settings are real numbers
    if rng.random() >= resample:
        factor = PERTURBATIONS[int(rng.integers(2))]
        return float(value) if value == parameter.or_exactly else min(max(value * factor, parameter.low), parameter.high)
    if parameter.or_exactly is not None and rng.random() < 0.5:
        return parameter.or_exactly
    if parameter.log:
        return float(np.exp(rng.uniform(math.log(parameter.low), math.log(parameter.high))).clip(parameter.low, parameter.high))
    return float(rng.uniform(parameter.low, parameter.high))
