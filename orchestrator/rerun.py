"""Trains a trial of a sweep again from its ledger, and says whether the numbers are the same.

python -m orchestrator.rerun RESULTS/NAME TRIAL [--export [--out DIR]] [--json]
"""

import argparse
import functools
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Tables and torch take seconds to import: a wrong input is answered before any of them is loaded.
from orchestrator import parsers
from orchestrator.config.sweep_config import SweepConfig
from orchestrator.ledger.events import Kind
from orchestrator.ledger.last_attempts import last_attempts
from orchestrator.ledger.ledger import Ledger, last, read_ledger, start_of
from orchestrator.ledger.trial_states import Checkpoint, TrialState, check_known, trial_states_of
from trainables.checkpoint import DamagedCheckpoint
from trainables.command_line import answered
from trainables.config_file import ConfigError, Origin, check
from trainables.words import plural

if TYPE_CHECKING:
    from orchestrator.outcome.repeat import Repeat
    from orchestrator.run.again import Again, Trainer

MOST_SHOWN = 8
"""Metrics that are listed where numbers differ."""


def main(arguments: list[str]) -> int:
    """Returns the exit code: 0 when all numbers are the same, 1 when they are not, 2 when the input was wrong."""
    return answered(parsers.rerun(), arguments, _rerun)


def _rerun(given: argparse.Namespace, answer: dict[str, Any]) -> int:
    answer |= {"folder": str(given.folder), "trial_id": given.trial, "identical": None, "exported": None}
    try:
        return rerun(given.folder, given.trial, answer, given.export, given.out)
    except (ConfigError, OSError, DamagedCheckpoint) as error:
        print(f"error: {error}", file=sys.stderr)
        answer["error"] = str(error)
        return 2 if isinstance(error, ConfigError | FileExistsError) else 1
    except KeyboardInterrupt:
        print("\ninterrupted; nothing was written", file=sys.stderr)
        return 130


def rerun(folder: Path, trial_id: str, answer: dict[str, Any], is_exported: bool = False, out: Path | None = None) -> int:
    """Trains a trial again and prints the verdict. Returns the exit code.

    Args:
        folder: results folder.
        trial_id: the trial.
        answer: is filled with the verdict, for programs.
        is_exported: whether its model is exported, if the numbers are the same.
        out: the new folder of the export; None means `folder`/export_TRIAL.

    Raises:
        ConfigError: when there is no such sweep or trial, or this machine cannot train it.
    """
    events = read_ledger(folder)
    start_of(events)
    config = check(SweepConfig, last(events, Kind.SWEEP_START, Kind.SWEEP_RESUME)["config"], Origin(str(folder)))
    trials = trial_states_of(events)
    check_known(trial_id, list(trials), str(folder))
    trial = trials[trial_id]
    recorded = {event["epoch"]: event["metrics"] for event in last_attempts(events) if event["trial_id"] == trial_id}
    if not recorded and not trial.own_fault:
        raise ConfigError(f"{folder}: {trial_id} has no epoch ({trial.status}), so there is nothing to compare with")
    if is_exported:
        from orchestrator.outcome.choice import certain, check_new
        from orchestrator.outcome.tables import trial_rows

        check_new(certain(folder, trial_rows(events), trials, trial_id, out))
    elif out is not None:
        raise ConfigError(f"command line: --out is {out}, but --export is missing; allowed: both, or none of them")
    from orchestrator.outcome.repeat import compare
    from orchestrator.run.again import explain, train_again, trainer_for

    until = max(recorded, default=0) + trial.own_fault  # its own numbers ended it in the epoch that followed
    with tempfile.TemporaryDirectory() as scratch, trainer_for(config, Path(scratch)) as trainer:
        device = {} if config.resources.gpus_per_worker else {"device": "cpu"}  # Ray showed it no GPU
        again = train_again(trainer, trials, trial_id, until, Path(scratch), device, _tell)
        found = compare(recorded, again.metrics)
        is_whole = found.epochs == len(recorded) and not again.origin_ended
        is_same = found.is_identical and is_whole and bool(again.ended) == trial.own_fault
        print("\n".join(verdict(trial, found, again, len(recorded))))
        answer |= {
            "identical": is_same,
            "epochs": found.epochs,
            "numbers": found.numbers,
            "ended": again.ended or again.origin_ended or None,
        }
        answer |= {"first_differences": [difference._asdict() for difference in found.first], "largest": found.largest}
        if is_same and is_exported:
            answer["exported"] = export(folder, trial_id, trainer, out)
            print(f"exported {answer['exported']}")
    if not is_same:
        answer["explanations"] = explain(events, config, trial)
        print("what may explain it:")
        print("\n".join(f"  {line}" for line in answer["explanations"]))
        if is_exported:
            print("nothing was exported: the model would not be the one whose numbers the ledger holds")
    return 0 if is_same else 1


