"""Optuna's part of a sweep: samplers, proposals, and what the study learns when a trial ends. Independent of Ray.

After a crash, the study is rebuilt from the ledger by the same calls in the same order, with `replay` in place of `propose`. The
rebuilt study proposes what the lost study would have proposed.
"""

import copy
import itertools
import math
import random
import warnings
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, NSGAIISampler, QMCSampler, RandomSampler, TPESampler
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from orchestrator.config.search_config import CategoricalParameter, FloatParameter, IntParameter, Parameter, SearchConfig
from orchestrator.config.space import Space, conditions, drawing_order, grid_values, is_drawn, numbers_of_every_trial
from orchestrator.config.sweep_config import apply_changes
from orchestrator.ledger.events import Status
from trainables.config import TrialConfig
from trainables.config_file import ConfigError
from trainables.registry import lookup
from trainables.settings import flatten

Accept = Callable[[dict[str, Any]], bool]
"""Takes the settings of a draw, by dotted name; returns whether the draw may be proposed."""
MAX_DRAWS = 1000
"""Upper limit of the draws for one proposal. Constraints that refuse all of them leave next to nothing of the space."""
DRAWS_OF_MODEL = 20
"""Upper limit of a model's draws for one proposal. When constraints refuse all of them, the remaining draws are random."""
LEARNED = (Status.FINISHED, Status.STOPPED_EARLY, Status.RUNNING)
"""Statuses of trials whose objectives the sampler learns from."""
FIRST_RANDOM = 8
"""Number of random trials before a model proposes, and population size of `nsga2`. Small, so that most trials profit from the
model on a small budget."""


RECENT_TRIALS = 1000
"""Trials among which CMA-ES finds those of its last generation: more than run at a time and are in a generation together."""


class StudyError(ConfigError):
    """The study cannot make the proposal that is asked for."""


def always(values: dict[str, Any]) -> bool:
    """Accepts every draw."""
    return True


