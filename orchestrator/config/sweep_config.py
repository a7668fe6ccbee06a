"""What a sweep is: a trial to start from, the space around the trial, and how the space is searched.

This module needs neither Ray nor torch.
"""

import functools
import itertools
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from pydantic import Field, model_validator

from orchestrator.config.ablation_config import PATH, SEARCHES, AblationConfig, Cell
from orchestrator.config.arms import FIXED, SEARCH, Arm, searchable_settings, space_of_arm
from orchestrator.config.checkpoint_config import CheckpointConfig
from orchestrator.config.combinations import check_combinations
from orchestrator.config.constraints import Constraint, parse_constraint
from orchestrator.config.limits_config import BudgetConfig, FailureConfig
from orchestrator.config.resources_config import ResourcesConfig
from orchestrator.config.scheduler_config import AshaConfig, MedianConfig, PbtConfig, RungSettings, SchedulerConfig
from orchestrator.config.search_config import TUNED, CategoricalParameter, Parameter, SearchConfig, extreme_values
from orchestrator.config.space import METHOD, check_conditions, check_drawn, check_sampler, contexts, draws_of
from orchestrator.statistics.seeds import seeds_needed, smallest_p
from trainables.config import MUTABLE, ROUNDING, UNDECIDING, TrialConfig
from trainables.config_file import ConfigError, Origin, Tree, check, merge, nest_dotted, read_tree
from trainables.fusion import why_alone
from trainables.settings import Settings, flatten, named_values

ROLES = ("search", "reference", "confirm")
"""The roles of trials (`Role` in the ledger's events). A reference with such a name would be mistaken for a role in tables."""
WAVE = 2
"""Width of a wave in trials at a time: with 2, ASHA in waves takes about as long as without them (docs/performance.md)."""
SPACING = 100
"""Between the `trial.seed`s of two searches of an ablation. The seeds in between belong to `search.confirm`: if two searches were
confirmed on the same seeds, and so on the same images, their scores would not be independent."""


class TrackingConfig(Settings):
    """Where MLflow keeps its copy of the ledger."""

    mlflow: bool = True
    """Whether every trial is sent to MLflow."""
    experiment: str = Field("tailtune", min_length=1)
    """Name of the MLflow experiment."""
    registered_model: str | None = Field(None, pattern=r"^[^/:]+$")
    """Name of the model in MLflow's registry that the best trial becomes a version of. None means the sweep's name. Sweeps on the
    same images that name the same model share its alias `champion`, which the best of their versions has."""
    uri: str | None = Field(None, pattern=r"^(https?|sqlite|postgresql|mysql|mssql)(\+\w+)?://.+")
    """MLflow's tracking URI, without a password. None means the environment variable MLFLOW_TRACKING_URI, or else the file
    mlflow.db beside the sweep's folder."""


