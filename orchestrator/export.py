"""The best trial of a sweep as a folder: configuration, model, card, metrics, provenance. Reads the sealed test set once.

python -m orchestrator.export RESULTS/NAME [--out DIR]
"""

import argparse
import json
import os
import platform
import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from orchestrator.config.sweep_config import SEARCHED, read_sweep
from orchestrator.ledger.ledger import Event, Ledger, LedgerError, last, read_ledger
from orchestrator.outcome.confirmation import CONFIRMED, Row, confirmation, verdict
from orchestrator.outcome.tables import best_trial, trial_rows
from trainables.checkpoint import DamagedCheckpoint, read_checkpoint, unpack
from trainables.config import TrialConfig
from trainables.config_file import ConfigError, Origin, check, dump_yaml
from trainables.files import file_sha256

if TYPE_CHECKING:
    from trainables.data import LongTailedData


Readings = dict[str, dict[str, float]]
"""What each reading of the sealed test set gave, by the trial whose model it was."""


class NothingToExport(RuntimeError):
    """No trial has finished."""


def export_best(folder: Path, ledger: Ledger, out: Path | None = None) -> Path:
    """Writes the best finished trial of `folder` to `out` (default: `folder`/best), whole or not at all.

    The test set is read once for a trial: later exports repeat the value that the ledger holds.

    Raises:
        NothingToExport: when no trial has finished.
        FileExistsError: when `out` holds something already.
        DamagedCheckpoint: when no state with the best epoch is what was written.
    """
    from trainables.data.manifest import MANIFEST, write_manifest

    events = read_ledger(folder)
    rows = trial_rows(events)
    if (winner := best_trial(rows)) is None:
        raise NothingToExport(f"no trial of {folder} has finished, so there is no best one")
    out = out or folder / "best"
    if out.exists():
        raise FileExistsError(f"{out} exists already; nothing was changed; choose another --out")
    trial_id = winner["trial_id"]
    suggestion = _find(events, "suggest", trial_id)
    checkpoint = _find(events, "checkpoint", trial_id)
    config = check(TrialConfig, suggestion["config"], Origin(str(folder)))

    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    model = partial / "model.safetensors"
    data = _write_model_of(folder, events, winner, model)
    write_manifest(partial / MANIFEST, config.data, config.seed, data)
    readings: Readings = {event["trial_id"]: event["metrics"] for event in events if event["event"] == "test_read"}
    test = _test_of(ledger, readings, trial_id, model)
    metrics = _metrics(winner, rows, test)
    if winner["confirms"]:
        metrics |= _confirmed(folder, ledger, events, readings, rows, winner, partial)

    head = f"# Trial {trial_id} of the sweep {folder.name}, chosen by {config.select_by}.\n"
    head += f"# Train it again, without a cluster: python -m trainables.train {out}/config.yaml\n"
    if lineage := lineage_of(winner, rows):
        head += f"# It went on from the state of {' and that from '.join(lineage)}; trained anew it is another one.\n"
        metrics["lineage"] = lineage
    (partial / "config.yaml").write_text(head + dump_yaml(config.model_dump()), encoding="utf-8")
    (partial / "metrics.json").write_text(json.dumps(metrics, indent=1), encoding="utf-8")
    (partial / "card.md").write_text(_card(folder, out, config, metrics, events, readings), encoding="utf-8")
    provenance = _provenance(folder, trial_id, checkpoint, events, len(readings), ledger.head)
    provenance["files"] = {path.name: file_sha256(path) for path in sorted(partial.iterdir())}
    (partial / "provenance.json").write_text(json.dumps(provenance, indent=1), encoding="utf-8")
    os.rename(partial, out)
    flat = {f"best/{config.select_by}": metrics["best"][config.select_by]} | test
    ledger.append("export", trial_id=trial_id, path=str(out.resolve()), metrics=flat)
    return out


def _write_model_of(folder: Path, events: list[Event], row: Row, file: Path) -> "LongTailedData":
    """Writes the model of a trial's best epoch; returns the data that it was trained on."""
    from trainables.data import build_data
    from trainables.data.loader import ImageFormat, Normalisation
    from trainables.export_model import write_model

    config = check(TrialConfig, _find(events, "suggest", row["trial_id"])["config"], Origin(str(folder)))
    state = _state_with_best_epoch(folder, events, row)
    shape, mean, std = state["format"]
    data = build_data(config.data, config.seed)
    write_model(file, state["best"]["phi"], config, data, ImageFormat(tuple(shape), Normalisation(mean, std)))
    return data