class Study:
    """An Optuna study in which trials are known by the sweep's trial numbers.

    The study learns only through `propose`, `insert`, `learn` and `tell`. It holds only trials whose configuration lies in the
    space. After `close`, every trial has ended for Optuna.
    """

    def __init__(self, search: SearchConfig, space: Space, objectives: list[str], accept: Accept = always) -> None:
        """Creates a study without trials.

        Args:
            search: sampler and seed.
            space: the parameters to draw.
            objectives: the metrics that are maximised.
            accept: decides which draws may be proposed. The result may depend on the argument only; otherwise a replay would
                refuse other draws than the sweep did.
        """
        self._search, self._space, self._accept = search, space, accept
        self._remembers = lookup(SAMPLERS, search.sampler, "sampler").remembers
        sampler = build_sampler(search.sampler, search.seed, space, accept)
        self._optuna = optuna.create_study(sampler=sampler, directions=["maximize"] * len(objectives))
        self._running: dict[int, Trial] = {}
        self._paused: dict[int, Trial] = {}
        self._worst: list[float] | None = None

    def propose(self, number: int) -> dict[str, Any] | None:
        """Draws the point of a new trial.

        Args:
            number: of the new trial.

        Returns: Optuna's parameters, or None when every point of a grid has been drawn.

        Raises:
            StudyError: when 1000 draws in a row are not accepted.
        """
        drawn: list[Trial] = []
        try:
            while len(drawn) < MAX_DRAWS:
                if not self._remembers:
                    # A new sampler for each draw makes the draw depend on the seed and the study's trials only. `replay` can
                    # therefore skip the draws that have been made.
                    name = self._search.sampler if len(drawn) < DRAWS_OF_MODEL else "random"
                    seed = seed_of_draw(self._search.seed, number, len(drawn))
                    self._optuna.sampler = build_sampler(name, seed, self._space, self._accept)
                    if near := near_priors(self._space, self._search.prior_trials, number, seed):
                        self._optuna.enqueue_trial(near)  # Optuna draws only what is not given
                drawn.append(self._optuna.ask())
                suggest(self._space, drawn[-1])
                if self._accept(values_of(self._space, drawn[-1].params)):
                    break
            else:
                raise StudyError(
                    f"{MAX_DRAWS} draws in a row break one of search.constraints: {'; '.join(self._search.constraints)}; "
                    f"allowed: constraints that leave more of the space"
                )
            params = drawn[-1].params
            if self._remembers:
                self._run(number, drawn.pop())
        except _UsedUp:
            return None
        finally:
            # Refused draws stay RUNNING until here, because models avoid the points of running trials.
            for trial in drawn:
                self._optuna.tell(trial, state=TrialState.FAIL)
        if not self._remembers:
            # A model stores attributes on the trial that it draws, and the ledger does not hold them. Therefore the drawn trial
            # was told FAIL above, which no sampler reads, and the trial that runs is inserted in the same way as by `replay`.
            # The next draw then sees the same study as after a replay.
            self.insert(number, params)
        return params

    def replay(self, number: int, params: dict[str, Any]) -> None:
        """Repeats a proposal from the ledger. A sampler that remembers nothing need not compute the proposal again.

        Args:
            number: of the trial in the ledger.
            params: the parameters that `propose` returned for the trial.

        Raises:
            StudyError: when a sampler that remembers now proposes other parameters.
        """
        if not self._remembers:
            self.insert(number, params)
        elif (proposed := self.propose(number)) != params:
            raise StudyError(
                f"trial {number} is {params} in the ledger, but search.sampler {self._search.sampler!r} now proposes {proposed}: "
                f"other values than the ledger holds; use the versions in the ledger, or start a new sweep with --warm-start"
            )

    def insert(self, number: int, params: dict[str, Any]) -> None:
        """Adds a running trial at a fixed point of the space, such as a reference."""
        self._run(number, self._fixed(params))

    def learn(self, params: dict[str, Any], result: "Result") -> None:
        """Adds an ended trial of an earlier sweep at a point of the space."""
        self._end(self._fixed(params), result)

    def pause(self, number: int, result: "Result") -> None:
        """Tells Optuna what a paused trial has reached. A trial that stayed RUNNING would teach nothing, and samplers would avoid
        its point. The trial may be paused again, or ended by `tell`: the later result replaces the earlier one.
        """
        if number in self._running:
            self._paused[number] = self._running.pop(number)
            self._end(self._paused[number], result)
        elif number in self._paused:
            self._supersede(self._paused[number], result)

    def tell(self, number: int, result: "Result") -> None:
        """Ends a trial. A trial outside the space is ignored: the study does not hold it."""
        if number in self._running:
            self._end(self._running.pop(number), result)
        elif number in self._paused:
            self._supersede(self._paused.pop(number), result)

    def close(self) -> None:
        """Tells Optuna FAIL for every trial that is still RUNNING."""
        for number in list(self._running):
            self.tell(number, Result(Status.INTERRUPTED))

    def _run(self, number: int, trial: Trial) -> None:
        assert number not in self._running
        trial.set_user_attr("number", number)
        self._running[number] = trial

    def _fixed(self, params: dict[str, Any]) -> Trial:
        """Creates a trial at a given point. Optuna draws only parameters that are not given, so no model is asked."""
        self._optuna.enqueue_trial(params)
        trial = self._optuna.ask()
        suggest(self._space, trial)
        assert trial.params == params
        return trial

    def _end(self, trial: Trial, result: "Result") -> None:
        state, values, reports = self._outcome(result)
        for epoch, value in reports.items():
            trial.report(value, epoch)
        self._optuna.tell(trial, values, state=state)

    def _supersede(self, trial: Trial, result: "Result") -> None:
        """Replaces what Optuna was told about a trial. Optuna itself has no way to change a trial that has ended."""
        storage = self._optuna._storage
        assert isinstance(storage, InMemoryStorage)
        state, values, reports = self._outcome(result)
        told = copy.copy(storage.get_trial(trial._trial_id))
        told.state, told.intermediate_values = state, dict(reports)
        # A pruned trial has the value of its last report, as `Study.tell` gives it.
        told.values = [*reports.values()][-1:] or None if state == TrialState.PRUNED else values
        storage._set_trial(trial._trial_id, told)

    def _outcome(self, result: "Result") -> tuple[TrialState, list[float] | None, dict[int, float]]:
        """What Optuna is told: the state, the objectives of a COMPLETE trial, and the reports of a PRUNED one.

        A trial that ended by its own numbers is a bad point, which the sampler must learn: it counts as the worst trial so far. A
        trial that was lost with its machine says nothing about its point and becomes FAIL, which samplers ignore.
        """
        sampler, values = SAMPLERS[self._search.sampler], result.values
        if result.own_fault or result.status == Status.DIVERGED:
            if sampler.prunes:
                return TrialState.PRUNED, None, {}  # without a report TPE ranks the trial below all others
            return TrialState.COMPLETE, self._worst or [0.0] * len(self._optuna.directions), {}
        if result.status not in LEARNED or not values or not all(math.isfinite(value) for value in values):
            return TrialState.FAIL, None, {}
        self._worst = [min(pair) for pair in zip(self._worst or values, values, strict=True)]
        if result.status == Status.FINISHED or not sampler.prunes or len(values) > 1:
            return TrialState.COMPLETE, values, {}
        reports = {epoch: value for epoch, value in sorted(result.history.items()) if math.isfinite(value)}
        return TrialState.PRUNED, None, reports


