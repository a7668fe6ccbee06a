"""Kills sweeps at random moments and resumes them, and counts what was lost, done twice or decided otherwise.

    python -m benchmarks.chaos [--kills 20] [--sweeps digits,promotion,pbt,asynchronous] [--seed 0] [--folder DIR] [--json]

Each kind of sweep runs once undisturbed. Then it runs again, and its process, that alone, gets a SIGKILL: before the first event,
after a random number of events and a fraction of a second more, or while the best trial is exported. It is resumed until it ends.
Between a kill and the resumption more happens: torn lines, a flipped bit in a checkpoint, files lost and orphaned. Trials of
synthetic sweeps diverge, run out of memory, raise errors, hang and die. Once a second process tries to run the same sweep.

`lost`, `doubled`, `repeated` and `running` are counted by accounts.py, `running` in the ledger, in the study and in MLflow.
`decisions`: whether a deterministic sweep decided what the undisturbed one did. Exit code 1 when anything is wrong.
"""

import argparse
import contextlib
import itertools
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from benchmarks import accounts, damage
from orchestrator.conductor import decision_hash
from orchestrator.ledger import LEDGER, Event, read_ledger
from orchestrator.members import members_of
from trainables.config_file import dump_yaml

LIMIT_S = 600
"""What a sweep may take until its next event, or its end."""
POLL_S, LOOK_S = 0.001, 0.5
"""From one look at the ledger to the next: short, because an export is over soon; and from one at the processes."""
DAMAGES = ("torn", "flipped", "scratch", "orphans")
SPACE = {
    "method.driver_weight": {"type": "float", "low": 0.0001, "high": 1.0, "log": True, "atom": 0.0},
    "method.meta_lr": {"type": "float", "low": 0.0001, "high": 0.1, "log": True},
}
WIDTH = {"method.hidden_width": {"type": "int", "low": 4, "high": 64, "log": True}}
TRIAL = {
    "epochs": 8,
    "data": {
        "source": "digits",
        "imbalance_factor": 50,
        "n_max": 90,
        "meta_per_class": 10,
        "val_per_class": 24,
        "test_per_class": 50,
    },
    "classifier": {"name": "small_cnn", "widths": [4, 8]},
    "method": {"name": "difficulty_net"},
    "optim": {"lr": 0.05, "batch_size": 32},
}
COMMON = {
    "failures": {"max_failed_fraction": 1.0},
    "resources": {"max_concurrent": 2, "silence_limit_s": 5},
    "tracking": {"mlflow": False},
}


class Kind(NamedTuple):
    """A kind of sweep."""

    synthetic: bool
    deterministic: bool
    sweep: dict[str, Any]
    """What differs from COMMON."""


KINDS = {
    "digits": Kind(
        False,
        True,
        {
            "trial": TRIAL | {"epochs": 6},
            "space": SPACE | WIDTH,
            "search": {"trials": 10, "deterministic": True, "references": {"plain": {"method.name": "cross_entropy"}}},
            "scheduler": {"name": "asha", "grace_epochs": 2, "reduction_factor": 2},
            "resources": {"max_concurrent": 2, "silence_limit_s": 60},
        },
    ),
    "promotion": Kind(
        True,
        True,
        {
            "trial": TRIAL,
            "space": SPACE | WIDTH,
            "search": {"trials": 12, "deterministic": True},
            "scheduler": {"name": "promotion", "grace_epochs": 2, "reduction_factor": 2},
        },
    ),
    "pbt": Kind(
        True,
        True,
        {
            "trial": TRIAL,
            "space": SPACE,
            "search": {"trials": 8, "deterministic": True, "sampler": "random"},
            "scheduler": {"name": "pbt", "interval_epochs": 2},
        },
    ),
    "asynchronous": Kind(
        True,
        False,
        {
            "trial": TRIAL,
            "space": SPACE | WIDTH,
            "search": {"trials": 14},
            "scheduler": {"name": "asha", "grace_epochs": 2, "reduction_factor": 2},
            "tracking": {"mlflow": True},
        },
    ),
}


