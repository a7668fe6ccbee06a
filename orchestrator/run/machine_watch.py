"""The slots and their machines: tells what trials wait for, lets the number of slots follow the machines, returns idle machines.

A slot whose group of workers waits for machines costs nothing. On a cluster, the number of slots grows when machines come and
shrinks when they go, between one and what the cluster's limits allow, so that the search proposes a trial only when there is room
for it. Of trials that a slot trains together, the first one waits for all.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from orchestrator.cluster.machines import Fleet, Machines
from orchestrator.decide.conductor import Conductor
from orchestrator.ledger.events import Kind
from orchestrator.ledger.trial_states import State
from orchestrator.run.signals import AT_WORK, HOLDS, SPACE, Slots

SILENT_S = 60.0
"""Seconds that a trial waits for machines before anybody is told."""
RETREAT_S = 10.0
"""Seconds between two trials that leave processes whose machines have not come."""
FREE_S = 3.0
"""Seconds after which a process without a trial is free: between two trials it is idle for a moment."""
REPORT_S = 600.0
"""Seconds after which the time of the machines is written down even if nothing has changed: the sweep may be killed."""


class MachineWatch:
    """Keeps account of the slots that have machines.

    Args:
        slots: the processes.
        conductor: is told how many trials may run at a time.
        append: writes an event.
        note: tells a person.
        machines: of a cluster; None where all resources are there from the beginning.
    """

    def __init__(
        self,
        slots: Slots,
        conductor: Conductor,
        append: Callable[..., Any],
        note: Callable[[str], None],
        machines: Machines | None = None,
    ) -> None:
        self._slots, self._conductor, self._append, self._note = slots, conductor, append, note
        self._machines = machines if slots.group and slots.group.machines_may_come else None
        self._waits_since: dict[str, float] = {}
        self._missing_since: float | None = None
        self._with_machines: dict[int, str] = {}
        """The processes whose workers are up, by process number, each with the trial that it served last."""
        self._idle_since: dict[int, float] = {}
        self._asked: set[int] = set()
        """Idle processes that were told to give their machines back."""
        self._retreated = 0.0
        self._retreating: set[str] = set()
        self._waiting = ""
        self._number = 0
        self._wanted = slots.number
        self._told: Fleet | None = None
        self._told_at = 0.0

    def begin(self, gpus_per_slot: float) -> None:
        """Sets the first number of slots."""
        self._gpus_per_slot = gpus_per_slot
        self._set_number(self._room() if self._machines else self._slots.number)

    def poll(self, now: float) -> None:
        """Looks after the slots; called about once a second with the seconds since 1970."""
        waiting = self._slots.waiting()
        for_machines = [trial_id for trial_id, what_for in waiting.items() if not what_for.startswith(SPACE)]
        running = {trial.trial_id for trial in self._conductor.trials.in_state(State.RUNNING)}
        stuck = [trial_id for trial_id in for_machines if trial_id in running and trial_id not in self._retreating]
        self._tell(waiting, for_machines, now)
        self._look_for_idle(running, now)
        self._let_retreat(stuck, now)
        if self._machines:
            self._give_back(self._machines, now)
            self._follow(self._machines, stuck, now)

    def close(self, now: float) -> None:
        """Asks for no more machines, and writes down what they have cost."""
        if self._machines:
            self._machines.demand(0, 1, one_waits=False)
            self._write(self._machines, self._machines.look(), now)

    def take(self, trial_id: str, events: Iterable[Mapping[str, Any]]) -> None:
        """Takes what happened in the process of a trial."""
        for event in events:
            if event["event"] == Kind.GROUP_START:
                self._with_machines[event["slot"]] = trial_id
            elif event["event"] == Kind.GROUP_LOST:
                self._with_machines.pop(event["slot"], None)
                self._slots.take_back(HOLDS, event["slot"])

    def came(self, trial_id: str) -> None:
        """A trial has trained: if it was to retreat, its machines have come just in time."""
        self._retreating.discard(trial_id)

    def lost(self, trial_ids: Sequence[str]) -> None:
        """The process of these trials is gone, and its workers with it."""
        for trial_id in trial_ids:
            self._slots.wait(trial_id, None)
            self._gone(self._slots.process_of(trial_id), trial_id)

    def have_retreated(self, trial_ids: Sequence[str]) -> bool:
        """Whether the process of these trials is gone because they were told to leave it."""
        retreats = not self._retreating.isdisjoint(trial_ids)
        self._retreating -= set(trial_ids)
        return retreats

    def _gone(self, process: int, trial_id: str) -> None:
        """A process is gone, or has given its machines back."""
        for sign in (HOLDS, AT_WORK):
            self._slots.take_back(sign, process)
        if self._with_machines.pop(process, None) is not None:
            self._append(Kind.GROUP_END, trial_id=trial_id, slot=process)

    def _tell(self, waiting: Mapping[str, str], for_machines: list[str], now: float) -> None:
        """Tells what trials wait for: for space at once, for machines after a minute."""
        self._waits_since = {trial_id: self._waits_since.get(trial_id, now) for trial_id in for_machines}
        told = {trial_id for trial_id in waiting if now - self._waits_since.get(trial_id, now - SILENT_S) >= SILENT_S}
        text = "; ".join(f"{trial_id} for {what_for}" for trial_id, what_for in waiting.items() if trial_id in told)
        missing = self._missing() if self._machines and self._machines.come_and_go else 0
        self._missing_since = (self._missing_since or now) if missing else None
        are_missed = self._missing_since is not None and now - self._missing_since >= SILENT_S
        if are_missed:
            assert self._slots.group is not None
            what = "trial" if self._slots.fused == 1 else "bundle"
            others = f"1 {what} that has" if missing == 1 else f"{missing} {what}s that have"
            what_for = self._slots.group.in_words(self._slots.group.max_workers)
            text += f"{'; ' if text else ''}{others} not begun, for {what_for}"
        if self._machines and (are_missed or told & self._waits_since.keys()):
            text += f" ({self._machines.doings()})"
        if text != self._waiting:
            self._note(f"waiting: {text}" if text else "no trial waits any more")
            self._waiting = text

    def _missing(self) -> int:
        """How many processes could train beside those that do, if there were machines."""
        return max(0, min(self._slots.number, self._conductor.could_run) - max(self._number, self._conductor.running))

    def _look_for_idle(self, running: Iterable[str], now: float) -> None:
        """Finds the processes that have machines and no trial."""
        busy = {self._slots.process_of(trial_id) for trial_id in running}
        for process, trial_id in list(self._with_machines.items()):
            if self._slots.is_released(process) or (process not in busy and not lives(process)):
                self._gone(process, trial_id)
        idle = self._with_machines.keys() - busy
        self._idle_since = {process: self._idle_since.get(process, now) for process in idle}

    def _let_retreat(self, stuck: list[str], now: float) -> None:
        """Takes trials out of processes that wait for machines while a process that has its machines stays free: as many as are
        free, and those that are more than there are slots, because nobody gets a new stint before they are out.
        """
        free = sum(now - since >= FREE_S for since in self._idle_since.values()) - len(self._retreating)
        if stuck and free > 0 and now - self._retreated >= RETREAT_S:
            self._retreated = now
            for trial_id in stuck[: max(free, self._conductor.running - self._number + free)]:
                self._retreating.add(trial_id)
                self._slots.retreat(trial_id)

    def _give_back(self, machines: Machines, now: float) -> None:
        """Lets processes without a trial give their machines back where machines come and go, with the cluster's patience."""
        self._asked &= self._idle_since.keys()
        for process, since in self._idle_since.items():
            if machines.come_and_go and now - since >= machines.patience_s and process not in self._asked:
                self._asked.add(process)
                self._slots.release(process)

    def _follow(self, machines: Machines, stuck: list[str], now: float) -> None:
        """Lets the number of slots follow the machines, and asks for machines for the trials that could run beside these."""
        if (number := self._room()) != self._number:
            self._set_number(number)
        if (wanted := min(number, self._conductor.could_run)) != self._wanted:
            self._wanted = wanted
            self._slots.set_wanted(wanted)
        fleet = machines.look()
        if self._told is None or fleet[1:] != self._told[1:] or now - self._told_at >= REPORT_S:
            self._write(machines, fleet, now)
        assert self._slots.group is not None
        served = self._holding() | {self._slots.process_of(trial_id) for trial_id in stuck}
        trials = max(0, min(self._slots.number, self._conductor.could_run) - len(served))
        machines.demand(trials, self._slots.group.max_workers, one_waits=bool(stuck))

    def _holding(self) -> set[int]:
        """The processes that have machines. A group is reported at the end of its first epoch, and held from its start."""
        return self._with_machines.keys() | self._slots.with_sign(HOLDS)

    def _room(self) -> int:
        """The number of slots for which there are machines; one more than none, so that somebody waits for them.

        Slots that go on with fewer workers, after a loss, stay as long as these have room.
        """
        assert self._machines is not None
        assert self._slots.group is not None
        group, workers = self._slots.group, self._machines.look().workers
        room = max(workers // group.max_workers, min(len(self._holding()), workers // group.min_workers))
        return max(1, min(self._slots.number, room))

    def _set_number(self, number: int) -> None:
        self._number = number
        self._conductor.set_slots(number)
        elastic = {"machines_may_come": True} if self._machines else {}
        self._append(Kind.SLOTS, slots=number, gpus_per_slot=self._gpus_per_slot, **elastic)

    def _write(self, machines: Machines, fleet: Fleet, now: float) -> None:
        """Writes down how long machines were up and on their way."""
        self._told, self._told_at = fleet, now
        fields = {"gpus_up": fleet.gpus_up, "gpus_starting": fleet.gpus_starting}
        sums = {"up_s": round(machines.up_s, 1), "starting_s": round(machines.starting_s, 1)}
        patience = {"idle_timeout_s": machines.file.idle_s} if machines.file else {}
        self._append(Kind.MACHINES, **fields, **sums, **patience)


def lives(process: int) -> bool:
    """Whether there is a process of this number on this machine, where all slots are."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