class Result(NamedTuple):
    """What is known of a trial that has ended or is paused."""

    status: Status
    """How the trial ended; running for a paused one."""
    values: list[float] | None = None
    """Its objectives at the best epoch; None where one of them is no number."""
    history: Mapping[int, float] = MappingProxyType({})
    """The first objective after each epoch in which it was measured, by epoch."""
    own_fault: bool = False
    """Whether the trial ended by its own numbers: it diverged, its meta-gradient was dead, or it had too little memory."""


def build_sampler(name: str, seed: int, space: Space, accept: Accept) -> BaseSampler:
    """Builds the sampler `name` with a seed. Optuna's logging is switched off, because the ledger holds what Optuna would log."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return lookup(SAMPLERS, name, "sampler").build(seed, space, accept)


def seed_of_draw(seed: int, number: int, draw: int) -> int:
    """A seed below 2^32 for the `draw`-th draw of trial `number`. SeedSequence makes neighbouring seeds independent."""
    return int(np.random.SeedSequence([seed, number, draw]).generate_state(1)[0])


def near_priors(space: Space, prior_trials: float, number: int, seed: int) -> dict[str, Any]:
    """Optuna's parameters that a proposal takes from priors: none of those without a prior, fewer with each trial.

    Args:
        space: what is drawn.
        prior_trials: how many trials a prior is worth.
        number: of the trial.
        seed: of the draw.
    """
    rng, found = np.random.default_rng([seed, 1]), dict[str, Any]()
    for name, parameter in space.items():
        prior = getattr(parameter, "prior", None)
        if prior is None or rng.random() >= prior_trials / (prior_trials + number):
            continue
        if isinstance(parameter, FloatParameter) and prior == parameter.or_exactly:
            found |= _point_of(name, parameter, prior) or {}
        elif isinstance(parameter, FloatParameter | IntParameter):
            found |= _point_of(name, parameter, _near(parameter, prior, rng)) or {}
    return found


def _near(parameter: FloatParameter | IntParameter, prior: float, rng: np.random.Generator) -> float:
    """A value around a prior: normal on the parameter's scale with a tenth of the range as standard deviation."""
    scale = math.log if parameter.log else float
    low, high = scale(parameter.low), scale(parameter.high)
    drawn = rng.normal(scale(prior), (high - low) / 10)
    value = min(max(math.exp(drawn) if parameter.log else drawn, parameter.low), parameter.high)
    return round(value) if isinstance(parameter, IntParameter) else value


def suggest(space: Space, trial: Trial) -> None:
    """Draws a point of the space in Optuna's define-by-run style.

    A parameter with `or_exactly` is drawn in two steps: first whether the value is `or_exactly`; if not, a value of the range.
    """
    values: dict[str, Any] = {}
    for name in drawing_order(space):
        if is_drawn(space, name, values):
            values[name] = _suggest_one(name, space[name], trial)