@dataclass
class Outcome:
    """A row of the table: what became of a sweep."""

    sweep: str
    kills: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    trials: int = 0
    lost: int = 0
    doubled: int = 0
    repeated: int = 0
    decisions_equal: bool | None = None
    running: list[int | None] = field(default_factory=list)
    """In the ledger, the study and MLflow."""
    seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)
    """Everything that is, in words."""


class Moment(NamedTuple):
    """When a sweep is killed: a while after something stands in its ledger."""

    words: str
    reached: Callable[[bytes], bool]
    """Takes what the process has written into the ledger."""
    delay_s: float = 0.0
    latest_s: float = math.inf
    """The moment comes after so many seconds, if it has not come before."""
    midway: bool = False
    """Whether the sweep is in the middle of its trials then."""


class Killed(NamedTuple):
    """What is left of a sweep that was killed."""

    events: list[Event]
    flipped: str | None
    """The trial whose newest checkpoint was damaged then."""


class Sweep:
    """A sweep in its folder, with a process of its own while it runs."""

    def __init__(self, base: Path, name: str, kind: Kind, only: str = "") -> None:
        self.kind, self.name, self.folder = kind, name, base / "results" / name / "sweep"
        self.scratch, self.faults = base / "scratch" / name, base / "faults" / name
        for folder in (self.scratch, self.faults, self.folder.parent):
            folder.mkdir(parents=True)
        self._file, self.log = base / f"{name}.yaml", base / f"{name}.log"
        self._file.write_text(dump_yaml(COMMON | kind.sweep))
        # Ray's sockets have long names, so its own folder has a short one.
        own = {
            "TMPDIR": str(self.scratch),
            "RAY_TMPDIR": str(base),
            "TAILTUNE_FAULTS": str(self.faults),
            "TAILTUNE_FAULTS_ONLY": only,
        }
        self._environment = os.environ | own | {"OMP_NUM_THREADS": "1"}
        self._started: dict[int, psutil.Process] = {}
        self._looked = 0.0
        self.process: subprocess.Popen[str] | None = None

    def begin(self, log: Path | None = None) -> "subprocess.Popen[str]":
        """Starts the sweep or, where its ledger holds anything, resumes it; returns the process."""
        module = "benchmarks.synthetic" if self.kind.synthetic else "orchestrator.sweep"
        command = [sys.executable, "-m", module, str(self._file), "--results", str(self.folder.parent), "--name", "sweep"]
        if self.ledger():
            command.append("--resume")
        with (log or self.log).open("a") as output:
            return subprocess.Popen(
                command, env=self._environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, text=True
            )

    def ledger(self) -> bytes:
        """The bytes of the ledger, if there is one."""
        try:
            return (self.folder / LEDGER).read_bytes()
        except FileNotFoundError:
            return b""

    def _size(self) -> int:
        try:
            return (self.folder / LEDGER).stat().st_size
        except FileNotFoundError:
            return 0

    def run_until(self, moment: Moment | None) -> bool:
        """Starts or resumes the sweep; returns whether the moment came before the end.

        Raises:
            TimeoutError: when the sweep does nothing any more.
        """
        before, began = self.ledger(), time.monotonic()
        intact = before[: before.rfind(b"\n") + 1]  # a torn line will be cut off
        self.process = self.begin()
        seen, changed, reached = len(before), began, False
        while self.process.poll() is None:
            if (size := self._size()) != seen:
                seen, changed, reached = size, time.monotonic(), bool(moment and moment.reached(self.ledger()[len(intact) :]))
            if moment and (reached or time.monotonic() - began > moment.latest_s):
                time.sleep(moment.delay_s)
                return self.process.poll() is None
            if time.monotonic() - changed > LIMIT_S:
                self.kill()
                raise TimeoutError(f"{self.name} has written nothing for {LIMIT_S} s; see {self.log}")
            if time.monotonic() - self._looked > LOOK_S:
                self._look_at_children()
            time.sleep(POLL_S)
        return False

    def kill(self) -> None:
        """Kills the sweep's own process; what it started has to notice by itself."""
        assert self.process is not None
        self._look_at_children()
        self.process.kill()
        self.process.wait()

    def refuses_a_second(self) -> str | None:
        """Has a second process run the same sweep while the first one is stopped; returns what is wrong with its answer."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGSTOP)
        log, before = self.scratch / "second.log", self.ledger()
        second = self.begin(log)
        try:
            code = second.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            second.kill()
            code = second.wait()
        if code == 2 and "is in use by another process; nothing was changed" in log.read_text() and self.ledger() == before:
            return None
        return f"a second process was not refused: exit code {code}, {log.read_text()[-500:]}"

    def sweep_up(self) -> None:
        """Ends what is left of the processes that were started. Some of Ray's own wait a minute for a server that is gone."""
        for process in [self.process, *self._started.values()] if self.process else []:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def _look_at_children(self) -> None:
        assert self.process is not None
        self._looked = time.monotonic()
        with contextlib.suppress(psutil.NoSuchProcess):
            self._started |= {child.pid: child for child in psutil.Process(self.process.pid).children(recursive=True)}