class SweepConfig(Settings):
    """A sweep: one YAML file, many trials."""

    trial: TrialConfig = TrialConfig()
    """The settings that every trial starts from."""
    space: dict[str, Parameter] = Field(default_factory=dict)
    """The settings of `trial` that are searched, by dotted name, each with its range."""
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
    """Epochs between two checkpoints of a trial. After a crash, a trial repeats at most this many epochs. The last epoch is
    always saved."""
    checkpoints: CheckpointConfig = CheckpointConfig()
    """Which checkpoints stay on the disk."""
    ablation: AblationConfig | None = Field(None, exclude_if=lambda ablation: ablation is None)
    """Makes an ablation of the sweep (`python -m orchestrator.ablate`): nothing is searched; variants are trained on several
    seeds and compared. Then `space`, `search` and `scheduler` are left out, except with `ablation.kind: searches`, which repeats
    the whole search."""

    @model_validator(mode="after")
    def _fits_together(self) -> "SweepConfig":
        if self.ablation and not self.repeats_search:
            check_ablation(self, self.ablation)
            check_workers(self.resources, self.trial, self.smallest_batch())
            check_fused(self)
            return self
        if self.trial.read_test:
            raise ValueError(
                "trial.read_test is true, but a sweep reads the test set once, when it exports its best trial; allowed: false"
            )
        check_waves(self.search, self.resources)
        check_methods(self)
        check_names(self)
        arms = self.arms()
        check_space(self, arms)
        for name in self.search.references:
            check_reference(self.trial, self.search.changes_of(name), f"search.references.{name}")
        check_constraints(self.search.constraints, self.kinds_of_trials())
        for arm in arms:
            check_sampler(arm.space, self.search, arm.trials)
        check_number(self)
        check_arms(arms)
        check_workers(self.resources, self.trial, self.smallest_batch())
        check_fused(self)
        check_scheduler(self)
        if self.repeats_search:
            check_searches(self)
        return self

    @property
    def repeats_search(self) -> bool:
        """Whether this is an ablation that repeats a whole search: its trials are those of the sweeps that `searches` returns."""
        return self.ablation is not None and self.ablation.kind == SEARCHES

    @property
    def trains_variants(self) -> bool:
        """Whether this is an ablation whose variants are trained as they are, so that nothing is searched."""
        return self.ablation is not None and not self.repeats_search

    @property
    def comparison(self) -> AblationConfig:
        """The plan of an ablation. One that repeats a search has the arms as its variants."""
        assert self.ablation is not None
        if not self.repeats_search:
            return self.ablation
        return self.ablation.model_copy(update={"variants": {arm.name: {} for arm in self.arms()}})

    def searches(self) -> list["SweepConfig"]:
        """The sweeps of an ablation that repeats a search: the sweep itself, each time with another seed of search and trials."""
        tree, found = self.model_dump(exclude={"ablation"}), []
        for number in range(self.comparison.most_seeds()):
            seeds = {"trial": {"seed": self.trial.seed + SPACING * number}, "search": {"seed": self.search.seed + number}}
            found.append(SweepConfig.model_validate(tree | {part: tree[part] | seed for part, seed in seeds.items()}))
        return found

    def objectives(self) -> list[str]:
        """The metrics that the search maximises."""
        return list(self.search.objectives or [self.trial.select_by])

    def arms(self) -> list[Arm]:
        """The parts of the search that have a sampler of their own: methods and references that are compared with each other.

        A sweep without `search.per_method` and tuned references has one arm, which has no name. Otherwise each method is an arm,
        or the search itself is one, and each tuned reference follows.
        """
        search, trials = self.search, 0 if self.trains_variants else self.search.num_proposed()
        if not self.compares_arms:
            return [Arm("", self.trial, self.space, trials)]
        fixed = [] if search.per_method is None else [METHOD]
        if fixed:
            own = {method: {METHOD: method} for method in self.methods()}
        else:
            own = {SEARCH if METHOD in self.space else self.trial.method.name: {}}
        changes = own | {name: search.changes_of(name) for name in search.tuned_references()}
        arms = []
        for name, settings in changes.items():
            trial = apply_changes(self.trial, settings, f"search.references.{name}" if name in search.references else "search")
            arms.append(Arm(name, trial, space_of_arm(self.space, trial, {*flatten(settings), *fixed}), trials))
        return arms

    @property
    def compares_arms(self) -> bool:
        """Whether the search has several parts, each with a sampler of its own."""
        return self.search.per_method is not None or bool(self.search.tuned_references())

    def num_searched(self) -> int:
        """Trials that samplers propose, over all arms."""
        return 0 if self.trains_variants else self._num_arms() * self.search.num_proposed()

    def num_trials(self) -> int:
        """Trials of the search, and fixed ones; without confirmations, the offspring of a population, and seeds that an ablation
        adds later.
        """
        if (plan := self.ablation) and not self.repeats_search:
            return len(plan.seeds_from(self.trial.seed)) * plan.num_cells()
        return self.num_searched() + len(self.search.plain_references())

    def most_trials(self) -> int:
        """Trials with confirmations, and with all seeds that an ablation may add; without the offspring of a population."""
        if (plan := self.ablation) and not self.repeats_search:
            return plan.most_seeds() * plan.num_cells()
        return self.num_trials() + self.num_confirmations()

    def fixed_trials(self) -> list["FixedTrial"]:
        """The trials that run as the file says, in their order: references, or the variants of an ablation on each seed."""
        if not (plan := self.ablation) or self.repeats_search:
            changes = {name: self.search.changes_of(name) for name in self.search.plain_references()}
            return [FixedTrial(name, apply_changes(self.trial, of, f"search.references.{name}")) for name, of in changes.items()]
        cells = self.trials_of_cells()
        return [on_seed(name, cells[name], seed) for seed in plan.seeds_from(self.trial.seed) for name in cells]

    def trials_of_cells(self) -> dict[str, TrialConfig]:
        """The trial of each cell of an ablation, on the trial's own seed."""
        assert self.ablation is not None
        return {cell.name: self.trial_of_cell(cell) for cell in self.ablation.cells()}

    def trial_of_cell(self, cell: Cell) -> TrialConfig:
        """The trial of a cell of an ablation, on the trial's own seed."""
        trial = self.trial
        for change in cell.changes:
            trial = apply_changes(trial, change, f"ablation, variant {cell.name}")
        return trial

    def num_confirmations(self) -> int:
        """Trials that `search.confirm` runs at most: fewer, when an arm has fewer configurations, or a reference fails."""
        return self.num_confirmed() * confirm.seeds if (confirm := self.search.confirm) else 0

    def num_confirmed(self) -> int:
        """Configurations that `search.confirm` runs again at most: the best ones of each arm, and all references."""
        confirm = self.search.confirm
        return self._num_arms() * confirm.top + len(self.search.plain_references()) if confirm else 0

    def _num_arms(self) -> int:
        own = 1 if self.search.per_method is None else len(self.methods())
        return own + len(self.search.tuned_references())

    def methods(self) -> list[str]:
        """The methods that are searched, each once."""
        return list(dict.fromkeys(extreme_values(self.space[METHOD]))) if METHOD in self.space else []

    def wave_width(self) -> int:
        """Trials that run between two decision points when the sweep is deterministic."""
        return self.search.wave or self.resources.wanted_slots(self.num_trials()) * max(WAVE, self.resources.fused)

    def accepts(self, values: Tree, trial: TrialConfig | None = None) -> bool:
        """Whether a trial with these searched settings satisfies every constraint.

        Args:
            values: by dotted name.
            trial: that the settings change; None means the sweep's own.
        """
        if not self._constraints:
            return True
        settings = named_values(apply_changes(trial or self.trial, values, "search"))
        return all(constraint.holds(settings) for constraint in self._constraints)

    @functools.cached_property
    def _constraints(self) -> list[Constraint]:
        """`search.constraints`, parsed once per sweep."""
        return [parse_constraint(text) for text in self.search.constraints]

    def kinds_of_trials(self) -> list[TrialConfig]:
        """`trial`, the references, and one trial of each searched method."""
        if self.trains_variants:
            return [self.trial, *self.trials_of_cells().values()]
        changes = [self.search.changes_of(name) for name in self.search.references]
        changes += [{METHOD: method} for method in self.methods()]
        return [self.trial, *(apply_changes(self.trial, change, "search") for change in changes)]

    def kinds_of_classifiers(self) -> dict[str, TrialConfig]:
        """A trial for all that decides whether a classifier can be built and trained: its settings that are chosen from a list,
        the method, and the kind of the meta-gradient. Each is named by what makes it differ from `trial`.
        """
        if self.trains_variants:
            cells = self.trials_of_cells().items()
            return {"trial": self.trial} | {f"ablation, variant {cell}: trial": trial for cell, trial in cells}
        found = {}
        chosen = [name for name, parameter in self.space.items() if isinstance(parameter, CategoricalParameter)]
        deciding = [name for name in chosen if name.startswith("classifier.") or name in (METHOD, "bilevel.meta_gradient")]
        for arm in self.arms():
            for draw in draws_of(arm.space, deciding):
                values = ", ".join(f"{name}={value}" for name, value in draw.items())
                words = [*([f"arm {arm.name}"] if arm.name else []), *([f"with {values}"] if values else [])]
                where = f"{', '.join(words)}: trial" if words else "trial"
                found[where] = apply_changes(arm.trial, draw, "search")
        return found | {f"search.references.{name}: trial": trial for name, trial in self.fixed_trials()}

    def smallest_batch(self) -> int:
        """The smallest `optim.batch_size` that any trial of the sweep can have."""
        searched = self.space.get("optim.batch_size")
        sizes: list[int] = [trial.optim.batch_size for trial in self.kinds_of_trials()]
        sizes += extreme_values(searched) if searched else []
        return min(sizes)


