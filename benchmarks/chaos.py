"""Kills sweeps at random moments, resumes them, and counts what was lost, done twice or decided differently.

    python -m benchmarks.chaos [--kills 20] [--sweeps digits,promotion,pbt,asynchronous] [--seed 0] [--folder DIR] [--json]

Each kind of sweep runs once undisturbed. Then the sweep runs again, and only its own process gets a SIGKILL: before the first
event, a fraction of a second after a random number of events, or during the export of the best trial. Every other time in the
middle, Ctrl-C is pressed twice instead. The sweep is resumed until it ends. Between a kill and the resumption, the folder is
damaged: lines that a power cut takes (all since the last fsync), torn lines, a flipped bit in a checkpoint, lost files, orphaned
files. Trials of synthetic sweeps diverge, run out of memory, raise errors, hang and die. Once, a second process tries to run the
same sweep.

accounts.py counts `lost`, `doubled`, `repeated` and `running`; `running` is counted in the ledger, the study and MLflow.
`decisions` says whether a deterministic sweep made the same decisions as the undisturbed sweep. The exit code is 1 when anything
is wrong.
"""

import argparse
import itertools
import json
import math
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from benchmarks import accounts, damage
from benchmarks.victims import COMMON, KINDS, Kind, Moment, Sweep
from orchestrator.decide.conductor import decision_hash
from orchestrator.ledger.events import Event
from orchestrator.ledger.ledger import read_ledger
from orchestrator.ledger.trial_states import State, trial_states_of

DAMAGES = ("power", "torn", "flipped", "scratch", "orphans")
WAYS = ("killed", "Ctrl-C twice")
PRESS_S = (0.0, 0.5)
"""Shortest and longest time between two Ctrl-C, in seconds."""


@dataclass
class Outcome:
    """The outcome of one sweep, a row of the table."""

    sweep: str
    kills: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    trials: int = 0
    lost: int = 0
    doubled: int = 0
    repeated: int = 0
    decisions_equal: bool | None = None
    running: list[int | None] = field(default_factory=list)
    """Trials left running in the ledger, the study and MLflow; None where MLflow is not used."""
    seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)
    """Everything that is wrong, in words."""


class Killed(NamedTuple):
    """The state of a sweep after a kill."""

    events: list[Event]
    """What the ledger holds now."""
    before: list[Event]
    """What it held before a power cut took its last lines."""
    flipped: str | None
    """The trial whose newest checkpoint was damaged after the kill."""


