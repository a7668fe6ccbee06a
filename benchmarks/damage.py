"""Damages the folder of a killed sweep: torn lines, lines that a power cut takes, a damaged checkpoint, lost and other files."""

import random
import shutil
from pathlib import Path

from orchestrator.ledger.head import read_head
from orchestrator.ledger.ledger import LEDGER, Event
from orchestrator.ledger.trial_states import State, trial_states_of

ORPHAN = "9999-9"
"""The name of a checkpoint that is in no ledger."""


def tear(folder: Path) -> str:
    """Appends incomplete lines, as a writer leaves that is killed while writing. Returns what was done, in words."""
    torn = [folder / LEDGER, *sorted(folder.glob("parts/*.jsonl"))]
    for path in torn:
        with path.open("ab") as file:
            file.write(b'{"n":1234,"epo')
    return f"torn last lines: {len(torn)}"


def cut_power(folder: Path) -> str:
    """Cuts the ledger off after its last fsync: the worst state that a power cut may leave. Returns what was done, in words.

    All other files are on the disk as soon as they are written: checkpoints, and the arrays by class.
    """
    head, path = read_head(folder), folder / LEDGER
    lines = path.read_bytes().splitlines(keepends=True)
    kept = head.lines if head else 0
    path.write_bytes(b"".join(lines[:kept]))
    return f"power cut: {len(lines) - kept} lines gone"


def flip(folder: Path, events: list[Event], rng: random.Random) -> str | None:
    """Flips a bit in the newest checkpoint of a running trial. Returns the trial's id, or None when no trial can be chosen.

    A state from which an offspring has yet to start is left alone: there is only one copy, which cannot be made again.
    """
    trials = trial_states_of(events)
    origins = {(trial.parent["trial_id"], trial.parent["epoch"]) for trial in trials.values() if trial.parent and not trial.epoch}
    newest = {}
    for trial_id, trial in trials.items():
        reported = [checkpoint for checkpoint in trial.checkpoints if checkpoint.epoch <= trial.epoch]
        if trial.state == State.RUNNING and reported and (trial_id, reported[-1].epoch) not in origins:
            newest[trial_id] = reported[-1]
    if not newest:
        return None
    trial_id = rng.choice(sorted(newest))
    path = folder / newest[trial_id].path / "state.pt"
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    return trial_id


def drop_scratch(scratch: Path) -> str:
    """Removes Tune's own folders, as a clean-up of temporary files may do. Returns what was done, in words."""
    folders = list(scratch.glob("tailtune-*"))
    for folder in folders:
        shutil.rmtree(folder)
    return f"scratch folders removed: {len(folders)}"


def leave_orphans(folder: Path) -> str:
    """Writes partial files, and complete files that are not in the ledger. Returns what was done, in words."""
    for trial_id in ("t0000", "t9999"):
        orphan = folder / "checkpoints" / trial_id / ORPHAN
        orphan.mkdir(parents=True, exist_ok=True)
        (orphan / "state.pt").write_bytes(b"half a state")
    (folder / "parts").mkdir(exist_ok=True)
    (folder / "best.partial").mkdir(exist_ok=True)
    orphans = ("parts/t9999.jsonl", "parts/t0000.parquet.partial", "trials.parquet.partial", "best.partial/model.safetensors")
    for name in (*orphans, "sweep.yaml.partial"):
        (folder / name).write_bytes(b"half")
    return "orphans"


def orphans_left(folder: Path) -> list[str]:
    """Paths of orphaned checkpoints that still exist. They are harmless except for the space that they take."""
    return [str(path.relative_to(folder)) for path in folder.glob(f"checkpoints/*/{ORPHAN}")]
