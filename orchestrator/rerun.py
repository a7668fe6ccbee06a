"""Trains a trial of a sweep again from its ledger, and says whether the numbers are the same.

python -m orchestrator.rerun RESULTS/NAME TRIAL
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from orchestrator.config.sweep_config import SweepConfig
from orchestrator.ledger.events import Event, Kind
from orchestrator.ledger.ledger import last, read_ledger, start_of
from orchestrator.ledger.trial_states import TrialState, TrialStates, trial_states_of
from orchestrator.outcome.repeat import Repeat, compare, explanations
from orchestrator.run.again import Again, Trainer, recorded_metrics, train_again
from orchestrator.run.facts import own_program
from trainables.command_line import ended_like_ctrl_c, steady_output, typed_path
from trainables.config_file import ConfigError, Origin, check
from trainables.machine import num_cores

MOST_SHOWN = 8
"""Metrics that are listed where numbers differ."""


def main(arguments: list[str]) -> int:
    """Returns the exit code: 0 when all numbers are the same, 1 when they are not, 2 when the input was wrong."""
    parser = argparse.ArgumentParser(prog="python -m orchestrator.rerun", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=typed_path, help="results folder of a sweep or an ablation")
    parser.add_argument("trial", metavar="TRIAL", help="as t0007")
    with steady_output(), ended_like_ctrl_c():
        given = parser.parse_args(arguments)
        try:
            return rerun(given.folder, given.trial)
        except (ConfigError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("\ninterrupted; nothing was written", file=sys.stderr)
            return 130


def rerun(folder: Path, trial_id: str) -> int:
    """Trains a trial again and prints the verdict. Returns the exit code.

    Raises:
        ConfigError: when there is no such sweep or trial, or this machine cannot train it.
    """
    events = read_ledger(folder)
    start_of(events)
    config = check(SweepConfig, last(events, Kind.SWEEP_START, Kind.SWEEP_RESUME)["config"], Origin(str(folder)))
    trials = trial_states_of(events)
    trial, recorded = _trial(folder, trials, trial_id), recorded_metrics(events, trial_id)
    if not recorded and not trial.own_fault:
        raise ConfigError(f"{folder}: {trial_id} has no epoch ({trial.status}), so there is nothing to compare with")
    until = max(recorded, default=0) + trial.own_fault  # its own numbers ended it in the epoch that followed
    with tempfile.TemporaryDirectory() as scratch, trainer_for(config, Path(scratch)) as trainer:
        device = {} if config.resources.gpus_per_worker else {"device": "cpu"}  # Ray showed it no GPU
        again = train_again(trainer, trials, trial_id, until, Path(scratch), device, _tell)
    found = compare(recorded, again.metrics)
    is_same = found.is_identical and found.epochs == len(recorded) and bool(again.ended) == trial.own_fault
    print("\n".join(verdict(trial, found, again, len(recorded))))
    if not is_same:
        print("what may explain it:")
        print("\n".join(f"  {line}" for line in _explanations(events, config, trial)))
    return 0 if is_same else 1


@contextmanager
def trainer_for(config: SweepConfig, scratch: Path) -> Iterator[Trainer]:
    """Trains as the sweep did: in this process, or with as many workers.

    Args:
        config: of the sweep.
        scratch: a folder that is removed afterwards.
    """
    resources = config.resources
    workers = resources.worker_range()[1]
    if workers == 1:
        from trainables.trial_run import TrialRun

        yield TrialRun()
        return
    from orchestrator.run.connection import connected
    from trainables.workers.worker_group import GroupConfig, WorkerGroup

    share = num_cores() / (workers + 1)  # what Ray counts; how many threads compute is a setting of the trial
    group = GroupConfig(
        min_workers=workers,
        max_workers=workers,
        cpus_per_worker=min(1.0, share),
        gpus_per_worker=resources.gpus_per_worker,
        device=config.trial.device,
        heartbeat_timeout_s=resources.heartbeat_timeout_s,
        start_s=resources.start_limit_s,
        restarts=resources.restarts,
    )
    with connected(None):
        trainer = WorkerGroup(group, scratch)
        try:
            yield trainer
        finally:
            trainer.close()


def verdict(trial: TrialState, found: Repeat, again: Again, epochs: int) -> list[str]:
    """The verdict in words, a line each.

    Args:
        trial: as its sweep had it.
        found: what the comparison says.
        again: the trial that was trained again.
        epochs: that the ledger holds.
    """
    lines = []
    if found.is_identical and found.epochs:
        lines.append(f"{trial.trial_id}: bit-identical in {found.epochs} epochs ({found.numbers} numbers)")
    elif found.epochs:
        epoch = found.first[0].epoch
        lines.append(f"{trial.trial_id}: not the same from epoch {epoch} on, of {found.epochs}")
        for difference in found.first[:MOST_SHOWN]:
            there, here = (_number(value) for value in (difference.recorded, difference.again))
            lines.append(f"  {difference.metric} {there} in the ledger, {here} now")
        worst = sorted(found.largest.items(), key=lambda pair: -pair[1])[:MOST_SHOWN]
        lines.append("largest differences: " + ", ".join(f"{name} {size:.3g}" for name, size in worst))
    if found.epochs < epochs:
        lines.append(f"{trial.trial_id}: the ledger has {epochs} epochs, now there are {found.epochs}")
    if again.ended:
        lines.append(f"now it {'ended again' if trial.own_fault else 'ended'} by its own numbers: {again.ended}")
    elif trial.own_fault:
        lines.append(f"in the sweep its own numbers ended it, and now they do not: {trial.stop_reason}")
    return lines


def _number(value: float | None) -> str:
    return "no number" if value is None else f"{value!r}"


def _trial(folder: Path, trials: TrialStates, trial_id: str) -> TrialState:
    if trial_id not in trials:
        known = f"{next(iter(trials))} to {next(reversed(trials))}" if trials else "none"
        raise ConfigError(f"command line: {folder} has no trial {trial_id!r}; allowed: {known}")
    return trials[trial_id]


def _explanations(events: Sequence[Event], config: SweepConfig, trial: TrialState) -> list[str]:
    """What is known that may have changed the numbers."""
    found = []
    if config.resources.gpus_per_worker and not config.trial.compute.deterministic:
        found.append("a GPU computes the same numbers in every run only with trial.compute.deterministic")
    here = own_program().facts
    for event in events:
        if event["event"] == Kind.SWEEP_START or event["event"] == Kind.SWEEP_RESUME:
            found += [line for line in explanations(event, here) if line not in found]
        if event["event"] == Kind.SWEEP_RESUME and "note" in event:
            found.append(f"the sweep went on with other settings: {event['note']}")
    lowest, highest = config.resources.worker_range()
    if lowest != highest:
        found.append(f"its workers were {lowest} to {highest} in number, and now they are {highest}")
    if trial.parent:
        found.append(f"it continued from {trial.parent['trial_id']}, which was trained again as well")
    return found or ["nothing that the ledger holds: program, packages and machine are the same"]


def _tell(trial_id: str, epoch: int, until: int) -> None:
    print(f"{trial_id}: epoch {epoch}/{until}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