class FixedTrial(NamedTuple):
    """A trial that runs as the file says."""

    variant: str
    """Name of the reference, or of the ablation's cell."""
    trial: TrialConfig


def on_seed(cell: str, trial: TrialConfig, seed: int) -> FixedTrial:
    """The trial of an ablation's cell on a seed."""
    return FixedTrial(cell, trial.model_copy(update={"seed": seed, "read_test": True}))


def read_sweep(path: Path, overrides: Iterable[str] = ()) -> SweepConfig:
    """Reads the sweep that a file and `key=value` overrides describe.

    Raises:
        ConfigError: naming the file (or the command line), the field, what was given and what is allowed.
    """
    return read_sweep_with_origin(path, overrides)[0]


def read_sweep_with_origin(path: Path, overrides: Iterable[str]) -> tuple[SweepConfig, Origin]:
    """Like `read_sweep`; also returns the origin of the settings, for errors that are found later."""
    tree, origin = read_tree(SweepConfig, path, overrides)
    if isinstance(tree.get("space"), dict):
        tree["space"] = name_parameters(tree["space"])
    return check(SweepConfig, tree, origin), origin


def name_parameters(space: Tree, prefix: str = "") -> Tree:
    """Flattens a nested space to dotted names. A parameter that is set to null is removed from the space."""
    named: Tree = {}
    for key, value in space.items():
        # One of these keys tells a parameter from a level of nesting.
        if isinstance(value, dict) and not value.keys() & {"type", "low", "high", "choices"}:
            named |= name_parameters(value, f"{prefix}{key}.")
        elif value is not None:
            named[f"{prefix}{key}"] = value
    return named


