"""What an ablation is: variants of one trial, each a named change of its settings, trained again on the same seeds and compared.

This module needs neither Ray nor torch.
"""

import itertools
import re
from collections.abc import Collection
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, field_validator, model_validator

from orchestrator.statistics.seeds import looks
from trainables.config_file import Tree
from trainables.settings import Settings

NAME, NAME_IN_WORDS = r"[A-Za-z0-9][A-Za-z0-9_-]*", "letters, digits, '_' and '-', a letter or digit first"
"""What may be the name of a variant, a component, a factor or a level. A dot would be read as a level of nesting."""
PARTS, NAMES = ("test", "test_last", "val", "last"), ("acc", "acc_many", "acc_medium", "acc_few", "plain_acc")
"""The two parts of a metric's name."""
FULL, NONE = "full", "none"
"""Names of the trial with all components, and of that with none, in plans that are made of components."""
SEARCHES, PATH = "searches", "path"
"""The kinds of ablation that repeat a whole search, and that add one component after another."""
MOST_ON_PATH = 10
"""Components of a path at most: every set of them is checked before the start."""


class AdaptiveSeedsConfig(Settings):
    """Variants get more seeds until the comparison with the reference is decided."""

    min: int = Field(3, ge=2)
    """Seeds that all variants get."""
    max: int = Field(12, ge=2)
    """Seeds that an undecided variant gets at most."""
    until: Literal["decided"] = "decided"
    """A variant gets no more seeds once it is better, worse or equivalent on val. Test takes no part in this choice. The level
    is divided among the looks at the results (Bonferroni), so that looking often does not make chance findings more likely."""

    def looks(self) -> list[int]:
        """The numbers of seeds at which the results are looked at."""
        return looks(self.min, self.max)

    @model_validator(mode="after")
    def _ordered(self) -> "AdaptiveSeedsConfig":
        if self.max <= self.min:
            raise ValueError(f"max is {self.max}, but min is {self.min}; allowed: max greater than min, or a number of seeds")
        return self


class Cell(NamedTuple):
    """One variant under one combination of the factors' levels."""

    name: str
    """In the column `variant` of tables: the variant, and after `@` the levels."""
    variant: str
    condition: str
    """The levels, as `imbalance=10`; empty without factors."""
    changes: list[Tree]
    """Settings that differ from `trial`, one change after another."""


