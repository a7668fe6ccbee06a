"""The vocabulary of a ledger: which events there are, what each one says, and the fixed words in them.

The ledger is event sourcing: the state of a sweep is whatever its events add up to. Each kind of event is a TypedDict, told apart
by its `event`, so that mypy knows the fields after `if event["event"] == Kind.EPOCH`. In the file an event is a line of JSON.
"""

from enum import StrEnum
from typing import Any, Literal, NotRequired, TypedDict

SCHEMA = 3
"""Version of what is written down here. The first event of a ledger carries it; 1 was the time before it did. Up to 2
`search.trials` counted references, and all states were kept."""


class Kind(StrEnum):
    """The kinds of events."""

    SWEEP_START = "sweep_start"
    SWEEP_RESUME = "sweep_resume"
    SWEEP_END = "sweep_end"
    SLOTS = "slots"
    MACHINES = "machines"
    SUGGEST = "suggest"
    TRIAL_START = "trial_start"
    EPOCH = "epoch"
    CHECKPOINT = "checkpoint"
    DAMAGED = "damaged"
    DECIDE = "decide"
    RETRY = "retry"
    GROUP_START = "group_start"
    GROUP_LOST = "group_lost"
    GROUP_END = "group_end"
    TRIAL_END = "trial_end"
    PAIRING = "pairing"
    TEST_READ = "test_read"
    EXPORT = "export"
    EXPORT_OTHER = "export_other"
    COMPARE = "compare"


AFTERWARDS = (Kind.TEST_READ, Kind.EXPORT, Kind.EXPORT_OTHER)
"""Kinds of events that name a trial and need no slot."""


class Role(StrEnum):
    """Why a trial exists."""

    SEARCH = "search"
    """The sampler proposed it, or it is offspring of a population."""
    REFERENCE = "reference"
    """The sweep's file asks for it as it is; its `variant` is the reference's name."""
    CONFIRM = "confirm"
    """It runs one of the best configurations again, on a fresh seed."""


class Status(StrEnum):
    """How a trial ended, as the tables say; a sweep ends as finished, failed or interrupted."""

    RUNNING = "running"
    FINISHED = "finished"
    STOPPED_EARLY = "stopped_early"
    DIVERGED = "diverged"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


class Action(StrEnum):
    """What a scheduler decides about a trial."""

    CONTINUE = "continue"
    STOP = "stop"
    PAUSE = "pause"
    PROMOTE = "promote"
    """A paused trial goes on."""
    REPLACE = "replace"
    """A new trial that continues from a donor's state takes the trial's place."""


class Parent(TypedDict):
    """The trial, and the epoch of it, from whose state another trial continues."""

    trial_id: str
    epoch: int


class _Written(TypedDict, total=False):
    """What the ledger itself adds to every event."""

    schema: int
    """In the first event only."""
    n: int
    """Place in the ledger, from 0."""
    time: float
    """Seconds since 1970."""
    prev: str
    """SHA-256 of the line before."""


class SweepStartEvent(_Written):
    """A sweep begins."""

    event: Literal[Kind.SWEEP_START]
    config: dict[str, Any]
    split_sha256: str
    split: dict[str, Any]
    class_counts: list[int]
    val_counts: NotRequired[list[int]]
    """Images of each class in the set that trials are chosen on; an older version did not note them."""
    git_commit: str | None
    versions: dict[str, str]
    settings_sha256: NotRequired[str]
    """Of sweep.yaml; an older version did not note it."""
    machine: NotRequired[dict[str, Any]]
    """On which the sweep's own process runs."""
    changes: NotRequired[str]
    """The file in the results folder that holds the program's differences from the commit."""
    warm_start: NotRequired[list[dict[str, Any]]]
    """Trials of an earlier sweep that the sampler is told."""
    warm_start_from: NotRequired[str]
    entered: NotRequired[float]
    """When a person entered the command, in seconds since 1970."""