def apply_changes(trial: TrialConfig, changes: Tree, where: str) -> TrialConfig:
    """Changes some settings of a trial and checks the result.

    Args:
        trial: not modified.
        changes: settings by nested or dotted names.
        where: the source of the changes, for error messages.

    Raises:
        ConfigError: when the changed trial is not valid. The message begins with `where`.
    """
    return check(TrialConfig, merge(TrialConfig, trial.model_dump(), nest_dotted(changes, where)), Origin(where))


def check_waves(search: SearchConfig, resources: ResourcesConfig) -> None:
    """Refuses a deterministic sweep whose waves would be as wide as the machine is large.

    Raises:
        ValueError: naming both settings.
    """
    if search.deterministic and search.wave is None and resources.max_concurrent is None and resources.slots is None:
        raise ValueError(
            "search.deterministic is true, but resources.max_concurrent is None, so the machine would decide how wide the waves "
            "are; allowed: a number for resources.max_concurrent, or for search.wave"
        )


def check_methods(config: SweepConfig) -> None:
    """Checks that the methods that are searched exist, and that there are some when each is to be an arm.

    Raises:
        ConfigError: naming a method that gives no valid trial.
        ValueError: naming the setting that is missing, or that makes no sense.
    """
    parameter, per_method = config.space.get(METHOD), config.search.per_method
    # Methods come first: with an unknown method, the settings that can be searched would be wrong, and so would the error.
    for method in extreme_values(parameter) if parameter else []:
        apply_changes(config.trial, {METHOD: method}, f"space.{METHOD}")
    if per_method is None:
        return
    if parameter is None:
        raise ValueError(
            f"search.per_method is {per_method}, but space holds no {METHOD}; allowed: null, or a space.{METHOD} with the "
            "methods to compare: {type: categorical, choices: [cross_entropy, focal]}"
        )
    if parameter.when:
        raise ValueError(f"space.{METHOD}.when is set, but with search.per_method every method is an arm; allowed: no `when`")


