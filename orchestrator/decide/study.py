"""Optuna's part of a sweep: samplers, proposals, and what a trial's end means to the study. Knows nothing of Ray.

A sweep that was killed is rebuilt from its ledger by the same calls in the same order, with `replay` where it had `propose`, and
goes on as if nothing had happened.
"""

import itertools
import math
import random
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, NSGAIISampler, QMCSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, Trial, TrialState

from orchestrator.config.search_config import CategoricalParameter, FloatParameter, IntParameter, Parameter, SearchConfig
from orchestrator.config.space import Space, drawing_order, grid_values, is_drawn, numbers_of_every_trial
from orchestrator.config.sweep_config import apply_changes
from trainables.config import TrialConfig
from trainables.config_file import ConfigError
from trainables.registry import lookup
from trainables.settings import flatten

Accept = Callable[[dict[str, Any]], bool]
"""Whether the settings of a draw, by dotted name, may be proposed."""
MAX_DRAWS = 1000
"""Draws that may be refused for one proposal: constraints that refuse more leave next to nothing of the space."""
DRAWS_OF_MODEL = 20
"""Draws that a model may make for one proposal; where constraints refuse them all, the others are random."""
FIRST_RANDOM = 8
"""Random trials before a model is believed, and the population of `nsga2`: few, so that on a small budget most trials profit."""


class StudyError(ConfigError):
    """The study cannot propose what is asked for."""


def always(values: dict[str, Any]) -> bool:
    """Accepts every draw."""
    return True


class Study:
    """An Optuna study by our trial numbers; all that it learns comes through `propose`, `insert`, `learn` and `tell`.

    Numbers are the caller's: a study knows those of trials in its space only, and has told Optuna an end of each after `close`.
    """

    def __init__(self, search: SearchConfig, space: Space, objectives: list[str], accept: Accept = always) -> None:
        """Empty.

        Args:
            search: sampler and seed.
            space: what is drawn.
            objectives: the metrics that are maximised.
            accept: which draws may be proposed. A function of its argument alone, or a replay would draw others.
        """
        self._search, self._space, self._accept = search, space, accept
        self._remembers = lookup(SAMPLERS, search.sampler, "sampler").remembers
        sampler = build_sampler(search.sampler, search.seed, space, accept)
        self._optuna = optuna.create_study(sampler=sampler, directions=["maximize"] * len(objectives))
        self._running: dict[int, Trial] = {}

    def propose(self, number: int) -> dict[str, Any] | None:
        """Optuna's parameters of a new trial, or None when a grid is used up.

        Raises:
            StudyError: when 1000 draws in a row are not accepted.
        """
        drawn: list[Trial] = []
        try:
            while len(drawn) < MAX_DRAWS:
                if not self._remembers:
                    name = self._search.sampler if len(drawn) < DRAWS_OF_MODEL else "random"
                    seed = seed_of_draw(self._search.seed, number, len(drawn))
                    self._optuna.sampler = build_sampler(name, seed, self._space, self._accept)
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
            # Refused draws count as running until here: models turn away from where trials run.
            for trial in drawn:
                self._optuna.tell(trial, state=TrialState.FAIL)
        if not self._remembers:
            # A model notes on the trial that it draws what no ledger holds. The trial that runs is made as `replay` would make
            # it, so that the next draw sees the same study; no sampler looks at failed trials.
            self.insert(number, params)
        return params

    def replay(self, number: int, params: dict[str, Any]) -> None:
        """Takes it from the ledger that `number` was proposed with `params`. Costs no model where a sampler keeps nothing.

        Raises:
            StudyError: when the sampler of a killed sweep proposes anything else.
        """
        if not self._remembers:
            self.insert(number, params)
        elif (proposed := self.propose(number)) != params:
            raise StudyError(
                f"trial {number} is {params} in the ledger, but search.sampler {self._search.sampler!r} now proposes {proposed}: "
                f"other values than the ledger holds; use the versions that stand there, or start anew with --warm-start"
            )

    def insert(self, number: int, params: dict[str, Any]) -> None:
        """Runs a fixed point inside the space, such as a reference."""
        self._run(number, self._fixed(params))

    def learn(self, params: dict[str, Any], status: str, values: list[float] | None, history: dict[int, float]) -> None:
        """Takes in a trial of an earlier sweep that lies inside the space; for the arguments see `tell`."""
        self._end(self._fixed(params), status, values, history)

    def tell(self, number: int, status: str, values: list[float] | None, history: dict[int, float]) -> None:
        """Ends a trial; one outside the space teaches nothing.

        Args:
            number: as proposed or inserted.
            status: how it ended, in our words.
            values: its objectives, if it has any.
            history: the first objective after each epoch that was measured.
        """
        if number in self._running:
            self._end(self._running.pop(number), status, values, history)

    def close(self) -> None:
        """Tells FAIL to whatever is RUNNING still."""
        for number in list(self._running):
            self.tell(number, "interrupted", None, {})

    def _run(self, number: int, trial: Trial) -> None:
        assert number not in self._running
        trial.set_user_attr("number", number)
        self._running[number] = trial

    def _fixed(self, params: dict[str, Any]) -> Trial:
        """A trial at a given point. Optuna draws only what is not given, so that no model is asked."""
        self._optuna.enqueue_trial(params)
        trial = self._optuna.ask()
        suggest(self._space, trial)
        assert trial.params == params
        return trial

    def _end(self, trial: Trial, status: str, values: list[float] | None, history: dict[int, float]) -> None:
        state, told = outcome(status, values)
        if state == TrialState.PRUNED and len(self._optuna.directions) == 1:  # Optuna knows no epochs of several objectives
            for epoch, value in sorted(history.items()):
                if math.isfinite(value):
                    trial.report(value, epoch)
        self._optuna.tell(trial, told, state=state)