def _state_with_best_epoch(folder: Path, events: list[Event], row: Row) -> dict[str, Any]:
    """The newest intact state of a trial; one that is not the last will do where it holds the same best epoch.

    Raises:
        DamagedCheckpoint: when there is none.
    """
    trial_id = row["trial_id"]
    written = [event for event in events if event["event"] == "checkpoint" and event["trial_id"] == trial_id]
    for checkpoint in reversed(written):
        try:
            state = unpack(read_checkpoint(folder / checkpoint["path"], expected=checkpoint["sha256"]))
        except DamagedCheckpoint as error:
            damage = error
            continue
        if state["best"]["epoch"] == row["best/epoch"]:
            return state
        break
    else:
        raise damage
    raise DamagedCheckpoint(f"{folder}: the last intact state of {trial_id} is older than its best epoch, {row['best/epoch']}")


def _test_of(ledger: Ledger, readings: Readings, trial_id: str, model: Path) -> dict[str, float]:
    """The test metrics of a trial's model, which are measured once and kept in the ledger and in `readings`."""
    from trainables.export_model import read_test

    if trial_id not in readings:
        readings[trial_id] = ledger.append("test_read", trial_id=trial_id, metrics=read_test(model))["metrics"]
    return readings[trial_id]


def _confirmed(
    folder: Path, ledger: Ledger, events: list[Event], readings: Readings, rows: list[Row], winner: Row, partial: Path
) -> dict[str, Any]:
    """How the confirmed configurations compare, and the test accuracy of the winner's runs on all of its seeds."""
    confirmed = confirmation(rows)
    assert confirmed is not None
    assert confirmed.comparison is not None  # the winner was chosen by it
    comparison = confirmed.comparison
    model, tested = partial / "of_another_seed.safetensors", []
    for row in rows:
        if row["confirms"] == winner["confirms"] and row["status"] == "finished":
            _write_model_of(folder, events, row, model)
            tested.append(_test_of(ledger, readings, row["trial_id"], model)["test/acc"])
    model.unlink()
    return {
        "configuration_of": winner["confirms"],
        "confirmation": [summary._asdict() for summary in comparison.summaries],
        "indistinguishable": comparison.indistinguishable,
        "verdict": verdict(comparison),
        "left_out": confirmed.left_out,
        "test_over_seeds": {"num_seeds": len(tested), "mean": mean(tested), "sd": stdev(tested), "test/acc": tested},
    }


def _find(events: list[Event], kind: str, trial_id: str) -> Event:
    """The last event of a kind about a trial."""
    found = [event for event in events if event["event"] == kind and event["trial_id"] == trial_id]
    if not found:
        raise LedgerError(f"the ledger holds no {kind} of trial {trial_id}")
    return found[-1]


def _metrics(winner: Row, rows: list[Row], test: dict[str, float]) -> dict[str, Any]:
    def part(row: Row, prefix: str) -> dict[str, Any]:
        return {key.removeprefix(prefix): value for key, value in row.items() if key.startswith(prefix)}

    references = [row for row in rows if row["variant"] not in (SEARCHED, CONFIRMED)]
    return {
        "trial_id": winner["trial_id"],
        "variant": winner["variant"],
        "selected_by": winner["config/select_by"],
        "best": part(winner, "best/"),
        "last": part(winner, "last/"),
        "test": test,
        "references": {
            row["variant"]: {key: row[key] for key in ("trial_id", "status")}
            | {"best": part(row, "best/"), "last": part(row, "last/")}
            for row in references
        },
    }


def _provenance(
    folder: Path, trial_id: str, checkpoint: Event, events: list[Event], test_readings: int, head: str
) -> dict[str, Any]:
    start = last(events, "sweep_start", "sweep_resume")  # the program and the machine of the last part
    return {
        "sweep": folder.name,
        "trial_id": trial_id,
        "exported": datetime.now(UTC).isoformat(timespec="seconds"),
        "git_commit": start["git_commit"],
        "versions": start["versions"],
        "machine": {"system": platform.platform(), "python": platform.python_version(), "cores": os.cpu_count()},
        "split_sha256": events[0]["split_sha256"],
        "resumed": sum(event["event"] == "sweep_resume" for event in events),
        "sweep_yaml_sha256": file_sha256(folder / "sweep.yaml"),
        "workers": start["config"]["resources"]["workers"],
        "workers_lost": sum(event["event"] == "group_lost" and event["trial_id"] == trial_id for event in events),
        "checkpoint_sha256": checkpoint["sha256"],
        "ledger_head_sha256": head,
        "test_readings": test_readings,
    }