class Campaign:
    """Kills, damages and accounts for sweeps.

    Args:
        base: where all results go.
        kinds: the sweeps.
        seed: of moments and damages.
        tell: takes a line for whoever watches.
    """

    def __init__(self, base: Path, kinds: dict[str, Kind], seed: int, tell: Callable[[str], None]) -> None:
        self._base, self._kinds, self._tell, self._rng = base, kinds, tell, random.Random(seed)
        self._due = itertools.cycle(DAMAGES)
        self._postponed: list[str] = []
        self._references: dict[str, list[Event]] = {}
        self._tried_a_second = False

    def run(self, kills: int) -> list[Outcome]:
        """Disturbs one sweep of each kind, and more where they end before there were as many kills."""
        outcomes: list[Outcome] = []
        for number, name in enumerate(itertools.cycle(self._kinds)):
            left = kills - sum(outcome.kills for outcome in outcomes)
            further = number >= len(self._kinds)
            if left <= 0 or (further and not outcomes[-1].kills):
                return outcomes
            outcomes.append(
                self._disturb(name, number, min(left, 5) if further else math.ceil(left / (len(self._kinds) - number)))
            )
        raise AssertionError("a cycle has no end")

    def _reference(self, name: str) -> list[Event]:
        """The events of the undisturbed sweep."""
        if name not in self._references:
            began = time.monotonic()
            sweep = Sweep(self._base, f"{name}-undisturbed", self._kinds[name], only="permanent")
            try:
                sweep.run_until(None)
            finally:
                sweep.sweep_up()
            assert sweep.process is not None
            if sweep.process.returncode:
                raise RuntimeError(f"the undisturbed sweep {name} ended with an error:\n{sweep.log.read_text()[-2000:]}")
            self._references[name] = read_ledger(sweep.folder)
            self._tell(f"{name}: undisturbed, {len(self._references[name])} events in {time.monotonic() - began:.0f} s")
        return self._references[name]

    def _disturb(self, name: str, suffix: int, kills: int) -> Outcome:
        """Of each sweep that is killed more than twice, one kill comes while Ray starts, and the last one while it ends."""
        reference, began = self._reference(name), time.monotonic()
        outcome = Outcome(name)
        sweep = Sweep(self._base, f"{name}-{suffix}", self._kinds[name])
        past: list[Killed] = []
        early = self._rng.randrange(3) if kills > 2 else None
        try:
            for number in range(kills):
                if number == early:
                    moment = self._early_moment()
                elif number == kills - 1 and kills > 1:
                    moment = self._late_moment()
                else:
                    left = len(reference) - (len(past[-1].events) if past else 0)
                    moment = self._moment_midway(max(left, 10) / (kills - number))
                if not sweep.run_until(moment):
                    break
                self._kill(sweep, outcome, moment, past)
            else:
                sweep.run_until(None)
        except TimeoutError as error:
            outcome.wrong.append(str(error))
            return outcome
        finally:
            sweep.sweep_up()
        outcome.seconds = round(time.monotonic() - began, 1)
        assert sweep.process is not None
        if sweep.process.returncode:
            outcome.wrong.append(f"the last process ended with exit code {sweep.process.returncode}")
        else:
            self._settle(sweep, outcome, past, reference)
        self._tell(f"{name}: over after {outcome.kills} kills and {outcome.seconds:.0f} s; wrong: {outcome.wrong or 'nothing'}")
        return outcome

    def _early_moment(self) -> Moment:
        wait_s = self._rng.uniform(0.5, 12)
        return Moment(f"before an event, after {wait_s:.1f} s", lambda new: b"\n" in new, latest_s=wait_s)

    def _moment_midway(self, mean_events: float) -> Moment:
        count, delay_s = 1 + int(mean_events * self._rng.uniform(0.1, 1.3)), self._rng.uniform(0, 0.3)
        words = f"after {count} events and {delay_s:.2f} s"
        return Moment(words, lambda new: new.count(b"\n") >= count, delay_s, midway=True)

    def _late_moment(self) -> Moment:
        event = self._rng.choice(["test_read", "export", "sweep_end"])
        return Moment(f"at {event}", lambda new: f'"event":"{event}"'.encode() in new)

    def _kill(self, sweep: Sweep, outcome: Outcome, moment: Moment, past: list[Killed]) -> None:
        """Kills, counts, damages."""
        done: list[str] = []
        if not self._tried_a_second and moment.midway:
            self._tried_a_second = True
            outcome.faults["second process"] += 1
            outcome.wrong += filter(None, [sweep.refuses_a_second()])
            done.append("second process")
        sweep.kill()
        outcome.kills += 1
        events = read_ledger(sweep.folder) if sweep.ledger() else []
        flipped = None
        if events and events[-1]["event"] != "sweep_end":  # nobody goes on with a sweep that is over
            kind = self._postponed.pop() if self._postponed else next(self._due)
            flipped, words = self._damage(kind, sweep, events, outcome)
            done.append(words)
        past.append(Killed(events, flipped))
        members = members_of(events).values()
        ended = f"{sum(member.state == 'ended' for member in members)} of {len(members)} trials ended"
        what = ", ".join(done) or "no damage"
        self._tell(f"{outcome.sweep}: kill {outcome.kills} {moment.words}: {len(events)} events, {ended}; {what}")

    def _damage(self, kind: str, sweep: Sweep, events: list[Event], outcome: Outcome) -> tuple[str | None, str]:
        """Does one kind of damage; returns the trial whose checkpoint it was, and what was done in words."""
        if kind == "flipped":
            flipped = damage.flip(sweep.folder, events, self._rng)
            if flipped is None:
                self._postponed.append(kind)
                return self._damage(next(self._due), sweep, events, outcome)
            outcome.faults["flipped"] += 1
            return flipped, f"a bit flipped in the checkpoint of {flipped}"
        outcome.faults[kind] += 1
        if kind == "torn":
            return None, damage.tear(sweep.folder)
        return None, damage.drop_scratch(sweep.scratch) if kind == "scratch" else damage.leave_orphans(sweep.folder)

    def _settle(self, sweep: Sweep, outcome: Outcome, past: list[Killed], reference: list[Event]) -> None:
        """Fills in what the sweep's folder says at the end."""
        from benchmarks.synthetic import FAULTS, fault_of
        from trainables.config import TrialConfig

        events, tables = read_ledger(sweep.folder), accounts.read_tables(sweep.folder)
        outcome.trials = len(members_of(events))
        lost = sorted({what for killed in past for what in accounts.lost(killed.events, events, tables)})
        doubled = accounts.doubled(events, tables)
        outcome.lost, outcome.doubled = len(lost), len(doubled)
        outcome.wrong += [f"lost: {what}" for what in lost] + [f"doubled: {what}" for what in doubled]
        for number, killed in enumerate(past):
            until = len(past[number + 1].events) if number + 1 < len(past) else len(events)
            for trial_id, count in accounts.repeated(killed.events, events[len(killed.events) : until]).items():
                outcome.repeated = max(outcome.repeated, count)
                if count > accounts.MOST_REPEATED + (trial_id == killed.flipped):
                    outcome.wrong.append(f"{trial_id} repeated {count} epochs after kill {number + 1}")
        if sweep.kind.deterministic:
            outcome.decisions_equal = decision_hash(events) == decision_hash(reference)
            if not outcome.decisions_equal:
                outcome.wrong.append("other decisions than in the undisturbed sweep")
        mlflow = sweep.kind.sweep.get("tracking", COMMON["tracking"])["mlflow"]
        uri = f"sqlite:///{sweep.folder.parent / 'mlflow.db'}"
        running = [len(accounts.running_in_ledger(events)), accounts.running_in_study(events)]
        outcome.running = [*running, accounts.running_in_mlflow(uri) if mlflow else None]
        outcome.wrong += [f"RUNNING (ledger, study, MLflow): {outcome.running}"] if any(outcome.running) else []
        configs = {e["trial_id"]: TrialConfig.model_validate(e["config"]) for e in events if e["event"] == "suggest"}
        faults = {trial_id: fault_of(config) if sweep.kind.synthetic else None for trial_id, config in configs.items()}
        transient = [name for name, fault in FAULTS.items() if not fault.permanent]
        outcome.wrong += accounts.unexplained(events, faults, transient)
        outcome.wrong += [f"still there: {path}" for path in damage.orphans_left(sweep.folder)]
        outcome.faults.update(path.name.partition("-")[0] for path in sweep.faults.iterdir())
        statuses = Counter(member.status for member in members_of(events).values())
        outcome.faults.update({"memory": statuses["failed"], "diverged": statuses["diverged"]})
        if not (sweep.folder / "best" / "model.safetensors").is_file() or not events[-1].get("complete"):
            outcome.wrong.append("the sweep says that it is done, but has not exported its best trial")