def values_of(space: Space, params: dict[str, Any]) -> dict[str, Any]:
    """Converts Optuna's parameters to settings by dotted name. Settings that were not drawn are left out."""
    exact_values = {name: parameter.or_exactly for name, parameter in space.items() if isinstance(parameter, FloatParameter)}
    drawn = [name for name in space if name in params or _exactly(name) in params]
    return {name: params[name] if name in params else exact_values[name] for name in drawn}


def params_of(space: Space, values: dict[str, Any]) -> dict[str, Any] | None:
    """Converts settings by dotted name to Optuna's parameters; None when the settings lie outside the space."""
    params: dict[str, Any] = {}
    drawn: dict[str, Any] = {}
    for name in drawing_order(space):
        if is_drawn(space, name, drawn):
            if (point := _point_of(name, space[name], values.get(name))) is None:
                return None
            params |= point
            drawn[name] = values[name]
    return params


def params_of_trial(space: Space, base: TrialConfig, trial: TrialConfig) -> dict[str, Any] | None:
    """Optuna's parameters of a whole trial; None when no draw turns `base` into the trial."""
    params = params_of(space, flatten(trial.model_dump()))
    # Settings outside the space must be those of `base`, which the second condition checks.
    inside = params is not None and apply_changes(base, values_of(space, params), "search") == trial
    return params if inside else None


def _suggest_one(name: str, parameter: Parameter, trial: Trial) -> Any:
    """Draws the value of one setting."""
    if isinstance(parameter, CategoricalParameter):
        return trial.suggest_categorical(name, parameter.choices)
    if isinstance(parameter, FloatParameter):
        if parameter.or_exactly is not None and trial.suggest_float(_exactly(name), 0, 1) < parameter.exactly_probability:
            return parameter.or_exactly
        return trial.suggest_float(name, parameter.low, parameter.high, log=parameter.log)
    return trial.suggest_int(name, parameter.low, parameter.high, log=parameter.log)


def _point_of(name: str, parameter: Parameter, value: Any) -> dict[str, Any] | None:
    """Optuna's parameters of one setting; None when the value cannot be drawn."""
    if isinstance(parameter, CategoricalParameter):
        return {name: value} if value in parameter.choices else None
    first: dict[str, Any] = {}
    if isinstance(parameter, FloatParameter) and parameter.or_exactly is not None:
        # The first draw lies in [0, 1); below `exactly_probability` the value is `or_exactly`. Its middle stands for either case.
        if value == parameter.or_exactly:
            return {_exactly(name): parameter.exactly_probability / 2}
        first = {_exactly(name): (1 + parameter.exactly_probability) / 2}
    if value is None or not parameter.low <= value <= parameter.high:
        return None
    if isinstance(parameter, IntParameter) and value != round(value):
        return None
    return first | {name: value}


def _distributions(space: Space) -> dict[str, BaseDistribution]:
    """Optuna's distributions of all parameters, conditional ones included. Parameters with a single value are left out."""
    found: dict[str, BaseDistribution] = {}
    for name, parameter in space.items():
        if isinstance(parameter, CategoricalParameter):
            found[name] = CategoricalDistribution(parameter.choices)
        elif isinstance(parameter, FloatParameter):
            if parameter.or_exactly is not None:
                found[_exactly(name)] = FloatDistribution(0, 1)
            found[name] = FloatDistribution(parameter.low, parameter.high, log=parameter.log)
        else:
            found[name] = IntDistribution(parameter.low, parameter.high, log=parameter.log)
    return {name: distribution for name, distribution in found.items() if not distribution.single()}


def _exactly(name: str) -> str:
    return f"{name} exactly"


class _WholeSpaceQMC(QMCSampler):
    """A quasi-Monte Carlo sampler over the whole space.

    QMCSampler itself searches the parameters of the first trial. A parameter that the first trial did not draw would be drawn at
    random for ever.
    """

    def __init__(self, space: Space, seed: int) -> None:
        super().__init__(scramble=True, seed=seed, warn_independent_sampling=False)
        self._distributions = _distributions(space)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._distributions