def check_space(config: SweepConfig, arms: list[Arm]) -> None:
    """Checks that every value of the space gives a valid trial, with all values of the settings that the parameter depends on;
    and every two values that can be drawn together.

    Raises:
        ConfigError: naming the parameter and the bound or choice that gives no valid trial, or the parameters that exclude each
            other.
        ValueError: naming a condition that cannot be met.
    """
    searchable = set().union(*(searchable_settings(arm.trial, config.space) for arm in arms))
    searchable |= set().union(*(searchable_settings(arm.trial, {}) for arm in arms if arm.name))
    for name in config.space:
        if name not in searchable:
            raise ConfigError(
                f"space.{name} is not a setting of this trial that can be searched; allowed: {', '.join(sorted(searchable))}"
            )
    check_conditions(config.space)
    divided = [] if config.search.per_method is None else [{METHOD: config.space[METHOD]}]  # each arm has one of its values
    check_drawn(config.space, [*divided, *(arm.space for arm in arms)])
    for arm in arms:
        where = f"arm {arm.name}, space" if arm.name else "space"
        for name, parameter in arm.space.items():
            for context in contexts(arm.space, name):
                for value in extreme_values(parameter):
                    apply_changes(arm.trial, context | {name: value}, f"{where}.{name}")
        check_combinations(arm.space, functools.partial(apply_changes, arm.trial, where=where))


def check_ablation(config: SweepConfig, plan: AblationConfig) -> None:
    """Checks that every variant is another valid trial, and that the tests can find something.

    Raises:
        ConfigError: when a variant gives no valid trial; the message names it.
        ValueError: naming the setting that makes no sense in an ablation, or the variants that are the same.
    """
    fields = SweepConfig.model_fields
    for name in ("space", "search", "scheduler"):
        if getattr(config, name) != fields[name].get_default(call_default_factory=True):
            raise ValueError(f"{name} is set, but an ablation neither searches nor stops early; allowed: leave {name} out")
    if config.trial.read_test:
        raise ValueError("trial.read_test is true; an ablation sets it itself; allowed: leave it out")
    own, seen, trials = _deciding(config.trial), dict[str, str](), config.trials_of_cells()
    for cell in plan.cells():
        trial = trials[cell.name]
        for name in FIXED:
            if name != "data" and getattr(trial, name) != getattr(config.trial, name):
                raise ValueError(
                    f"ablation: variant {cell.name} changes {name}, which all trials must share; set trial.{name} instead"
                )
        settings = _deciding(trial)
        if any(cell.changes) and not plan.factors and settings == own:
            raise ValueError(
                f"ablation: variant {cell.name} changes nothing: its settings are those of trial already; allowed: another "
                "change, or {} for the variant that is trial itself"
            )
        if settings in seen:
            raise ValueError(f"ablation: variants {seen[settings]} and {cell.name} are the same trial; allowed: one of them")
        seen[settings] = cell.name
    if plan.kind == PATH:  # any set of components may lie on the path
        for size in range(2, len(plan.components)):
            for names in itertools.combinations(plan.components, size):
                config.trial_of_cell(plan.cell_with(plan.name_of(names)))
    check_seeds(plan)


def _deciding(trial: TrialConfig) -> str:
    """The settings that decide a trial's result, to compare trials by."""
    flat = flatten(trial.model_dump())
    return repr(sorted((key, repr(value)) for key, value in flat.items() if key not in UNDECIDING | ROUNDING))


