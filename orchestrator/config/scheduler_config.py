"""Settings of the schedulers, which decide which trials stop early, pause, or continue from another trial's state.

All intervals are counted in epochs.
"""

from typing import Annotated, Literal, Union

from pydantic import Field

from trainables.settings import Settings


class RungSettings(Settings):
    """Settings that all kinds of successive halving share."""

    name: str
    """Which scheduler. Declared here, so that `name` stays the first field when a subclass narrows its type."""
    grace_epochs: int = Field(5, ge=1)
    """Epochs that every trial trains; the first rung."""
    reduction_factor: float = Field(3.0, gt=1)
    """Each rung lies this many times later than the rung before. 1/reduction_factor of the trials at a rung continue. eta in the
    papers."""


class AshaConfig(RungSettings):
    """Asynchronous successive halving (ASHA) that stops trials. A trial that reaches a rung continues if it is among the best
    1/reduction_factor so far, and ends otherwise.
    """

    name: Literal["asha"] = "asha"
    """Which scheduler."""


class PromotionConfig(RungSettings):
    """Asynchronous successive halving that promotes trials (Li et al., MLSys 2020). Every trial pauses at each rung. A trial
    continues from its checkpoint once it is among the best 1/reduction_factor at the rung. A late trial can still overtake, and
    no trial is stopped after a comparison with too few others.
    """

    name: Literal["promotion"] = "promotion"
    """Which scheduler."""


class HyperbandConfig(RungSettings):
    """Hyperband (Li et al., JMLR 2018). Trials are distributed over brackets. Each bracket is a successive halving that begins
    one rung later than the bracket before, so that some trials are judged early and others late.
    """

    name: Literal["hyperband"] = "hyperband"
    """Which scheduler."""


class MedianConfig(Settings):
    """The median stopping rule (Vizier). A trial ends when its best value so far is below the median of the other trials' means
    up to the same epoch.
    """

    name: Literal["median"] = "median"
    """Which scheduler."""
    grace_epochs: int = Field(5, ge=1)
    """Epochs that every trial trains before it is judged."""
    interval_epochs: int = Field(1, ge=1)
    """Epochs between two judgements of a trial."""
    min_trials: int = Field(4, ge=1)
    """Number of other trials that must have reached the same epoch before a trial can be stopped."""


class PbtConfig(Settings):
    """Population-based training (Jaderberg et al., 2017). The `search.trials` members train side by side, in turns when there are
    fewer slots. Every `interval_epochs`, the worst members are replaced by new trials. A new trial continues from the state of
    one of the best members, with that member's settings. Mutable settings (lambda and beta) that are in the space are changed.
    """

    name: Literal["pbt"] = "pbt"
    """Which scheduler."""
    interval_epochs: int = Field(5, ge=1)
    """Epochs in a generation."""
    quantile: float = Field(0.25, gt=0, le=0.5)
    """Fraction of the members that is replaced, and fraction of the members that the replacements continue from."""
    resample_probability: float = Field(0.25, gt=0, le=1)
    """Probability that a mutable setting is drawn anew from its range. Otherwise the setting is multiplied by 0.8 or 1.2."""


class RunAllConfig(Settings):
    """No scheduler: every trial runs to its last epoch."""

    name: Literal["none"] = "none"
    """Which scheduler."""


SchedulerConfig = Annotated[
    Union[AshaConfig, PromotionConfig, HyperbandConfig, MedianConfig, PbtConfig, RunAllConfig],  # noqa: UP007
    Field(discriminator="name"),
]
