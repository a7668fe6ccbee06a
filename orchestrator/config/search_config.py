"""Which configurations a sweep tries: the kinds of parameters, and how points of the space are chosen and compared."""

from typing import Annotated, Any, Literal, Union

from pydantic import Field, field_validator, model_validator

from orchestrator.config.constraints import parse_constraint
from trainables.config import ValMetric
from trainables.settings import Settings, flatten

TUNED = "tuned"
"""Stands beside the settings of a reference, and is none of them."""


class ParameterSettings(Settings):
    """Settings that all parameters share: a kind and conditions."""

    type: str
    """Kind of parameter. Declared here, so that `type` stays the first field when a subclass narrows its type."""
    when: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(default_factory=dict)
    """Conditions for drawing the parameter: other searched settings, each with the value or the list of values that it must have,
    for instance `{optim.schedule: cosine}`. When the parameter is not drawn, the setting keeps its value in `trial`."""

    @field_validator("when", mode="before")
    @classmethod
    def _lists(cls, when: Any) -> Any:
        if not isinstance(when, dict):
            return when
        return {key: value if isinstance(value, list) else [value] for key, value in flatten(when).items()}


class FloatParameter(ParameterSettings):
    """A real number between two bounds."""

    type: Literal["float"] = "float"
    """Kind of parameter."""
    low: float
    """Smallest value."""
    high: float
    """Largest value."""
    log: bool = False
    """Search on a logarithmic scale."""
    or_exactly: float | None = None
    """One more value, for instance 0 for a weight that can be switched off."""
    exactly_probability: float = Field(0.2, gt=0, lt=1)
    """The share of draws that take `or_exactly` before the sampler has learned anything."""
    prior: float | None = None
    """A value that is likely to be good, such as the paper's. Early trials are drawn around it more often; see
    `search.prior_trials`."""
    points: int | None = Field(None, ge=2)
    """Number of values on the grid, evenly spaced on the parameter's scale, both bounds included. Only the sampler `grid` uses
    it."""

    @model_validator(mode="after")
    def _bounds(self) -> "FloatParameter":
        check_bounds(self.low, self.high, self.log)
        if self.prior != self.or_exactly:
            check_prior(self.prior, self.low, self.high)
        return self


class IntParameter(ParameterSettings):
    """A whole number between two bounds, both included."""

    type: Literal["int"] = "int"
    """Kind of parameter."""
    low: int
    """Smallest value."""
    high: int
    """Largest value."""
    log: bool = False
    """Search on a logarithmic scale."""
    prior: int | None = None
    """A value that is likely to be good; early trials are drawn around it more often."""
    points: int | None = Field(None, ge=2)
    """Number of values on the grid, each rounded to a whole number. None takes all whole numbers. Only the sampler `grid` uses
    it."""

    @model_validator(mode="after")
    def _bounds(self) -> "IntParameter":
        check_bounds(self.low, self.high, self.log)
        check_prior(self.prior, self.low, self.high)
        return self


class CategoricalParameter(ParameterSettings):
    """One of several unordered values."""

    type: Literal["categorical"] = "categorical"
    """Kind of parameter."""
    choices: list[Any] = Field(min_length=1)
    """The values: numbers, words, true or false."""

    @field_validator("choices")
    @classmethod
    def _plain(cls, choices: list[Any]) -> list[Any]:
        if wrong := [choice for choice in choices if not isinstance(choice, bool | int | float | str)]:
            raise ValueError(f"holds {wrong[0]!r}; allowed: numbers, words, true and false")
        return choices


Parameter = Annotated[Union[FloatParameter, IntParameter, CategoricalParameter], Field(discriminator="type")]  # noqa: UP007


class ConfirmConfig(Settings):
    """Runs the best configurations and all references again after the search, to the last epoch, on seeds that no other trial has
    used. The configuration with the highest mean wins.
    """

    top: int = Field(3, ge=1)
    """Number of configurations that run again, the best of the search; of each arm, where methods are compared. The references
    run again in addition."""
    seeds: int = Field(5, ge=2)
    """Number of trials of each configuration, each on another seed."""


