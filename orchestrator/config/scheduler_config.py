"""Schedulers: which trials stop early, wait, or go on from another one's state. All count epochs."""

from typing import Annotated, Literal, Union

from pydantic import Field

from trainables.settings import Settings


class RungSettings(Settings):
    """What all kinds of successive halving have."""

    name: str
    """Which scheduler. First here, so that it stays first where a scheduler narrows it."""
    grace_epochs: int = Field(5, ge=1)
    """Epochs that every trial gets; the first rung."""
    reduction_factor: float = Field(3.0, gt=1)
    """Each rung lies this many times later than the one before, and 1/reduction_factor of its trials go on; eta in the papers."""


class AshaConfig(RungSettings):
    """Asynchronous successive halving that stops: a trial that reaches a rung goes on when it is among the best
    1/reduction_factor so far, and ends otherwise.
    """

    name: Literal["asha"] = "asha"
    """Which scheduler."""


class PromotionConfig(RungSettings):
    """Asynchronous successive halving that promotes (Li et al., MLSys 2020): every trial waits at each rung, and goes on from its
    checkpoint once it is among the best 1/reduction_factor. A late trial can still overtake; none is judged by too few.
    """

    name: Literal["promotion"] = "promotion"
    """Which scheduler."""


class HyperbandConfig(RungSettings):
    """Hyperband (Li et al., JMLR 2018): trials are dealt to brackets, each a successive halving that begins one rung later than
    the one before, so that some trials are judged early and some late.
    """

    name: Literal["hyperband"] = "hyperband"
    """Which scheduler."""


class MedianConfig(Settings):
    """The median rule (Vizier): a trial ends when its best value so far is below the median of the others' means up to then."""

    name: Literal["median"] = "median"
    """Which scheduler."""
    grace_epochs: int = Field(5, ge=1)
    """Epochs that every trial gets."""
    interval_epochs: int = Field(1, ge=1)
    """Epochs from one judgement of a trial to the next."""
    min_trials: int = Field(4, ge=1)
    """How many others must have come as far."""


class PbtConfig(Settings):
    """Population-based training (Jaderberg et al., 2017). The `search.trials` members train side by side, in turns where there
    are fewer slots; every `interval_epochs` the worst are replaced by new trials that go on from the state of one of the best,
    with its settings, of which the mutable ones (lambda and beta) that are in the space are changed.
    """

    name: Literal["pbt"] = "pbt"
    """Which scheduler."""
    interval_epochs: int = Field(5, ge=1)
    """Epochs of a generation."""
    quantile: float = Field(0.25, gt=0, le=0.5)
    """The share of members that is replaced, and of those that replace them."""
    resample_probability: float = Field(0.25, gt=0, le=1)
    """How often a setting is drawn anew from its range; otherwise it is multiplied by 0.8 or 1.2."""


class RunAllConfig(Settings):
    """Every trial runs to its last epoch."""

    name: Literal["none"] = "none"
    """Which scheduler."""


SchedulerConfig = Annotated[
    Union[AshaConfig, PromotionConfig, HyperbandConfig, MedianConfig, PbtConfig, RunAllConfig],  # noqa: UP007
    Field(discriminator="name"),
]