def check_searches(config: SweepConfig) -> None:
    """Checks that a search that is to be repeated has arms to compare, and that the tests can find something.

    Raises:
        ValueError: naming the setting that is missing, or that makes no sense.
    """
    plan, arms, confirm = config.comparison, [arm.name for arm in config.arms()], config.search.confirm
    if len(arms) < 2:
        raise ValueError(
            f"ablation.kind is {SEARCHES!r}, but the search has a single arm, so that there is nothing to compare; allowed: two "
            f"or more: search.per_method with a space.{METHOD}, or a reference with {TUNED}: true"
        )
    if plan.reference not in arms:
        raise ValueError(f"ablation.reference is {plan.reference!r}, which is no arm of the search; allowed: {', '.join(arms)}")
    if confirm and confirm.seeds >= SPACING:
        raise ValueError(
            f"search.confirm.seeds is {confirm.seeds}, but ablation.kind is {SEARCHES!r}, which leaves each search {SPACING} "
            f"seeds of its own; allowed: at most {SPACING - 1}"
        )
    check_seeds(plan)


def check_seeds(plan: AblationConfig) -> None:
    """Checks that the plan's primary test can find a difference with the plan's seeds.

    Raises:
        ValueError: with the number of seeds that would do.
    """
    number, tests = plan.most_seeds(), plan.num_tests()
    if number < 2 and plan.test is not None:
        raise ValueError(
            f"ablation.test is {plan.test}, but ablation.seeds is {plan.seeds}, and one seed says nothing about chance; allowed: "
            "two seeds or more, or test: null"
        )
    if plan.test == "sign_flip" and (smallest := smallest_p(number, tests)) > plan.level:
        raise ValueError(
            f"ablation.test is sign_flip: with {number} seeds and {tests} tests the smallest corrected p is {smallest:.4g}, "
            f"and level is {plan.level:g}; allowed: {seeds_needed(tests, plan.level)} seeds or more, or test: paired_t"
        )


def check_scheduler(config: SweepConfig) -> None:
    """Checks that the scheduler has something to decide on.

    Raises:
        ValueError: naming the setting that leaves nothing to decide, or that the scheduler cannot work with.
    """
    scheduler, epochs = config.scheduler, config.trial.epochs
    first = scheduler.grace_epochs if isinstance(scheduler, RungSettings | MedianConfig) else 1
    if first > epochs:
        raise ValueError(f"scheduler.grace_epochs is {first}, but trial.epochs is {epochs}; allowed: 1 to {epochs}")
    if not isinstance(scheduler, PbtConfig):
        return
    if not MUTABLE & config.space.keys():
        raise ValueError(f"scheduler.name is 'pbt', but space holds no setting that may change; allowed: {sorted(MUTABLE)}")
    if METHOD in config.space:
        raise ValueError(f"scheduler.name is 'pbt', but space holds {METHOD}, which may not change; allowed: a method in trial")
    if config.compares_arms:
        raise ValueError(
            f"search.references: {config.search.tuned_references()[0]}.{TUNED} is true, but scheduler.name is 'pbt', whose "
            f"members are one population; allowed: {TUNED} false, or another scheduler"
        )
    if config.search.confirm:
        raise ValueError("search.confirm is set, but with scheduler.name 'pbt' no trial has one configuration; allowed: null")
    if scheduler.interval_epochs >= epochs:
        raise ValueError(
            f"scheduler.interval_epochs is {scheduler.interval_epochs}, but trial.epochs is {epochs}; allowed: 1 to {epochs - 1}"
        )


def check_number(config: SweepConfig) -> None:
    """Checks that there are trials, that they differ, and that there is one for each of `resources.slots`.

    Raises:
        ValueError: naming the setting and the allowed values.
    """
    trials, references, slots = config.search.trials, len(config.search.references), config.resources.slots
    if not config.num_trials():
        raise ValueError("search.trials is 0, and search.references is empty; allowed: search.trials from 1 on, or a reference")
    if not config.space and trials > 1:
        raise ValueError(
            f"space is empty and search.trials is {trials}: all searched trials would be the same; allowed: a space, or "
            "search.trials of at most 1"
        )
    if slots and slots > config.num_trials():
        found = f"search.trials is {trials} and search.references holds {references}"
        if config.compares_arms:
            found = f"the sweep has {config.num_trials()} trials in {len(config.arms())} arms"
        raise ValueError(f"resources.slots is {slots}, but {found}; allowed: 1 to {config.num_trials()}")