class SweepResumeEvent(_Written):
    """A sweep goes on, in its `segment`-th process."""

    event: Literal[Kind.SWEEP_RESUME]
    segment: int
    config: dict[str, Any]
    git_commit: str | None
    versions: dict[str, str]
    settings_sha256: NotRequired[str]
    """As in the first event."""
    machine: NotRequired[dict[str, Any]]
    """As in the first event."""
    changes: NotRequired[str]
    """As in the first event."""
    note: NotRequired[str]
    """Why trials that go on no longer equal undisturbed ones bit for bit."""
    entered: NotRequired[float]
    """As in the first event."""


class SweepEndEvent(_Written):
    """A sweep ends, for good or until it is resumed."""

    event: Literal[Kind.SWEEP_END]
    status: Status
    reason: str | None
    """Why trials are left, if any are."""
    complete: bool
    """Whether nothing is left to do."""
    decisions_sha256: str


class SlotsEvent(_Written):
    """How many processes serve trials from now on."""

    event: Literal[Kind.SLOTS]
    slots: int
    gpus_per_slot: float
    machines_may_come: NotRequired[bool]
    """Whether a slot has its machines only after they have come."""


class MachinesEvent(_Written):
    """What the machines of a cluster do, and have cost since this process joined it."""

    event: Literal[Kind.MACHINES]
    gpus_up: float
    gpus_starting: float
    """GPUs of machines that are on their way."""
    up_s: float
    """Seconds, times GPUs, that machines were up."""
    starting_s: float
    """Seconds, times GPUs, that machines were on their way."""
    idle_timeout_s: NotRequired[float]
    """Seconds without work after which a machine goes, if the cluster's file is known."""


class SuggestEvent(_Written):
    """A trial is wanted."""

    event: Literal[Kind.SUGGEST]
    trial_id: str
    role: Role
    variant: str
    """Name of the reference, or of the arm; empty for other roles when the sweep has no arms."""
    seed: int
    config: dict[str, Any]
    params: NotRequired[dict[str, Any] | None]
    """The sampler's parameters; None where the configuration lies outside the space."""
    parent: NotRequired[Parent | None]
    replaces: NotRequired[str | None]
    """The member of a population whose place the trial takes."""
    confirms: NotRequired[str | None]
    """The trial whose configuration runs again."""


class TrialStartEvent(_Written):
    """A stint begins."""

    event: Literal[Kind.TRIAL_START]
    trial_id: str
    attempt: int


class EpochEvent(_Written):
    """An epoch was trained. When an epoch is repeated, the last attempt counts."""

    event: Literal[Kind.EPOCH]
    trial_id: str
    epoch: int
    attempt: int
    metrics: dict[str, float | None]
    shared_by: NotRequired[int]
    """How many trials the process trained together, this one included, since the trial's event before; 1 if it is missing."""


class CheckpointEvent(_Written):
    """A state was saved."""

    event: Literal[Kind.CHECKPOINT]
    trial_id: str
    epoch: int
    path: str
    """In the results folder."""
    sha256: str


class DamagedEvent(_Written):
    """A checkpoint is not what was written."""

    event: Literal[Kind.DAMAGED]
    trial_id: str
    epoch: int
    path: str
    reason: str


class DecideEvent(_Written):
    """A scheduler's verdict on a trial after an epoch."""

    event: Literal[Kind.DECIDE]
    trial_id: str
    epoch: int
    action: Action
    cutoff: float | None
    rank: int | None
    of: int | None
    donor: str | None


class RetryEvent(_Written):
    """A trial lost its process and will get another one."""

    event: Literal[Kind.RETRY]
    trial_id: str
    attempt: int
    reason: str
    shared_by: NotRequired[int]
    """As in an epoch's event. With others, the trial is not counted as failed, and trains alone from then on."""


class GroupStartEvent(_Written):
    """The workers of a slot came up."""

    event: Literal[Kind.GROUP_START]
    trial_id: str
    epoch: int
    slot: int
    """Process id of the slot."""
    workers: int
    seconds: float
    held_since: NotRequired[float]
    """When the machines came, in seconds since 1970; on a cluster whose machines come with the work."""
    ready_at: NotRequired[float]
    """When the workers were up."""
    shared_by: NotRequired[int]
    """How many trials they train together; each of these has such an event."""