class AblationConfig(Settings):
    """The plan of an ablation: variants, seeds, and how the results are judged."""

    kind: Literal["list", "leave_one_out", "add_one_in", "factorial", "path", "searches"] = "list"
    """`list`: the `variants`, as they are. The next four make variants of `components`. `leave_one_out`: `full`, which is
    `trial`, and for each component `without_<component>`, with its change. `add_one_in`: `none`, which is `trial`, and for each
    component `with_<component>`. `factorial`: `none`, and every combination of components, as `driver+relative`. `path`: from
    `none` to `full`, which has all components; each step adds the component that gains most on val. `searches`: the whole search
    is repeated on other seeds; the variants are its arms, which `search.per_method` or tuned references make."""
    variants: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """The variants by name. Each lists the settings that differ from `trial`; one variant may list none (`{}`)."""
    components: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Changes of `trial` by name, which `kind` combines. Of `leave_one_out`, the change takes the component away; of the other
    kinds, it adds the component."""
    factors: dict[str, dict[str, dict[str, Any]]] = Field(default_factory=dict)
    """Circumstances under which the whole table is repeated: `imbalance: {"100": {data.imbalance_factor: 100}, "10": ...}`. With
    several factors, every combination of their levels. Variants are compared within a combination only."""
    seeds: int | list[Annotated[int, Field(ge=0, lt=2**31)]] | AdaptiveSeedsConfig = 10
    """Number of seeds, from `trial.seed` on; or a list of seeds; or `{min: 3, max: 12, until: decided}`. Every variant is trained
    on the same seeds. A seed draws the split, the initial weights, the order of the images and the augmentation. Of `kind:
    searches`, the number of searches; search k, from 0 on, has `search.seed` + k and `trial.seed` + 100 k."""
    reference: str | None = None
    """The variant that all others are compared with. None: `full` or `none` of the kinds that have it; `list` needs a name, and
    `searches` that of an arm."""
    metric: str = "test/acc"
    """What is compared. `test/...`: on test, with the model of the best-val epoch. `test_last/...`: with that of the last epoch.
    `val/...` and `last/...`: on val, at the best-val and at the last epoch. After the slash stands `acc`, `acc_many`,
    `acc_medium`, `acc_few` or `plain_acc`, as in `trial.select_by`. `kind: searches` allows `val/...` and `last/...` only."""
    test: Literal["paired_t", "sign_flip"] | None = "paired_t"
    """The test that decides: `paired_t`, or `sign_flip`, which is exact without an assumption and needs more seeds. The table
    shows both. None: no test, which is all that one seed allows."""
    margin: float = Field(0.005, gt=0, lt=1)
    """Two variants count as equivalent if their difference is shown to be smaller, in the metric's units: 0.005 is half a
    point."""
    level: float = Field(0.05, gt=0, lt=0.5)
    """Significance level of the whole table: the probability of calling any variant different that is not."""
    published: dict[str, float | dict[str, float]] = Field(default_factory=dict)
    """Published numbers to stand beside ours, by variant; with factors, by variant and combination of levels
    (`focal: {"imbalance=100": 0.4403}`)."""

    @field_validator("metric")
    @classmethod
    def _known_metric(cls, metric: str) -> str:
        part, _, name = metric.partition("/")
        if part not in PARTS or name not in NAMES:
            raise ValueError(f"metric is {metric!r}; allowed: {', '.join(PARTS)}, each with / and one of {', '.join(NAMES)}")
        return metric

    @field_validator("seeds")
    @classmethod
    def _different_seeds(cls, seeds: int | list[int] | AdaptiveSeedsConfig) -> int | list[int] | AdaptiveSeedsConfig:
        if isinstance(seeds, int) and seeds < 1:
            raise ValueError(f"seeds is {seeds}; allowed: a number from 1 on")
        if isinstance(seeds, list) and (not seeds or len(set(seeds)) < len(seeds)):
            raise ValueError(f"seeds is {seeds}; allowed: one or more seeds, each once")
        return seeds

    @model_validator(mode="after")
    def _names_fit(self) -> "AblationConfig":
        if self.kind == SEARCHES:
            self._check_searches()
            return self
        given, other = ("variants", "components") if self.kind == "list" else ("components", "variants")
        if not getattr(self, given) or getattr(self, other):
            raise ValueError(f"kind is {self.kind!r}; allowed: {given} by name, and no {other}")
        named = {given: getattr(self, given), "factors": self.factors}
        named |= {f"factors.{factor}": levels for factor, levels in self.factors.items()}
        for where, names in named.items():
            for name in names:
                if where == "components" and name in (FULL, NONE):
                    raise ValueError(f"components: {name!r} is the name of a variant; allowed: another name")
                if not re.fullmatch(NAME, name):
                    raise ValueError(f"{where}: {name!r} cannot be a name; allowed: {NAME_IN_WORDS}")
        if alone := [factor for factor, levels in self.factors.items() if len(levels) < 2]:
            raise ValueError(f"factors.{alone[0]} has fewer than two levels; allowed: two or more, or no factor")
        names = list(self.changes_by_variant())
        if len(names) < 2:
            raise ValueError(f"{given} gives {len(names)} variant, so that there is nothing to compare; allowed: two or more")
        if self.reference is None and self.kind == "list":
            raise ValueError(f"reference is missing; allowed: {', '.join(names)}")
        if self.reference_name not in names:
            dot = "; no name has a dot, which stands for a level of nesting" if "." in str(self.reference) else ""
            raise ValueError(f"reference is {self.reference!r}, which is no variant; allowed: {', '.join(names)}{dot}")
        self._check_published(names)
        if self.kind == PATH:
            self._check_path()
        return self

    def _check_path(self) -> None:
        if not 2 <= len(self.components) <= MOST_ON_PATH:
            raise ValueError(
                f"kind is {PATH!r}, and the number of components is {len(self.components)}; allowed: 2 to {MOST_ON_PATH}, or "
                "kind: add_one_in"
            )
        if self.factors:
            raise ValueError(f"kind is {PATH!r}, and factors is set; allowed: no factors, or another kind")
        if isinstance(self.seeds, AdaptiveSeedsConfig):
            raise ValueError(f"kind is {PATH!r}, whose steps are chosen on all seeds; allowed: a number of seeds, or a list")
        if self.reference_name not in (NONE, FULL):
            raise ValueError(f"reference is {self.reference!r}, which may not lie on the path; allowed: {NONE}, {FULL}")

    def _check_searches(self) -> None:
        if wrong := [name for name in ("variants", "components", "factors", "published") if getattr(self, name)]:
            raise ValueError(f"kind is {SEARCHES!r}, whose variants are the arms of the search; allowed: leave {wrong[0]} out")
        if self.reference is None:
            raise ValueError(
                "reference is missing; allowed: an arm, which is a method of space.method.name, or a reference with tuned: true"
            )
        if not isinstance(self.seeds, int):
            raise ValueError(f"seeds is {self.seeds}, but kind is {SEARCHES!r}; allowed: a number of searches")
        part, name = self.metric.split("/", 1)
        if part.startswith("test"):
            raise ValueError(
                f"metric is {self.metric!r}, but kind is {SEARCHES!r}, and a search reads test for the model that it exports, "
                f"and for no other arm; allowed: val/{name} or last/{name}"
            )

    def _check_published(self, names: list[str]) -> None:
        conditions = list(self.conditions())
        for variant, numbers in self.published.items():
            if variant not in names:
                raise ValueError(f"published: {variant!r} is no variant; allowed: {', '.join(names)}")
            if isinstance(numbers, dict) != bool(self.factors):
                form = "numbers by combination of levels" if self.factors else "a number"
                raise ValueError(f"published.{variant} is {numbers}; allowed: {form}")
            if isinstance(numbers, dict) and (unknown := sorted(numbers.keys() - set(conditions))):
                raise ValueError(f"published.{variant}: {unknown[0]!r} is no combination; allowed: {', '.join(conditions)}")

    @property
    def reference_name(self) -> str:
        """The variant that all others are compared with."""
        default = FULL if self.kind == "leave_one_out" else NONE
        return default if self.reference is None else self.reference

    def changes_by_variant(self) -> dict[str, list[Tree]]:
        """The changes of each variant, one after another, in the order of the table. Of a path, those of the variants that are
        trained whatever the results are.
        """
        match self.kind:
            case "list" | "searches":
                return {name: [change] for name, change in self.variants.items()}
            case "leave_one_out":
                return {FULL: []} | {f"without_{name}": [change] for name, change in self.components.items()}
            case "add_one_in":
                return {NONE: []} | {f"with_{name}": [change] for name, change in self.components.items()}
            case "path":
                sizes = [0, 1, len(self.components)]
            case "factorial":
                sizes = list(range(len(self.components) + 1))
        chosen = itertools.chain.from_iterable(itertools.combinations(self.components, size) for size in sizes)
        return {self.name_of(names): [self.components[name] for name in names] for names in chosen}

    def name_of(self, names: Collection[str]) -> str:
        """The variant that has these components and no others; in plans of kind factorial and path."""
        if self.kind == PATH and len(names) == len(self.components):
            return FULL
        return "+".join(name for name in self.components if name in names) or NONE

    def cell_with(self, variant: str) -> Cell:
        """The cell of a path's variant, which `name_of` has named."""
        parts = {NONE: [], FULL: list(self.components)}.get(variant, variant.split("+"))
        return Cell(variant, variant, "", [self.components[name] for name in parts])

    def conditions(self) -> dict[str, list[Tree]]:
        """The combinations of the factors' levels, by name, with their changes; one without a name if there are no factors."""
        levels = [[(f"{factor}={level}", change) for level, change in of.items()] for factor, of in self.factors.items()]
        return {",".join(name for name, _ in chosen): [change for _, change in chosen] for chosen in itertools.product(*levels)}

    def cells(self) -> list[Cell]:
        """Every variant under every combination of the factors' levels."""
        return [
            Cell(f"{variant}@{condition}" if condition else variant, variant, condition, of_condition + changes)
            for condition, of_condition in self.conditions().items()
            for variant, changes in self.changes_by_variant().items()
        ]

    def seeds_from(self, first: int) -> list[int]:
        """The seeds that every variant is trained on, before any look at the results.

        Args:
            first: the trial's seed.
        """
        if isinstance(self.seeds, list):
            return self.seeds
        return list(range(first, first + (self.seeds if isinstance(self.seeds, int) else self.seeds.min)))

    def num_tests(self) -> int:
        """How many p-values the level is divided among: of all variants but the reference, at each look."""
        num_looks = len(self.seeds.looks()) if isinstance(self.seeds, AdaptiveSeedsConfig) else 1
        return num_looks * (len(self.components) if self.kind == PATH else len(self.changes_by_variant()) - 1)

    def num_cells(self) -> int:
        """How many cells are trained; of a path, all candidates of all steps count."""
        number = len(self.components)
        return number * (number + 1) // 2 + 1 if self.kind == PATH else len(self.cells())

    def most_seeds(self) -> int:
        """Number of seeds that a variant may get."""
        if isinstance(self.seeds, list):
            return len(self.seeds)
        return self.seeds if isinstance(self.seeds, int) else self.seeds.max

    def published_of(self, cell: Cell) -> float | None:
        """The published number of a cell; None if the plan has none."""
        found = self.published.get(cell.variant)
        return found.get(cell.condition) if isinstance(found, dict) else found