def export(folder: Path, trial_id: str, trainer: "Trainer", out: Path | None) -> Path:
    """Exports the trial that a trainer holds, in place of a state that the sweep has not kept. Returns the new folder.

    Raises:
        ConfigError: when another process writes the ledger.
        FileExistsError: when the folder exists already.
    """
    from orchestrator.outcome.best import export_choices, source_of
    from orchestrator.outcome.choice import certain
    from orchestrator.report.suspects_sheet import examine_here, list_suspects

    with Ledger(folder) as ledger, tempfile.TemporaryDirectory(prefix="rerun-", dir=folder) as scratch:
        note, list_them = (lambda text: print(f"note: {text}", file=sys.stderr)), functools.partial(list_suspects, examine_here)
        source = source_of(folder, ledger, note=note, list_suspects=list_them)
        place = Path(scratch, "state")
        digest = trainer.save(place)
        source.trials[trial_id].checkpoints.append(Checkpoint(trainer.epoch, place.relative_to(folder).as_posix(), digest))
        return export_choices(source, certain(folder, source.rows, source.trials, trial_id, out))[0]


def verdict(trial: TrialState, found: "Repeat", again: "Again", epochs: int) -> list[str]:
    """The verdict in words, a line each.

    Args:
        trial: as its sweep had it.
        found: what the comparison says.
        again: the trial that was trained again.
        epochs: that the ledger holds.
    """
    lines = []
    if found.is_identical and found.epochs:
        lines.append(f"{trial.trial_id}: bit-identical in {plural(found.epochs, 'epoch')} ({found.numbers} numbers)")
    elif found.epochs:
        epoch = found.first[0].epoch
        lines.append(f"{trial.trial_id}: not the same from epoch {epoch} on, of {found.epochs}")
        for difference in found.first[:MOST_SHOWN]:
            there, here = (_number(value) for value in (difference.recorded, difference.again))
            lines.append(f"  {difference.metric} {there} in the ledger, {here} now")
        worst = sorted(found.largest.items(), key=lambda pair: -pair[1])[:MOST_SHOWN]
        lines.append("largest differences: " + ", ".join(f"{name} {size:.3g}" for name, size in worst))
    if found.epochs < epochs:
        lines.append(f"{trial.trial_id}: the ledger has {plural(epochs, 'epoch')}, now there are {found.epochs}")
    if again.origin_ended:
        lines.append(f"now a trial from whose state it continued ended by its own numbers: {again.origin_ended}")
    elif again.ended:
        lines.append(f"now it {'ended again' if trial.own_fault else 'ended'} by its own numbers: {again.ended}")
    elif trial.own_fault:
        lines.append(f"in the sweep its own numbers ended it, and now they do not: {trial.stop_reason}")
    return lines


def _number(value: float | None) -> str:
    return "no number" if value is None else f"{value!r}"


def _tell(trial_id: str, epoch: int, until: int) -> None:
    print(f"{trial_id}: epoch {epoch}/{until}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
