"""How important each searched setting was to a sweep: two of Optuna's measures, with bootstrap intervals over trials.

PED-ANOVA asks which settings tell the best trials from all trials. fANOVA asks how much of a random forest's variance over the
space is due to each setting alone. Sources: Watanabe, Bansal and Hutter, PED-ANOVA, IJCAI 2023; Hutter, Hoos and Leyton-Brown, An
Efficient Approach for Assessing Hyperparameter Importance, ICML 2014.
"""

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.importance import (
    BaseImportanceEvaluator,
    FanovaImportanceEvaluator,
    PedAnovaImportanceEvaluator,
    get_param_importances,
)
from optuna.trial import FrozenTrial, create_trial

from orchestrator.config.search_config import CategoricalParameter, FloatParameter, IntParameter, Parameter
from orchestrator.config.space import Space, drawing_order, is_drawn

MIN_TRIALS = 10
"""With fewer trials, the best ones of PED-ANOVA would be more than half of them."""
MIN_BEST = 5
"""Number of best trials from which PED-ANOVA's estimate of their density is steady, as Optuna's documentation says."""
BEST_SHARE = 0.25
"""Share of the trials that PED-ANOVA calls the best. Optuna's 0.1 would be 3 of 24 trials."""
TREES, TREES_OF_RESAMPLE = 64, 16
"""Trees of a forest; 64 is Optuna's number. fANOVA is a mean over trees, so fewer trees do not shift the interval. They make it a
little wider, and a resample takes 40 ms instead of 140 (24 trials, 4 settings)."""
FANOVA_TRIALS = 100
"""Upper limit of the trials that fANOVA looks at: its time grows with the square of their number."""
COVERAGE = 0.9
"""Of the percentile intervals."""


class Importance(NamedTuple):
    """The importance of a searched setting. 0 in both measures when all trials have the same objective."""

    name: str
    """Dotted name of the setting."""
    ped_anova: float
    """Its share, in [0, 1], of the divergences of all settings between the best trials and all trials; the shares add up to 1."""
    ped_anova_low: float
    ped_anova_high: float
    fanova: float
    """Share, in [0, 1], of the variance over the space that is due to this setting alone; what is missing from 1 in the sum over
    settings is due to several settings together."""
    fanova_low: float
    fanova_high: float
    num_trials: int
    """Number of trials. fANOVA looks at `FANOVA_TRIALS` of them at most."""


def importances(
    space: Space, trials: Sequence[tuple[dict[str, Any], float]], *, resamples: int = 200, seed: int = 0
) -> list[Importance]:
    """Computes the importance of every setting that all trials have drawn, the most important one by PED-ANOVA first.

    Settings with a condition that some trial did not meet are left out, as in Optuna, and those with a single value. A number is
    placed between 0 and 1 on its own scale, so that fANOVA gives a decade of a logarithmic range the weight it had in the search;
    with raw values, as Optuna uses them, the largest decade would count nine tenths.

    `or_exactly` is no setting of its own: it takes a part of the range as large as its probability, at the end where it lies. So
    the setting has one importance, which covers both whether it is `or_exactly` and which value it has otherwise. PED-ANOVA's
    kernels blur this border.

    An interval is the 90 % percentile interval over bootstrap resamples of the trials, widened where it would miss the estimate.
    It can miss it, because a resample has fewer different trials than the sweep: an unimportant setting looks more important.

    Args:
        space: the searched settings.
        trials: the settings by dotted name, and the objective, a finite number that was maximised; settings outside the space are
            ignored.
        resamples: number of bootstrap resamples; fANOVA, which is slow, takes a quarter of them.
        seed: of the resamples and of the forests.

    Raises:
        ValueError: when there are too few trials, or fewer than two settings to compare.
    """
    if len(trials) < MIN_TRIALS:
        raise ValueError(f"there are {len(trials)} trials to compare; allowed: {MIN_TRIALS} or more")
    drawn = [_drawn(space, settings) for settings, _ in trials]
    names = [name for name in space if all(name in values for values in drawn) and not _axis(space[name]).single()]
    if len(names) < 2:
        raise ValueError(f"all trials share {len(names)} searched settings; allowed: 2 or more, because importances are shares")
    axes = {name: _axis(space[name]) for name in names}
    lowest, highest = min(value for _, value in trials), max(value for _, value in trials)
    # Rounded, because the last digits of equal gains would break ties in a forest.
    scaled = [round((value - lowest) / ((highest - lowest) or 1), 9) for _, value in trials]
    frozen = [
        _light(create_trial(params={name: _place(space[name], values[name]) for name in names}, distributions=axes, value=value))
        for values, value in zip(drawn, scaled, strict=True)
    ]
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    rng = np.random.default_rng(seed)
    few = frozen
    if len(frozen) > FANOVA_TRIALS:
        few = [frozen[number] for number in rng.choice(len(frozen), FANOVA_TRIALS, replace=False)]
    ped_anova = _with_interval(lambda sample, _: _ped_anova(names, sample), frozen, resamples, rng)
    fanova = _with_interval(
        lambda sample, whole: _fanova(names, sample, TREES if whole else TREES_OF_RESAMPLE, seed), few, resamples // 4, rng
    )
    found = [
        Importance(name, first, first_low, first_high, second, second_low, second_high, len(trials))
        for name, (first, first_low, first_high), (second, second_low, second_high) in zip(
            names, ped_anova.tolist(), fanova.tolist(), strict=True
        )
    ]
    return sorted(found, key=lambda importance: -importance.ped_anova)


