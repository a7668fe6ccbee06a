"""What a sweep is: a trial to start from, the space around it, and how it is searched. Read without Ray and without torch."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from pydantic import Field, field_validator, model_validator

from orchestrator.limits_config import BudgetConfig, FailureConfig
from orchestrator.resources_config import ResourcesConfig
from orchestrator.scheduler_config import AshaConfig, PbtConfig, RunAllConfig, SchedulerConfig
from trainables.config import TrialConfig
from trainables.config_file import ConfigError, Origin, Tree, check, merge, read_tree, spread
from trainables.settings import Settings, flatten

SEARCHED = "search"
"""The variant of all trials that are not references."""
FIXED = ("seed", "epochs", "threads", "device", "select_by", "data")
"""Trial settings that all trials of a sweep share, because their results are compared on the same images."""


class FloatParameter(Settings):
    """A real number between two bounds."""

    type: Literal["float"] = "float"
    """Kind of parameter."""
    low: float
    """Smallest value."""
    high: float
    """Largest value."""
    log: bool = False
    """Search on a logarithmic scale."""
    atom: float | None = None
    """One more value, tried half of the time at first: 0 for a weight that can be switched off."""

    @model_validator(mode="after")
    def _bounds(self) -> "FloatParameter":
        check_bounds(self.low, self.high, self.log)
        return self


class IntParameter(Settings):
    """A whole number between two bounds, both included."""

    type: Literal["int"] = "int"
    """Kind of parameter."""
    low: int
    """Smallest value."""
    high: int
    """Largest value."""
    log: bool = False
    """Search on a logarithmic scale."""

    @model_validator(mode="after")
    def _bounds(self) -> "IntParameter":
        check_bounds(self.low, self.high, self.log)
        return self


class CategoricalParameter(Settings):
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


class SearchConfig(Settings):
    """Which configurations are tried."""

    sampler: Literal["tpe", "random"] = "tpe"
    """`tpe` learns from the trials so far; `random` does not."""
    trials: int = Field(24, ge=1)
    """Number of trials, the references included."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Seed of the sampler."""
    references: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Fixed trials that run first and to the end, by name; each lists what differs from `trial`."""

    @field_validator("references")
    @classmethod
    def _names(cls, references: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name in references:
            if name == SEARCHED or not re.fullmatch(r"[A-Za-z0-9_-]+", name):
                raise ValueError(f"{name!r} cannot be a name; allowed: letters, digits, '_' and '-', and not {SEARCHED!r}")
        return references


class TrackingConfig(Settings):
    """Where MLflow keeps its copy of the ledger."""

    mlflow: bool = True
    """Send every trial to MLflow."""
    experiment: str = Field("tailtune", min_length=1)
    """Name of the MLflow experiment."""
    uri: str | None = Field(None, pattern=r"^(https?|sqlite|postgresql|mysql|mssql)(\+\w+)?://.+")
    """MLflow's tracking URI; none means the file mlflow.db beside the sweep's folder."""


class SweepConfig(Settings):
    """One YAML file, many trials."""

    trial: TrialConfig = TrialConfig()
    """Where every trial starts from."""
    space: dict[str, Parameter] = Field(default_factory=dict)
    """Which settings of `trial` are searched, by dotted name, and in which range."""
    search: SearchConfig = SearchConfig()
    """Which configurations are tried."""
    scheduler: SchedulerConfig = AshaConfig()
    """Which trials stop early."""
    budget: BudgetConfig = BudgetConfig()
    """How much the sweep may use."""
    failures: FailureConfig = FailureConfig()
    """What happens when trials fail."""
    resources: ResourcesConfig = ResourcesConfig()
    """What trials run on."""
    tracking: TrackingConfig = TrackingConfig()
    """Where MLflow keeps its copy of the ledger."""
    checkpoint_interval: int = Field(1, ge=1)
    """Epochs between two checkpoints of a trial: at most so many are done again after a crash. The last epoch is always saved."""

    @model_validator(mode="after")
    def _fits_together(self) -> "SweepConfig":
        check_space(self.trial, self.space)
        for name, changes in self.search.references.items():
            check_reference(self.trial, changes, f"search.references.{name}")
        if not self.space and self.search.trials > len(self.search.references) + 1:
            raise ValueError(
                f"space is empty and search.trials is {self.search.trials}: all trials but the references would be the same; "
                f"allowed: a space, or search.trials of at most {len(self.search.references) + 1}"
            )
        if len(self.search.references) > self.search.trials:
            raise ValueError(
                f"search.trials is {self.search.trials}, but search.references holds {len(self.search.references)}; "
                f"allowed: search.trials of at least {len(self.search.references)}"
            )
        check_workers(self.resources, self.trial, self.smallest_batch())
        if self.resources.slots and self.resources.slots > self.search.trials:
            raise ValueError(
                f"resources.slots is {self.resources.slots}, but search.trials is {self.search.trials}; "
                f"allowed: 1 to {self.search.trials}"
            )
        if isinstance(self.scheduler, AshaConfig) and self.scheduler.grace_epochs > self.trial.epochs:
            raise ValueError(
                f"scheduler.grace_epochs is {self.scheduler.grace_epochs}, but trial.epochs is {self.trial.epochs}; "
                f"allowed: 1 to {self.trial.epochs}"
            )
        return self

    def smallest_batch(self) -> int:
        """The smallest `optim.batch_size` of any of its trials."""
        trials = [self.trial, *(apply_changes(self.trial, changes, name) for name, changes in self.search.references.items())]
        searched = self.space.get("optim.batch_size")
        sizes: list[int] = [trial.optim.batch_size for trial in trials] + (extreme_values(searched) if searched else [])
        return min(sizes)


def read_sweep(path: Path, overrides: Iterable[str] = ()) -> SweepConfig:
    """The sweep that a file and `key=value` overrides describe.

    Raises:
        ConfigError: naming file (or command line), field, what was given and what is allowed.
    """
    return read_sweep_with_origin(path, overrides)[0]


def read_sweep_with_origin(path: Path, overrides: Iterable[str]) -> tuple[SweepConfig, Origin]:
    """The same, with where its settings come from, for errors that only show later."""
    tree, origin = read_tree(SweepConfig, path, overrides)
    if isinstance(tree.get("space"), dict):
        tree["space"] = name_parameters(tree["space"])
    return check(SweepConfig, tree, origin), origin


def name_parameters(space: Tree, prefix: str = "") -> Tree:
    """The nested space as one level of dotted names; a parameter set to null leaves the space."""
    named: Tree = {}
    for key, value in space.items():
        if isinstance(value, dict) and not value.keys() & {"type", "low", "high", "choices"}:
            named |= name_parameters(value, f"{prefix}{key}.")
        elif value is not None:
            named[f"{prefix}{key}"] = value
    return named


def apply_changes(trial: TrialConfig, changes: Tree, where: str) -> TrialConfig:
    """`trial` with some settings changed, checked again; `changes` may be nested or dotted.

    Raises:
        ConfigError: in which `where` names the source of the changes.
    """
    return check(TrialConfig, merge(TrialConfig, trial.model_dump(), spread(changes, where)), Origin(where))


def check_space(trial: TrialConfig, space: dict[str, Parameter]) -> None:
    """Sees that every value of the space gives a valid trial.

    Raises:
        ConfigError: naming the parameter and the bound or choice that does not.
    """
    settings = flatten(trial.model_dump())
    searchable = sorted(key for key in settings if key.split(".")[0] not in FIXED and not key.endswith(".name"))
    for name, parameter in space.items():
        if name not in searchable:
            raise ConfigError(
                f"space.{name} is not a setting of this trial that can be searched; allowed: {', '.join(searchable)}"
            )
        for value in extreme_values(parameter):
            apply_changes(trial, {name: value}, f"space.{name}")


def check_workers(resources: ResourcesConfig, trial: TrialConfig, smallest_batch: int) -> None:
    """Sees that several workers have something to do and to do it on."""
    if resources.worker_range()[1] > smallest_batch:
        raise ValueError(
            f"resources.workers is {resources.workers}, but the smallest optim.batch_size is {smallest_batch}, so some would "
            f"have no image; allowed: 1 to {smallest_batch}"
        )
    if resources.workers != 1 and trial.device == "cuda" and not resources.gpus_per_worker:
        raise ValueError("resources.gpus_per_worker is 0, but trial.device is cuda with several workers; allowed: 1")


def check_reference(trial: TrialConfig, changes: Tree, where: str) -> None:
    """Sees that a reference is a valid trial on the same images for as long.

    Raises:
        ConfigError: naming the setting that is wrong, or that all trials share.
    """
    reference = apply_changes(trial, changes, where)
    for name in FIXED:
        if getattr(reference, name) != getattr(trial, name):
            raise ConfigError(f"{where}: {name} must be the same for all trials of a sweep; set trial.{name} instead")


def extreme_values(parameter: FloatParameter | IntParameter | CategoricalParameter) -> list[Any]:
    """The values of a parameter that are valid only if all are: its bounds and atom, or all its choices."""
    if isinstance(parameter, CategoricalParameter):
        return list(parameter.choices)
    atom = parameter.atom if isinstance(parameter, FloatParameter) else None
    return [parameter.low, parameter.high] + ([] if atom is None else [atom])


def check_bounds(low: float, high: float, log: bool) -> None:
    """Refuses an empty range, and a logarithmic one that reaches 0."""
    if not low < high:
        raise ValueError(f"low is {low} and high is {high}; low must be below high")
    if log and low <= 0:
        raise ValueError(f"low is {low}; with log: true it must be above 0")
