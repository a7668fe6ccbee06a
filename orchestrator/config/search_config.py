"""Which configurations a sweep tries: the kinds of parameters, and how points of the space are chosen and judged."""

from typing import Annotated, Any, Literal, Union

from pydantic import Field, field_validator, model_validator

from orchestrator.config.constraints import parse_constraint
from trainables.config import ValMetric
from trainables.settings import Settings, flatten


class ParameterSettings(Settings):
    """What all parameters have: a kind and conditions."""

    type: str
    """Kind of parameter. First here, so that it stays first where a kind narrows it."""
    when: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(default_factory=dict)
    """Drawn only when other searched settings were drawn with one of these values: `{optim.schedule: cosine}`, or a list of
    values. Where it is not drawn, `trial` decides."""

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
    """One more value, tried half of the time at first: 0 for a weight that can be switched off."""
    points: int | None = Field(None, ge=2)
    """Values for the grid, evenly on the parameter's scale with both bounds; only the sampler `grid` looks at it."""

    @model_validator(mode="after")
    def _bounds(self) -> "FloatParameter":
        check_bounds(self.low, self.high, self.log)
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
    points: int | None = Field(None, ge=2)
    """Values for the grid, rounded; none takes all whole numbers. Only the sampler `grid` looks at it."""

    @model_validator(mode="after")
    def _bounds(self) -> "IntParameter":
        check_bounds(self.low, self.high, self.log)
        return self


class CategoricalParameter(ParameterSettings):
    """One of several values without an order."""

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
    """After the search the best configurations run again, to the end, on seeds that nothing else has used; the winner is chosen
    by the mean.
    """

    top: int = Field(3, ge=1)
    """How many of the best configurations."""
    seeds: int = Field(5, ge=2)
    """Trials of each, on as many seeds."""


class SearchConfig(Settings):
    """Which configurations are tried."""

    sampler: Literal["tpe", "gp", "cmaes", "random", "qmc", "grid", "nsga2"] = "tpe"
    """`tpe` learns from all trials so far, those that stopped early too. `gp`, a Gaussian process, learns from trials that ran to
    the end. `cmaes` moves a normal distribution over the numbers that every trial draws; `nsga2` crosses the best trials, for
    several objectives; both learn from trials that they proposed themselves. `gp`, `cmaes` and `nsga2` draw at random what not
    every trial draws: a number with `or_exactly`, a parameter with a condition. `random`, `qmc` (which fills the space evenly)
    and `grid` (each combination once) do not learn."""
    trials: int = Field(24, ge=1)
    """Number of trials, the references included."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Seed of the sampler."""
    deterministic: bool = False
    """Whether trials work in waves: at each decision point trials wait until all results due there are in, then everything is
    decided and told in the order of trials, so that the same seed and the same resources.max_concurrent give the same sweep."""
    objectives: list[ValMetric] | None = Field(None, min_length=2)
    """Several validation metrics, all maximised, each taken at the epoch that is best by `trial.select_by`. None maximises
    `trial.select_by` alone."""
    constraints: list[str] = Field(default_factory=list)
    """Relations that every searched trial keeps: `method.hidden_width <= 4 * optim.batch_size`. Settings by dotted name, numbers,
    + - * / and < <= > >= == !=. One that mentions a setting that a trial lacks, another method's, holds. References are free."""
    references: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Fixed trials that run first and to the end, by name; each lists what differs from `trial`."""
    confirm: ConfirmConfig | None = None
    """Runs the best configurations again after the search; none takes the search's word."""

    @field_validator("constraints")
    @classmethod
    def _readable(cls, constraints: list[str]) -> list[str]:
        for text in constraints:
            parse_constraint(text)
        return constraints

    @model_validator(mode="after")
    def _objectives_fit(self) -> "SearchConfig":
        if self.objectives and self.sampler == "cmaes":
            raise ValueError(
                "sampler is 'cmaes' with several objectives; allowed: 'tpe', 'gp', 'random', 'qmc', 'grid' or 'nsga2'"
            )
        if self.objectives and len(set(self.objectives)) < len(self.objectives):
            raise ValueError(f"objectives is {self.objectives}; allowed: each metric once")
        return self


def extreme_values(parameter: FloatParameter | IntParameter | CategoricalParameter) -> list[Any]:
    """The values of a parameter that are valid only if all are: its bounds and `or_exactly`, or all its choices."""
    if isinstance(parameter, CategoricalParameter):
        return list(parameter.choices)
    exact = parameter.or_exactly if isinstance(parameter, FloatParameter) else None
    return [parameter.low, parameter.high] + ([] if exact is None else [exact])


def check_bounds(low: float, high: float, log: bool) -> None:
    """Refuses an empty range, and a logarithmic one that reaches 0."""
    if not low < high:
        raise ValueError(f"low is {low} and high is {high}; low must be below high")
    if log and low <= 0:
        raise ValueError(f"low is {low}; with log: true it must be above 0")