class _SteadyCmaEs(CmaEsSampler):
    """CMA-ES over the numbers that every trial draws.

    CmaEsSampler itself searches the parameters that all complete trials have drawn, and gives up when this set shrinks; and it
    looks at all trials for each proposal, although only those of its last generation count.
    """

    def __init__(self, space: Space, seed: int) -> None:
        super().__init__(seed=seed, warn_independent_sampling=False)
        self._distributions = _distributions({name: space[name] for name in numbers_of_every_trial(space)})

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._distributions

    def _get_trials(self, study: optuna.Study) -> list[FrozenTrial]:
        recent = study._get_trials(deepcopy=False, use_cache=True)[-RECENT_TRIALS:]
        return [trial for trial in recent if trial.state == TrialState.COMPLETE]


class _UsedUp(Exception):
    """Every point of the grid has been drawn."""


class _Grid(BaseSampler):
    """Draws each accepted point of the grid once, in a shuffled order.

    Optuna's own grid sampler draws some points twice and ends with an error.
    """

    def __init__(self, space: Space, seed: int, accept: Accept) -> None:
        points = list(itertools.product(*(grid_values(parameter) for parameter in space.values())))
        random.Random(seed).shuffle(points)
        # Generators, so that `accept`, which checks a whole trial, is called only for the points that are reached.
        settings = (dict(zip(space, point, strict=True)) for point in points)
        self._points = (params_of(space, values) or {} for values in settings if accept(values))
        self._distributions = _distributions(space)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._distributions

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if (point := next(self._points, None)) is None:
            raise _UsedUp
        return point

    def sample_independent(self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: Any) -> Any:
        raise AssertionError("a point of the grid has every parameter")


def _tpe(seed: int, space: Space) -> TPESampler:
    """TPE. Where not every trial draws every parameter, those that are drawn together are modelled together (`group`); otherwise
    TPE would draw each of the others by itself.
    """
    if len(_of_every_trial(space)) == len(space):
        return TPESampler(seed=seed, n_startup_trials=FIRST_RANDOM)
    return TPESampler(seed=seed, n_startup_trials=FIRST_RANDOM, multivariate=True, group=True)


def _of_every_trial(space: Space) -> list[str]:
    """The parameters that every trial draws, categorical ones included."""
    words = [name for name, parameter in space.items() if isinstance(parameter, CategoricalParameter)]
    return numbers_of_every_trial(space) + [name for name in words if not conditions(space, name)]


class Sampler(NamedTuple):
    """How a sampler is built, and how its proposals are replayed."""

    build: Callable[[int, Space, Accept], BaseSampler]
    """Takes a seed, the space, and the function that accepts draws."""
    remembers: bool
    """Whether the sampler keeps state beyond the study's trials. If so, one sampler makes all proposals, and a replay asks the
    sampler again. Otherwise each draw gets a new sampler with a seed of its own."""
    prunes: bool = False
    """Whether the sampler learns from PRUNED trials. The others are told that a trial which was stopped early, or waits, is
    COMPLETE with what it has reached; they would not see it at all otherwise."""


SAMPLERS = {
    "tpe": Sampler(lambda seed, space, accept: _tpe(seed, space), remembers=False, prunes=True),
    "gp": Sampler(
        lambda seed, space, accept: GPSampler(seed=seed, n_startup_trials=FIRST_RANDOM, warn_independent_sampling=False),
        remembers=False,
    ),
    "cmaes": Sampler(lambda seed, space, accept: _SteadyCmaEs(space, seed), remembers=True),
    "random": Sampler(lambda seed, space, accept: RandomSampler(seed=seed), remembers=False),
    "qmc": Sampler(lambda seed, space, accept: _WholeSpaceQMC(space, seed), remembers=True),
    "grid": Sampler(lambda seed, space, accept: _Grid(space, seed, accept), remembers=True),
    "nsga2": Sampler(lambda seed, space, accept: NSGAIISampler(seed=seed, population_size=FIRST_RANDOM), remembers=True),
}