def build_sampler(name: str, seed: int, space: Space, accept: Accept) -> BaseSampler:
    """The sampler `name`, seeded. Optuna's own talk is switched off: what it says stands in the ledger."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return lookup(SAMPLERS, name, "sampler").build(seed, space, accept)


def seed_of_draw(seed: int, number: int, draw: int) -> int:
    """A seed below 2^32 for the `draw`-th draw of trial `number`; neighbours share nothing."""
    return int(np.random.SeedSequence([seed, number, draw]).generate_state(1)[0])


def outcome(status: str, values: list[float] | None) -> tuple[TrialState, list[float] | None]:
    """What the study is told of a trial that ended with `status` and objectives `values`.

    A trial without finite objectives is FAIL: Optuna would leave it RUNNING for ever, and the sampler would shun its place.
    """
    if status not in ("finished", "stopped_early") or not values or not all(math.isfinite(value) for value in values):
        return TrialState.FAIL, None
    # A pruned trial keeps the epochs that were reported; Optuna takes no further value for it.
    return (TrialState.PRUNED, None) if status == "stopped_early" else (TrialState.COMPLETE, values)


def suggest(space: Space, trial: Trial) -> None:
    """Draws a point of the space (Optuna's define-by-run form). `or_exactly` makes two draws: whether that value, then which."""
    values: dict[str, Any] = {}
    for name in drawing_order(space):
        if is_drawn(space, name, values):
            values[name] = _suggest_one(name, space[name], trial)


def values_of(space: Space, params: dict[str, Any]) -> dict[str, Any]:
    """Settings by dotted name from Optuna's parameters; what was not drawn is left out."""
    exact_values = {name: parameter.or_exactly for name, parameter in space.items() if isinstance(parameter, FloatParameter)}
    drawn = [name for name in space if name in params or _exactly(name) in params]
    return {name: exact_values[name] if params.get(_exactly(name)) else params[name] for name in drawn}


def params_of(space: Space, values: dict[str, Any]) -> dict[str, Any] | None:
    """Optuna's parameters from settings by dotted name, or None when they lie outside the space."""
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
    """Optuna's parameters of a whole trial, or None when no draw makes it of `base`."""
    params = params_of(space, flatten(trial.model_dump()))
    inside = params is not None and apply_changes(base, values_of(space, params), "search") == trial
    return params if inside else None


def _suggest_one(name: str, parameter: Parameter, trial: Trial) -> Any:
    """Draws one setting."""
    if isinstance(parameter, CategoricalParameter):
        return trial.suggest_categorical(name, parameter.choices)
    if isinstance(parameter, FloatParameter):
        if parameter.or_exactly is not None and trial.suggest_categorical(_exactly(name), [True, False]):
            return parameter.or_exactly
        return trial.suggest_float(name, parameter.low, parameter.high, log=parameter.log)
    return trial.suggest_int(name, parameter.low, parameter.high, log=parameter.log)


def _point_of(name: str, parameter: Parameter, value: Any) -> dict[str, Any] | None:
    """Optuna's parameters of one setting, or None when its value cannot be drawn."""
    if isinstance(parameter, CategoricalParameter):
        return {name: value} if value in parameter.choices else None
    exact = parameter.or_exactly if isinstance(parameter, FloatParameter) else None
    if exact is not None and value == exact:
        return {_exactly(name): True}
    if value is None or not parameter.low <= value <= parameter.high:
        return None
    if isinstance(parameter, IntParameter) and value != round(value):
        return None
    return ({} if exact is None else {_exactly(name): False}) | {name: value}


def _distributions(space: Space) -> dict[str, BaseDistribution]:
    """Optuna's parameters of the whole space, whatever they wait for, without those that have one value only."""
    found: dict[str, BaseDistribution] = {}
    for name, parameter in space.items():
        if isinstance(parameter, CategoricalParameter):
            found[name] = CategoricalDistribution(parameter.choices)
        elif isinstance(parameter, FloatParameter):
            if parameter.or_exactly is not None:
                found[_exactly(name)] = CategoricalDistribution([True, False])
            found[name] = FloatDistribution(parameter.low, parameter.high, log=parameter.log)
        else:
            found[name] = IntDistribution(parameter.low, parameter.high, log=parameter.log)
    return {name: distribution for name, distribution in found.items() if not distribution.single()}


def _exactly(name: str) -> str:
    return f"{name} exactly"


class _WholeSpaceQMC(QMCSampler):
    """Optuna's takes the first trial's parameters for the space, so that what that one did not draw would be random for ever."""

    def __init__(self, space: Space, seed: int) -> None:
        super().__init__(scramble=True, seed=seed, warn_independent_sampling=False)
        self._distributions = _distributions(space)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._distributions


class _SteadyCmaEs(CmaEsSampler):
    """Optuna's takes what all complete trials have drawn for the space, and gives up when that shrinks on the way."""

    def __init__(self, space: Space, seed: int) -> None:
        # Pruned trials count by their last epoch: with successive halving too few would be left to move the distribution.
        super().__init__(seed=seed, warn_independent_sampling=False, consider_pruned_trials=True)
        self._distributions = _distributions({name: space[name] for name in numbers_of_every_trial(space)})

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._distributions


class _UsedUp(Exception):
    """Every point of the grid was drawn."""


class _Grid(BaseSampler):
    """Draws each accepted point of the grid once, in an order of its own. Optuna's draws some twice and ends by an error."""

    def __init__(self, space: Space, seed: int, accept: Accept) -> None:
        points = list(itertools.product(*(grid_values(parameter) for parameter in space.values())))
        random.Random(seed).shuffle(points)
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


class Sampler(NamedTuple):
    """How a sampler is made, and what that means for replaying."""

    build: Callable[[int, Space, Accept], BaseSampler]
    """From a seed, the space, and what it may draw."""
    remembers: bool
    """Whether it keeps more than the study's trials. Then one serves all proposals, and a replay asks it again; otherwise each
    draw has a new one with a seed of its own."""


SAMPLERS = {
    "tpe": Sampler(lambda seed, space, accept: TPESampler(seed=seed, n_startup_trials=FIRST_RANDOM), remembers=False),
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