def _card(folder: Path, out: Path, config: TrialConfig, metrics: dict[str, Any], events: list[Event], readings: Readings) -> str:
    best, last, select_by = metrics["best"], metrics["last"], metrics["selected_by"]
    method = config.method.model_dump()
    settings = "\n".join(f"| `{name}` | {value} |" for name, value in method.items())
    references = "\n".join(_reference_row(name, row, select_by) for name, row in metrics["references"].items())
    counts = events[0]["class_counts"]
    num_trials = len({event["trial_id"] for event in events if event["event"] == "suggest"})
    return f"""# {metrics["trial_id"]} of {folder.name}

A `{config.classifier.name}` trained with `{config.method.name}` on `{config.data.source}`, seed {config.seed}:
{sum(counts)} training images in {len(counts)} classes, {max(counts)} to {min(counts)} a class.

| | {config.selection()}, best epoch | {config.selection()}, last epoch | test/acc |
|---|---|---|---|
| **this model** (epoch {best["epoch"]}) | {best[select_by]:.4f} | {last[select_by]:.4f} | {metrics["test"]["test/acc"]:.4f} |
{references}

{_honesty(metrics, config, num_trials, _read_for(metrics["trial_id"], readings))}

| method | value |
|---|---|
{settings}

Train it again: `python -m trainables.train {out}/config.yaml`; on another seed, with its test: add `seed=1 --read-test`.
Weights: `model.safetensors`; its metadata hold class names, image shape and pixel normalisation.
"""


def lineage_of(row: Row, rows: list[Row]) -> list[str]:
    """The trials from whose states a trial of a population goes on, the nearest first."""
    by_id, found = {other["trial_id"]: other for other in rows}, []
    while parent := row["parent_trial"]:
        found.append(f"{parent} at epoch {row['parent_epoch']}")
        row = by_id[parent]
    return found


def _read_for(trial_id: str, readings: Readings) -> str:
    """How often the sealed test set was opened, and for whom."""
    if list(readings) == [trial_id]:
        return "The test set was read once, for this model alone, after everything was chosen."
    return f"The test set was read {len(readings)} times in this sweep, once for each of {', '.join(sorted(readings))}."


def _honesty(metrics: dict[str, Any], config: TrialConfig, num_trials: int, readings: str) -> str:
    """What the numbers are worth."""
    if "lineage" in metrics:
        return f"""This trial of a population went on from the state of {" and that from ".join(metrics["lineage"])}. Training its
configuration anew gives something else. Trial and epoch were chosen by {config.selection()}, so its val numbers are
optimistic. {readings}"""
    if "confirmation" not in metrics:
        return f"""The trial and its epoch were chosen by {config.selection()}, so the val numbers of the chosen one are
optimistic: it is the luckiest of {num_trials} trials. {readings}
One seed says little: train on further seeds before you rely on a difference."""
    rows = "\n".join(
        f"| {row['name']} | {row['mean']:.4f} | {row['sd']:.4f} | {row['shrunken']:.4f} | {row['p_value']:.3f} |"
        for row in metrics["confirmation"]
    )
    test = metrics["test_over_seeds"]
    out = f" Out of the running, for want of a result on some: {', '.join(metrics['left_out'])}." if metrics["left_out"] else ""
    return f"""The best configurations of the search ran again on {test["num_seeds"]} fresh seeds:
{metrics["verdict"]}.{out}
This model is the best run of {metrics["configuration_of"]} by {config.selection()}. test/acc over all of its seeds:
{test["mean"]:.4f} (sd {test["sd"]:.4f}). {readings}

| {config.selection()} | mean | sd | shrunken | p |
|---|---|---|---|---|
{rows}"""


def _reference_row(name: str, row: dict[str, Any], select_by: str) -> str:
    if row["status"] != "finished":
        return f"| {name} | {row['status'].replace('_', ' ')} | | |"
    return f"| {name} | {row['best'][select_by]:.4f} | {row['last'][select_by]:.4f} | |"


def main(arguments: list[str]) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m orchestrator.export", description=__doc__.splitlines()[0] if __doc__ else None
    )
    parser.add_argument("folder", type=Path, help="results folder of a sweep")
    parser.add_argument("--out", type=Path, help="where to write (default: FOLDER/best)")
    given = parser.parse_args(arguments)
    try:
        read_ledger(given.folder)
        read_sweep(given.folder / "sweep.yaml")
        with Ledger(given.folder) as ledger:
            print(f"exported {export_best(given.folder, ledger, given.out)}")
    except (ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (NothingToExport, DamagedCheckpoint) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