class Campaign:
    """Kills, damages and accounts for sweeps.

    Args:
        base: folder of all results.
        kinds: the kinds of sweeps by name.
        seed: of the random moments and damages.
        tell: prints a line.
    """

    def __init__(self, base: Path, kinds: dict[str, Kind], seed: int, tell: Callable[[str], None]) -> None:
        self._base, self._kinds, self._tell, self._rng = base, kinds, tell, random.Random(seed)
        self._due, self._ways = itertools.cycle(DAMAGES), itertools.cycle(WAYS)
        self._postponed: list[str] = []
        self._references: dict[str, list[Event]] = {}
        self._tried_a_second = False

    def run(self, kills: int) -> list[Outcome]:
        """Disturbs one sweep of each kind, and further sweeps until there were `kills` kills."""
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
        """The events of the undisturbed sweep, which runs once."""
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
            self._references[name] = list(read_ledger(sweep.folder))
            self._tell(f"{name}: undisturbed, {len(self._references[name])} events in {time.monotonic() - began:.0f} s")
        return self._references[name]

    def _disturb(self, name: str, suffix: int, kills: int) -> Outcome:
        """Runs a sweep and kills it up to `kills` times.

        With more than two kills, one of the first three comes while Ray starts. With more than one, the last comes while the
        sweep ends.
        """
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
        if self._rng.random() < 0.5:  # at once after an epoch, whose line is hardly ever on the disk yet
            words, kind, delay_s = f"after an epoch and {count} events", b'"event":"epoch"', 0.0
        else:
            words, kind = f"after {count} events and {delay_s:.2f} s", b""

        def reached(new: bytes) -> bool:
            lines = new.splitlines()
            return len(lines) >= count and kind in lines[-1]

        return Moment(words, reached, delay_s, midway=True)

    def _late_moment(self) -> Moment:
        event = self._rng.choice(["test_read", "export", "sweep_end"])
        return Moment(f"at {event}", lambda new: f'"event":"{event}"'.encode() in new)

    def _kill(self, sweep: Sweep, outcome: Outcome, moment: Moment, past: list[Killed]) -> None:
        """Ends the sweep's process, counts the kill and damages the folder."""
        done: list[str] = []
        if not self._tried_a_second and moment.midway:
            self._tried_a_second = True
            outcome.faults["second process"] += 1
            outcome.wrong += filter(None, [sweep.refuses_a_second()])
            done.append("second process")
        if moment.midway and next(self._ways) == "Ctrl-C twice":
            outcome.faults["Ctrl-C twice"] += 1
            outcome.wrong += filter(None, [sweep.interrupt_twice(self._rng.uniform(*PRESS_S))])
            done.append("Ctrl-C twice")
        else:
            sweep.kill()
        outcome.kills += 1
        events = before = list(read_ledger(sweep.folder)) if sweep.ledger() else []
        flipped = None
        if events and events[-1]["event"] != "sweep_end":  # a sweep that is over is not resumed
            kind = self._postponed.pop() if self._postponed else next(self._due)
            flipped, words = self._damage(kind, sweep, events, outcome)
            done.append(words)
            events = list(read_ledger(sweep.folder))
        past.append(Killed(events, before, flipped))
        trials = trial_states_of(events).values()
        ended = f"{sum(trial.state == State.ENDED for trial in trials)} of {len(trials)} trials ended"
        what = ", ".join(done) or "no damage"
        self._tell(f"{outcome.sweep}: kill {outcome.kills} {moment.words}: {len(events)} events, {ended}; {what}")

    def _damage(self, kind: str, sweep: Sweep, events: list[Event], outcome: Outcome) -> tuple[str | None, str]:
        """Does one kind of damage. Returns the trial whose checkpoint was damaged, if any, and what was done, in words."""
        if kind == "flipped":
            flipped = damage.flip(sweep.folder, events, self._rng)
            if flipped is None:
                # No checkpoint can be damaged now; another kind of damage takes its turn.
                self._postponed.append(kind)
                return self._damage(next(self._due), sweep, events, outcome)
            outcome.faults["flipped"] += 1
            return flipped, f"a bit flipped in the checkpoint of {flipped}"
        outcome.faults[kind] += 1
        if kind == "power":
            return None, damage.cut_power(sweep.folder)
        if kind == "torn":
            return None, damage.tear(sweep.folder)
        return None, damage.drop_scratch(sweep.scratch) if kind == "scratch" else damage.leave_orphans(sweep.folder)

    def _settle(self, sweep: Sweep, outcome: Outcome, past: list[Killed], reference: list[Event]) -> None:
        """Fills in `outcome` from the sweep's folder at the end."""
        from benchmarks.synthetic import FAULTS, fault_of
        from trainables.config import TrialConfig

        events, tables = list(read_ledger(sweep.folder)), accounts.read_tables(sweep.folder)
        outcome.trials = len(trial_states_of(events))
        lost = sorted(
            {what for killed in past for what in accounts.lost(killed.events, events, tables)}
            | {what for killed in past for what in accounts.missing(killed.before, events, tables)}
        )
        doubled = accounts.doubled(events, tables)
        outcome.lost, outcome.doubled = len(lost), len(doubled)
        outcome.wrong += [f"lost: {what}" for what in lost] + [f"doubled: {what}" for what in doubled]
        for number, killed in enumerate(past):
            until = len(past[number + 1].events) if number + 1 < len(past) else len(events)
            for trial_id, count in accounts.repeated(killed.before, events[len(killed.events) : until]).items():
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
        statuses = Counter(trial.status for trial in trial_states_of(events).values())
        outcome.faults.update({"memory": statuses["failed"], "diverged": statuses["diverged"]})
        if not (sweep.folder / "best" / "model.safetensors").is_file() or not events[-1].get("complete"):
            outcome.wrong.append("the sweep says that it is done, but has not exported its best trial")


def table(outcomes: list[Outcome]) -> str:
    """The outcomes as a table of text, followed by everything that is wrong."""
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
    parser.add_argument("--kills", type=int, default=20, help="number of kills, over all sweeps (default: 20)")
    parser.add_argument(
        "--sweeps", default=",".join(kinds), help=f"kinds of sweeps, or number of kinds (default: {','.join(kinds)})"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments and damages (default: 0)")
    parser.add_argument("--folder", type=Path, help="folder that keeps all results; needs a short name (default: keep none)")
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