class _Light(FrozenTrial):
    """A trial whose settings a study does not copy when it takes the trial: copying them would take two thirds of the time."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Light":
        return copy.copy(self)


def _light(trial: FrozenTrial) -> FrozenTrial:
    found = _Light.__new__(_Light)
    vars(found).update(vars(trial))
    return found


def _drawn(space: Space, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that a trial has drawn. A setting whose condition is not met has its default in the trial."""
    found: dict[str, Any] = {}
    for name in drawing_order(space):
        if name in settings and is_drawn(space, name, found):
            found[name] = settings[name]
    return found


def _axis(parameter: Parameter) -> BaseDistribution:
    """What Optuna takes a setting for."""
    if isinstance(parameter, CategoricalParameter):
        return CategoricalDistribution(parameter.choices)
    if isinstance(parameter, IntParameter) and not parameter.log:
        return IntDistribution(parameter.low, parameter.high)
    return FloatDistribution(0, 1)


def _place(parameter: Parameter, value: Any) -> Any:
    """Where a value lies on its setting's axis."""
    if isinstance(parameter, CategoricalParameter) or (isinstance(parameter, IntParameter) and not parameter.log):
        return value
    if not isinstance(parameter, FloatParameter) or parameter.or_exactly is None:
        return _position(parameter, value)
    share, above = parameter.exactly_probability, parameter.or_exactly >= parameter.high
    if value == parameter.or_exactly:
        return 1 - share / 2 if above else share / 2
    return (1 - share) * _position(parameter, value) + (0 if above else share)


def _position(parameter: FloatParameter | IntParameter, value: float) -> float:
    """0 at the lower and 1 at the upper bound, on the parameter's scale."""
    scale = math.log if parameter.log else float
    low, high = scale(parameter.low), scale(parameter.high)
    return min(max((scale(value) - low) / (high - low), 0.0), 1.0)  # rounding can leave the range


def _with_interval(
    measure: Callable[[list[FrozenTrial], bool], NDArray[np.float64]],
    trials: list[FrozenTrial],
    resamples: int,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Estimate, lower and upper bound of each setting, (settings, 3).

    Args:
        measure: the importances of all settings, from trials and whether these are the whole sweep.
        trials: of the sweep.
        resamples: number of resamples.
        rng: draws them.
    """
    estimate = measure(trials, True)
    drawn = rng.integers(len(trials), size=(resamples, len(trials)))
    found = np.array([measure([trials[number] for number in numbers], False) for numbers in drawn])
    low, high = np.quantile(found, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2], axis=0)
    return np.stack([estimate, np.minimum(low, estimate), np.maximum(high, estimate)], axis=1)


def _ped_anova(names: list[str], trials: list[FrozenTrial]) -> NDArray[np.float64]:
    """PED-ANOVA's divergences as shares of their sum; 0 when the best trials are all trials."""
    best = max(BEST_SHARE, MIN_BEST / len(trials))
    divergences = _evaluate(PedAnovaImportanceEvaluator(target_quantile=best), names, trials)
    total = divergences.sum()
    return divergences / total if total > 0 else divergences


def _fanova(names: list[str], trials: list[FrozenTrial], trees: int, seed: int) -> NDArray[np.float64]:
    """fANOVA's main effects; 0 when every tree of the forest is constant."""
    try:
        return _evaluate(FanovaImportanceEvaluator(n_trees=trees, seed=seed), names, trials)
    except RuntimeError:  # Optuna's word for a forest without variance
        return np.zeros(len(names))


def _evaluate(evaluator: BaseImportanceEvaluator, names: list[str], trials: list[FrozenTrial]) -> NDArray[np.float64]:
    """The importances as the evaluator gives them, in the order of `names`."""
    study = optuna.create_study(direction="maximize")
    study.add_trials(trials)
    with warnings.catch_warnings():
        # `normalize` is experimental, and PED-ANOVA warns when so many trials are equal that the best ones are all of them.
        warnings.simplefilter("ignore")
        found = get_param_importances(study, evaluator=evaluator, params=names, normalize=False)
    return np.array([found[name] for name in names])