def table(outcomes: list[Outcome]) -> str:
    """The outcomes as lines of text."""
    answers = {True: "yes", False: "no", None: "-"}
    head = ["sweep", "kills", "trials", "lost", "doubled", "repeated", "decisions", "running", "seconds", "faults"]
    rows = [
        [
            outcome.sweep,
            *(str(value) for value in (outcome.kills, outcome.trials, outcome.lost, outcome.doubled, outcome.repeated)),
            answers[outcome.decisions_equal],
            "/".join("-" if count is None else str(count) for count in outcome.running),
            f"{outcome.seconds:.0f}",
            ", ".join(f"{count} {name}" for name, count in sorted(outcome.faults.items()) if count),
        ]
        for outcome in outcomes
    ]
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in [head, *rows]]
    wrong = [f"{outcome.sweep}: {what}" for outcome in outcomes for what in outcome.wrong]
    return "\n".join([*lines, "", *(wrong or ["nothing is wrong"])])


def main(arguments: list[str], kinds: dict[str, Kind] = KINDS) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="how often sweeps are killed, all together (default: 20)")
    parser.add_argument(
        "--sweeps", default=",".join(kinds), help=f"which kinds, or how many of them (default: {','.join(kinds)})"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments and damages (default: 0)")
    parser.add_argument("--folder", type=Path, help="keep all results there, in a folder with a short name (default: keep none)")
    parser.add_argument("--json", action="store_true", help="print the outcomes as JSON")
    given = parser.parse_args(arguments)
    names = list(kinds)[: int(given.sweeps)] if given.sweeps.isdigit() else given.sweeps.split(",")
    if given.kills < 1 or not names or not set(names) <= set(kinds):
        parser.error(
            f"--kills is {given.kills}, --sweeps {given.sweeps}; allowed: at least 1, and 1 to {len(kinds)} or {list(kinds)}"
        )
    base = given.folder or Path(tempfile.mkdtemp(prefix="chaos-"))
    base.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()

    def tell(line: str) -> None:
        print(f"[{time.monotonic() - began:4.0f} s] {line}", file=sys.stderr if given.json else sys.stdout, flush=True)

    try:
        chosen = {name: kinds[name] for name in names}
        outcomes = Campaign(base.resolve(), chosen, given.seed, tell).run(given.kills)
    finally:
        if not given.folder:
            shutil.rmtree(base, ignore_errors=True)
    print(json.dumps([vars(outcome) for outcome in outcomes]) if given.json else f"\n{table(outcomes)}", flush=True)
    return 1 if any(outcome.wrong for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
