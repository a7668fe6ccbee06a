"""A sweep without processes: a conductor, a list of events as its ledger, and trials whose values are a formula.

Which of the running trials reports next is drawn at random, as it is in a real sweep; so is where a crash comes.
"""

import contextlib
import hashlib
import json
import random
from collections.abc import Callable
from typing import Any

from orchestrator.config.sweep_config import SweepConfig
from orchestrator.decide.conductor import Conductor, Stint
from orchestrator.ledger.events import Event
from trainables.config_file import Origin, check
from trainables.settings import flatten

SPACE = {
    "method.driver_weight": {"type": "float", "low": 0.001, "high": 1.0, "log": True, "or_exactly": 0.0},
    "method.meta_lr": {"type": "float", "low": 0.001, "high": 0.1, "log": True},
    "method.hidden_width": {"type": "int", "low": 4, "high": 64},
}
SCHEDULERS: dict[str, dict[str, Any]] = {
    "asha": {"grace_epochs": 2, "reduction_factor": 2},
    "promotion": {"grace_epochs": 2, "reduction_factor": 2},
    "hyperband": {"grace_epochs": 1, "reduction_factor": 2},
    "median": {"grace_epochs": 2, "min_trials": 2},
    "pbt": {"interval_epochs": 3},
    "none": {},
}
EPOCHS = 9


def sweep(
    scheduler: str = "asha",
    trials: int = 9,
    failures: dict[str, Any] | None = None,
    slots: int = 3,
    checkpoint_interval: int = 1,
    keep: str = "best",
    fused: int | None = None,
    **search: Any,
) -> SweepConfig:
    """Few trials of few epochs. With `fused` they are trials that can be fused."""
    tree = {
        "trial": {"epochs": EPOCHS, **({"classifier": {"name": "linear"}} if fused else {})},
        "space": SPACE,
        "search": {"trials": trials, "sampler": "random", "references": {"plain": {"method.name": "cross_entropy"}}, **search},
        "scheduler": {"name": scheduler, **SCHEDULERS[scheduler]},
        "failures": failures or {},
        "resources": {"max_concurrent": slots, "fused": fused or 1},
        "checkpoint_interval": checkpoint_interval,
        "checkpoints": {"keep": keep},
    }
    return check(SweepConfig, tree, Origin("test"))


class Crash(Exception):
    """The driver was killed."""


def formula(config: dict[str, Any], epoch: int) -> float:
    """What a trial reaches: rises with the epochs towards something that its searched settings decide, and no others."""
    flat = {key: value for key, value in flatten(config).items() if key in ("seed", "method.name", "optim.lr", *SPACE)}
    luck = int(hashlib.sha256(json.dumps(flat, sort_keys=True).encode()).hexdigest()[:8], 16) / 2**32
    return round(0.5 + 0.4 * luck * (1 - 0.9**epoch), 9)  # it rises in every epoch, however little luck there is


class Simulation:
    """Runs a sweep to its end, or to a crash after so many events."""

    def __init__(
        self,
        config: SweepConfig,
        order: int = 0,
        slots: int | None = None,
        value: Callable[[dict[str, Any], int], float | None] = formula,
        fails: Callable[[str, int, int], str | None] = lambda trial_id, epoch, attempt: None,
    ) -> None:
        self.config, self.value, self.fails = config, value, fails
        self.slots = slots or config.resources.wanted_slots(config.num_trials())
        self.events: list[Event] = []
        self.states: set[str] = set()
        """Paths of the checkpoints on the disk."""
        self.random = random.Random(order)
        self.most_running = 0
        """Processes that trained at a time."""
        self.bundles: list[list[str]] = []
        """The trials that a process was given at a time."""
        self.running: dict[str, tuple[Stint, int]] = {}
        """The trials in a process, each with the epoch that it has reached."""

    def run(self, crash_after: int | None = None) -> list[Event]:
        """All events so far. Called again after a crash, it goes on with a new conductor."""
        self._crash_after = crash_after
        with contextlib.suppress(Crash):
            self._go_on()
        return self.events

    def _go_on(self) -> None:
        self.conductor = conductor = Conductor(self.config, self.slots, self._append, self.config.resources.fused)
        conductor.restore(list(self.events))
        self.states = {checkpoint.path for trial in conductor.trials.values() for checkpoint in trial.checkpoints}
        self.running = running = {}
        while True:
            while stints := conductor.next_stints():
                self.bundles.append([stint.trial_id for stint in stints])
                for stint in stints:
                    assert stint.trial_id not in running
                    epoch = stint.checkpoints[0].epoch if stint.checkpoints else stint.first_epoch - 1
                    assert stint.checkpoints or epoch == 0, "the state of another trial is needed"
                    needed = {checkpoint.path for checkpoint in stint.checkpoints}
                    assert needed <= self.states, "a state that is needed was removed"
                    running[stint.trial_id] = (stint, epoch)
                    self._append("trial_start", trial_id=stint.trial_id, attempt=stint.attempt)
                assert len({(running[stint.trial_id][1], stint.config["seed"]) for stint in stints}) == 1
            self.most_running = max(self.most_running, len({stint.bundle for stint, _ in running.values()}))
            if not running:
                assert conductor.over or conductor.halted, "nobody runs, and the sweep is not over"
                return
            trial_id = self.random.choice(sorted(running))
            stint, epoch = running.pop(trial_id)
            if not self._step(stint, epoch + 1):
                running[trial_id] = (stint, epoch + 1)

    def _step(self, stint: Stint, epoch: int) -> bool:
        """One epoch of one trial; whether its process is free afterwards."""
        trial_id, conductor = stint.trial_id, self.conductor
        if how := self.fails(trial_id, epoch, stint.attempt):
            if how == "crash":
                lost = [other for other, (another, _) in self.running.items() if another.bundle == stint.bundle]
                for other in [trial_id, *lost]:
                    self.running.pop(other, None)
                    conductor.after_failure(other, "gone", 1 + len(lost))
            else:
                conductor.after_ending(trial_id, how, "by itself")
            return True
        member = conductor.trials[trial_id]
        metrics = {"val/acc": self.value(stint.config, epoch)}
        place = f"checkpoints/{trial_id}/{epoch:04d}-{stint.attempt}"
        if epoch % self.config.checkpoint_interval == 0 or epoch == EPOCHS or epoch in stint.due or conductor.halted:
            self._append("checkpoint", trial_id=trial_id, epoch=epoch, path=place, sha256="")
        self._append("epoch", trial_id=trial_id, epoch=epoch, attempt=member.attempt, metrics=metrics)
        self._remove_dispensable(trial_id)
        return conductor.after_epoch(trial_id)

    def _append(self, event: str, **fields: Any) -> Event:
        if self._crash_after is not None and len(self.events) >= self._crash_after:
            raise Crash
        record = {"event": event, "time": float(len(self.events)), **json.loads(json.dumps(fields))}
        self.events.append(record)
        self.conductor.apply(record)
        if event == "checkpoint":
            self.states.add(record["path"])
        elif event == "trial_end" and record["status"] != "interrupted":
            self._remove_dispensable(record["trial_id"])
        return record

    def _remove_dispensable(self, trial_id: str) -> None:
        self.states -= {checkpoint.path for checkpoint in self.conductor.drop_checkpoints(trial_id)}