class SearchConfig(Settings):
    """Which configurations are tried."""

    sampler: Literal["tpe", "gp", "cmaes", "random", "qmc", "grid", "nsga2"] = "tpe"
    """`tpe` and `gp`, a Gaussian process, learn from all trials so far. `cmaes` moves a normal distribution over the numbers that
    every trial draws. `nsga2` crosses the best trials and is meant for several objectives. `cmaes` and `nsga2` learn from the
    trials that they proposed themselves. `gp`, `cmaes` and `nsga2` draw a parameter at random when not every trial draws it: a
    number with `or_exactly`, or a parameter with a condition. `random`, `qmc` (which fills the space evenly) and `grid` (each
    combination once) do not learn."""
    trials: int = Field(22, ge=0)
    """Number of trials that the sampler proposes. The references run in addition. 0 runs the references alone."""
    per_method: int | None = Field(None, ge=1)
    """Makes every method of `space.method.name` an arm of the sweep: it has a sampler of its own, which proposes this number of
    trials, with the settings of the space that the method has. A trial is compared with trials of its own arm only, and
    `search.confirm` confirms the best of each arm. With this setting, `search.trials` must be left out."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Seed of the sampler."""
    prior_trials: float = Field(4, ge=0)
    """How many trials the `prior` of parameters is worth. The sampler's n-th proposal takes a value near the prior with the
    probability prior_trials / (prior_trials + n), for each parameter that has one. Only `tpe`, `gp` and `random` use priors."""
    deterministic: bool = False
    """Whether trials run in waves. At each decision point, trials wait until all results that are due there have arrived. Then
    the scheduler decides, and the sampler is told the results, in the order of trials. The same seed and the same `wave`
    therefore give the same sweep."""
    wave: int | None = Field(None, ge=1)
    """Number of trials that run between two decision points of a deterministic sweep, on however many slots. A wider wave leaves
    fewer slots waiting for the last trial, and teaches the sampler less often. None means twice the trials at a time
    (`resources.slots`, or `resources.max_concurrent`); with `resources.fused`, as many as all processes train at a time."""
    objectives: list[ValMetric] | None = Field(None, min_length=2)
    """Several validation metrics, all maximised. Each is taken at the epoch that is best by `trial.select_by`. None maximises
    `trial.select_by` alone."""
    constraints: list[str] = Field(default_factory=list)
    """Relations that every searched trial satisfies, such as `method.hidden_width <= 4 * optim.batch_size`. A relation consists
    of settings by dotted name, numbers, + - * / and < <= > >= == !=. A relation with a setting that the trial lacks, such as a
    setting of another method, is satisfied. References need not satisfy the relations."""
    references: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Fixed trials by name. They run first, and to their last epoch. Each lists the settings that differ from `trial`. With
    `tuned: true` beside these settings, the reference becomes an arm: the settings that it lists are fixed, all other settings of
    the space that it has are searched, with a sampler of its own and as many trials as the search itself."""
    confirm: ConfirmConfig | None = None
    """Runs the best configurations and the references again after the search. None accepts the result of the search
    unconfirmed."""

    @field_validator("constraints")
    @classmethod
    def _readable(cls, constraints: list[str]) -> list[str]:
        for text in constraints:
            parse_constraint(text)
        return constraints

    @field_validator("references")
    @classmethod
    def _tuned_or_not(cls, references: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name, settings in references.items():
            if not isinstance(tuned := settings.get(TUNED, False), bool):
                raise ValueError(f"{name}.{TUNED} is {tuned!r}; allowed: true or false")
        return references

    @model_validator(mode="after")
    def _one_number_of_trials(self) -> "SearchConfig":
        default = type(self).model_fields["trials"].default
        if self.per_method is not None and self.trials != default:
            raise ValueError(
                f"trials is {self.trials}, but per_method is {self.per_method}, which is the number of trials of each method; "
                "allowed: leave trials out, or per_method null"
            )
        if not self.num_proposed() and (tuned := self.tuned_references()):
            raise ValueError(
                f"references: {tuned[0]}.{TUNED} is true, but trials is 0, so that there is nothing to tune with; allowed: "
                f"trials from 1 on, or {TUNED} false"
            )
        return self

    @model_validator(mode="after")
    def _objectives_fit(self) -> "SearchConfig":
        if self.objectives and self.sampler == "cmaes":
            raise ValueError(
                "sampler is 'cmaes' with several objectives; allowed: 'tpe', 'gp', 'random', 'qmc', 'grid' or 'nsga2'"
            )
        if self.objectives and len(set(self.objectives)) < len(self.objectives):
            raise ValueError(f"objectives is {self.objectives}; allowed: each metric once")
        return self

    def num_proposed(self) -> int:
        """Number of trials that the sampler of each arm proposes; of the search itself, when there are no arms."""
        return self.trials if self.per_method is None else self.per_method

    def is_tuned(self, name: str) -> bool:
        """Whether a reference is tuned, and so an arm."""
        return bool(self.references[name].get(TUNED, False))

    def changes_of(self, name: str) -> dict[str, Any]:
        """The settings in which a reference differs from `trial`."""
        return {key: value for key, value in self.references[name].items() if key != TUNED}

    def plain_references(self) -> list[str]:
        """Names of the references that run once, as they are."""
        return [name for name in self.references if not self.is_tuned(name)]

    def tuned_references(self) -> list[str]:
        """Names of the references that are arms."""
        return [name for name in self.references if self.is_tuned(name)]


def extreme_values(parameter: FloatParameter | IntParameter | CategoricalParameter) -> list[Any]:
    """The values that must be valid for all values of the parameter to be valid: bounds and `or_exactly`, or all choices."""
    if isinstance(parameter, CategoricalParameter):
        return list(parameter.choices)
    exact = parameter.or_exactly if isinstance(parameter, FloatParameter) else None
    return [parameter.low, parameter.high] + ([] if exact is None else [exact])


def check_prior(prior: float | None, low: float, high: float) -> None:
    """Refuses a prior value outside the range.

    Raises:
        ValueError: naming the value and the range.
    """
    if prior is not None and not low <= prior <= high:
        raise ValueError(f"prior is {prior}; allowed: a value from low to high, {low} to {high}")


def check_bounds(low: float, high: float, log: bool) -> None:
    """Refuses an empty range, and a logarithmic range that reaches 0.

    Raises:
        ValueError: naming the bounds.
    """
    if not low < high:
        raise ValueError(f"low is {low} and high is {high}; low must be below high")
    if log and low <= 0:
        raise ValueError(f"low is {low}; with log: true it must be above 0")