def check_arms(arms: list[Arm]) -> None:
    """Checks that each arm of a comparison has something to search.

    Raises:
        ValueError: naming the arm.
    """
    for arm in arms:
        if arm.name and arm.trials > 1 and not arm.space:
            raise ValueError(
                f"space holds no setting for the arm {arm.name}, so that its {arm.trials} trials would be the same; allowed: a "
                f"setting that all arms have, such as optim.lr; or a reference without {TUNED}"
            )


def check_workers(resources: ResourcesConfig, trial: TrialConfig, smallest_batch: int) -> None:
    """Checks that each of several workers has an image of every batch, and a GPU if the trial runs on one.

    Raises:
        ValueError: naming the setting and the allowed values.
    """
    if resources.worker_range()[1] > smallest_batch:
        raise ValueError(
            f"resources.workers is {resources.workers}, but the smallest optim.batch_size is {smallest_batch}, so some would "
            f"have no image; allowed: 1 to {smallest_batch}"
        )
    if resources.workers != 1 and trial.device == "cuda" and not resources.gpus_per_worker:
        raise ValueError("resources.gpus_per_worker is 0, but trial.device is cuda with several workers; allowed: 1")


def check_fused(config: SweepConfig) -> None:
    """Checks that there is a trial that can be fused with others, if some are to be.

    Raises:
        ValueError: naming the setting that is in the way.
    """
    fused = config.resources.fused
    if fused > 1 and all(reasons := [why_alone(trial) for trial in config.kinds_of_trials()]):
        raise ValueError(f"resources.fused is {fused}, but no trial can be fused: {reasons[0]}; or resources.fused: 1")


def check_reference(trial: TrialConfig, changes: Tree, where: str) -> None:
    """Checks that a reference is a valid trial with the same images and the same number of epochs as all other trials.

    Raises:
        ConfigError: naming the setting that is not valid, or that must be the same for all trials.
    """
    reference = apply_changes(trial, changes, where)
    for name in FIXED:
        if getattr(reference, name) != getattr(trial, name):
            raise ConfigError(f"{where}: {name} must be the same for all trials of a sweep; set trial.{name} instead")


def check_names(config: SweepConfig) -> None:
    """Checks that the names of references can be used for folders and in tables, and that no arm has the same name.

    Raises:
        ConfigError: naming the reference, and the allowed characters or the arm.
    """
    own: list[str] = []
    if config.search.per_method is not None:
        own = config.methods()
    elif config.compares_arms and METHOD not in config.space:
        own = [config.trial.method.name]
    for name in config.search.references:
        if name in ROLES or not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            raise ConfigError(
                f"search.references: {name!r} cannot be a name; allowed: letters, digits, '_' and '-', and none of "
                f"{', '.join(map(repr, ROLES))}"
            )
        if name in own:
            raise ConfigError(f"search.references: {name!r} is the name of an arm of this sweep already; allowed: another name")


def check_constraints(constraints: list[str], trials: list[TrialConfig]) -> None:
    """Checks that constraints mention only numbers that at least one kind of trial has.

    Raises:
        ConfigError: naming the constraint, the unknown setting and the allowed settings.
    """
    settings = [named_values(trial) for trial in trials]
    numbers = {key for one in settings for key, value in one.items() if type(value) in (int, float)}
    for text in constraints:
        if unknown := sorted(parse_constraint(text).names - numbers):
            raise ConfigError(
                f"search.constraints: {text!r} mentions {unknown[0]}, which is no number among the settings of this sweep's "
                f"trials; allowed: {', '.join(sorted(numbers))}"
            )
