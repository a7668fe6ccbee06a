"""What may happen to the folder of a sweep that was killed, besides: torn lines, damaged files, lost and orphaned ones."""

import random
import shutil
from pathlib import Path

from orchestrator.ledger.ledger import LEDGER, Event
from orchestrator.ledger.trial_states import State, trial_states_of

ORPHAN = "9999-9"
"""The name of a checkpoint that no ledger knows."""


def tear(folder: Path) -> str:
    """Leaves lines behind that a writer began and did not end; returns what was done."""
    torn = [folder / LEDGER, *sorted(folder.glob("parts/*.jsonl"))]
    for path in torn:
        with path.open("ab") as file:
            file.write(b'{"n":1234,"epo')
    return f"torn last lines: {len(torn)}"


def flip(folder: Path, events: list[Event], rng: random.Random) -> str | None:
    """Flips a bit of the newest checkpoint of a running trial, and returns its id; None when there is none.

    A state that an offspring is still to begin from is left alone: it exists once, and what is lost with it cannot be made again.
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
    """Removes Tune's own folders, as whoever cleans up temporary files does."""
    folders = list(scratch.glob("tailtune-*"))
    for folder in folders:
        shutil.rmtree(folder)
    return f"scratch folders removed: {len(folders)}"


def leave_orphans(folder: Path) -> str:
    """Leaves files behind that somebody began to write, and whole ones that the ledger has not heard of."""
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
    """Orphaned checkpoints, which only take space, that are there still."""
    return [str(path.relative_to(folder)) for path in folder.glob(f"checkpoints/*/{ORPHAN}")]