class GroupEndEvent(_Written):
    """The workers of a slot are gone with the slot's process."""

    event: Literal[Kind.GROUP_END]
    trial_id: str
    slot: int


class GroupLostEvent(_Written):
    """The workers of a slot were lost; new ones repeat the epoch."""

    event: Literal[Kind.GROUP_LOST]
    trial_id: str
    epoch: int
    slot: int
    reason: str
    lost_at: NotRequired[float]
    """When, in seconds since 1970; the event is written at the end of the epoch that new workers have repeated."""
    shared_by: NotRequired[int]
    """How many trials they trained together; each of these has such an event."""


class TrialEndEvent(_Written):
    """A trial ended, or was interrupted."""

    event: Literal[Kind.TRIAL_END]
    trial_id: str
    status: Status
    stop_reason: str | None
    best_epoch: NotRequired[int]
    best_value: NotRequired[float]
    own_fault: NotRequired[bool]
    """Whether the trial's own numbers ended it: it diverged, its meta-gradient was dead, or it had too little memory."""
    class_arrays: NotRequired[str]
    """Path of the trial's arrays by class, in the results folder."""
    class_arrays_sha256: NotRequired[str]
    shared_by: NotRequired[int]
    """As in an epoch's event; of a trial that ended within an epoch."""


class PairingEvent(_Written):
    """What a trial has in common with others, once it has trained its last epoch."""

    event: Literal[Kind.PAIRING]
    trial_id: str
    digests: dict[str, str]
    """SHA-256 of images and split, test images, initial weights, order of the images and draws of the augmentation."""


class TestReadEvent(_Written):
    """The sealed test set was read for a trial's model: of the best-val epoch, and in an ablation of the last one, too."""

    event: Literal[Kind.TEST_READ]
    trial_id: str
    metrics: dict[str, float | None]


class ExportEvent(_Written):
    """The model that the sweep has chosen was exported."""

    event: Literal[Kind.EXPORT]
    trial_id: str
    path: str
    metrics: dict[str, float | None]


class ExportOtherEvent(_Written):
    """A model was exported that is not the sweep's choice: somebody asked for it."""

    event: Literal[Kind.EXPORT_OTHER]
    trial_id: str
    path: str


class CompareEvent(_Written):
    """The variants of an ablation were compared."""

    event: Literal[Kind.COMPARE]
    path: str
    """Folder of the tables and the picture."""
    files: NotRequired[dict[str, str]]
    """SHA-256 of each file in the folder, by name; an older version did not note them."""
    rows: list[dict[str, Any]]
    """A row for each variant: `condition`, `name`, `num_seeds`, `mean`, `difference`, `p_corrected`, `verdict`."""


Event = (
    SweepStartEvent
    | SweepResumeEvent
    | SweepEndEvent
    | SlotsEvent
    | MachinesEvent
    | SuggestEvent
    | TrialStartEvent
    | EpochEvent
    | CheckpointEvent
    | DamagedEvent
    | DecideEvent
    | RetryEvent
    | GroupStartEvent
    | GroupLostEvent
    | GroupEndEvent
    | TrialEndEvent
    | PairingEvent
    | TestReadEvent
    | ExportEvent
    | ExportOtherEvent
    | CompareEvent
)
"""Any event of a ledger."""


def trial_of(event: Event) -> str:
    """The trial that an event is about; empty for events of the whole sweep."""
    return str(event.get("trial_id", ""))


def shared_fields(shared_by: int) -> dict[str, int]:
    """The field of an event that tells how many trials had the process's time before it in common."""
    return {"shared_by": shared_by} if shared_by > 1 else {}


def shared_by(event: Event) -> int:
    """How many trials had the process's time before an event in common."""
    return event.get("shared_by", 1)  # type: ignore[return-value]
