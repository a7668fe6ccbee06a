"""What the disk holds and the ledger does not, after a power cut: the ledger is cut to its last fsync."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from benchmarks.damage import cut_power
from orchestrator.config.sweep_config import SweepConfig
from orchestrator.decide.conductor import Stint, decision_hash
from orchestrator.ledger.class_arrays import read_class_arrays
from orchestrator.ledger.head import HEAD
from orchestrator.ledger.ledger import LEDGER, Ledger, read_ledger
from orchestrator.ledger.trial_states import trial_states_of
from orchestrator.outcome.tables import write_tables
from orchestrator.run.member import EpochReport
from orchestrator.run.signals import Slots
from orchestrator.run.supervisor import Supervisor
from trainables.checkpoint import pack, write_checkpoint
from trainables.config_file import Origin, check

EPOCHS = 8
CLASSES = {name: [0.5, None] for name in ("accuracy", "meta_accuracy", "difficulty", "weight")} | {"train_count": [2, 1]}


class Desk:
    """A sweep without processes: this class is the process that saves a state and reports."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        tree = {
            "trial": {"epochs": EPOCHS},
            "space": {"method.meta_lr": {"type": "float", "low": 0.001, "high": 0.1}},
            "search": {"trials": 2, "sampler": "random", "deterministic": True},
            "scheduler": {"name": "none"},
            "resources": {"max_concurrent": 2},
        }
        self.config = check(SweepConfig, tree | changes, Origin("test"))
        self.folder, self.notes = folder, list[str]()
        (folder / "slots").mkdir(parents=True, exist_ok=True)
        self.ledger = Ledger(folder, note=self.notes.append)
        self.ledger.append("sweep_resume" if self.ledger.past else "sweep_start", config=self.config.model_dump())
        slots = Slots(2, folder / "slots", folder, checkpoint_interval=1)
        self.supervisor = Supervisor(self.config, self.ledger, slots, self.notes.append)

    def begin(self) -> Stint:
        [stint] = self.supervisor.next_stints()
        self.supervisor.on_start([stint.trial_id])
        return stint

    def save(self, stint: Stint, epoch: int, changes: dict[str, Any] | None = None) -> EpochReport:
        """What a process writes before it reports."""
        metrics = {"val/acc": epoch / 100}
        state = {"epoch": epoch, "config": stint.config, "report": {"metrics": metrics, "classes": CLASSES}} | (changes or {})
        place = f"checkpoints/{stint.trial_id}/{epoch:04d}-{stint.attempt}"
        digest = write_checkpoint(self.folder / place, pack(state))
        return EpochReport(stint.trial_id, epoch, metrics, CLASSES, {"epoch": epoch, "path": place, "sha256": digest})

    def train(self, stint: Stint, *epochs: int) -> None:
        for epoch in epochs:
            self.supervisor.on_reports(stint.bundle, [self.save(stint, epoch)])

    def stop(self) -> None:
        """The end of the process, without another fsync."""
        self.ledger._file.close()

    def epochs(self, trial_id: str = "t0000") -> list[int]:
        return [e["epoch"] for e in read_ledger(self.folder) if e["event"] == "epoch" and e["trial_id"] == trial_id]

    def states(self, trial_id: str = "t0000") -> list[str]:
        return sorted(path.name for path in self.folder.glob(f"checkpoints/{trial_id}/*"))


def resumed(folder: Path, **changes: Any) -> Desk:
    desk = Desk(folder, **changes)
    desk.stop()
    return desk


@pytest.mark.parametrize("reported", range(1, EPOCHS))
def test_a_power_cut_loses_no_epoch_whose_state_is_on_the_disk(tmp_path: Path, reported: int) -> None:
    desk = Desk(tmp_path)
    desk.train(desk.begin(), *range(1, reported + 1))
    before = list(read_ledger(tmp_path))
    desk.stop()
    cut_power(tmp_path)
    after = resumed(tmp_path)
    assert after.epochs() == list(range(1, reported + 1))
    assert [t.metrics for t in trial_states_of(read_ledger(tmp_path)).values()] == [
        t.metrics for t in trial_states_of(before).values()
    ]
    again = Desk(tmp_path)
    assert again.begin().checkpoints[0].epoch == reported
    again.stop()


def test_before_a_state_is_removed_the_ledger_is_on_the_disk(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    stint = desk.begin()
    desk.train(stint, 1, 2, 3)
    assert desk.states() == ["0002-1", "0003-1"]
    desk.stop()
    cut_power(tmp_path)
    named = {event["path"] for event in read_ledger(tmp_path) if event["event"] == "checkpoint"}
    assert {"checkpoints/t0000/0002-1", "checkpoints/t0000/0003-1"} <= named


def test_arrays_by_class_are_on_the_disk_before_the_ledger_names_their_epoch(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.train(desk.begin(), *range(1, 6))
    desk.stop()
    cut_power(tmp_path)
    second = Desk(tmp_path)
    with second.ledger:
        second.train(second.begin(), *range(6, EPOCHS + 1))
    write_tables(tmp_path, read_ledger(tmp_path))
    held = read_class_arrays(tmp_path, read_ledger(tmp_path))["epoch"].to_pylist()
    assert sorted(set(held)) == list(range(1, EPOCHS + 1))


def test_a_trial_whose_end_was_cut_off_ends_from_its_last_state(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    stint = desk.begin()
    desk.train(stint, *range(1, EPOCHS))
    desk.save(stint, EPOCHS)  # the power went here
    desk.stop()
    cut_power(tmp_path)
    resumed(tmp_path)
    (end,) = [event for event in read_ledger(tmp_path) if event["event"] == "trial_end"]
    assert (end["status"], end["best_epoch"]) == ("finished", EPOCHS)


@pytest.mark.slow
def test_decisions_are_those_of_an_undisturbed_sweep_wherever_the_power_goes(tmp_path: Path) -> None:
    changes = {
        "search": {"trials": 4, "sampler": "random", "deterministic": True},
        "scheduler": {"name": "asha", "grace_epochs": 2, "reduction_factor": 2},
        "trial": {"epochs": 4},
    }

    def go_on(desk: Desk, most: int) -> int:
        """Trains at most so many epochs, one trial after the other; returns how many there were."""
        count, running = 0, list[tuple[Stint, int]]()
        while count < most:
            while stints := desk.supervisor.next_stints():
                [stint] = stints
                desk.supervisor.on_start([stint.trial_id])
                running.append((stint, stint.checkpoints[0].epoch if stint.checkpoints else 0))
            if not running:
                break
            stint, epoch = running.pop(0)
            count += 1
            if not desk.supervisor.on_reports(stint.bundle, [desk.save(stint, epoch + 1)]):
                running.append((stint, epoch + 1))
        desk.stop()
        return count

    whole = Desk(tmp_path / "whole", **changes)
    count = go_on(whole, 1000)
    expected = decision_hash(read_ledger(whole.folder))
    for cut in range(1, count):
        folder = tmp_path / str(cut)
        done = go_on(Desk(folder, **changes), cut)
        cut_power(folder)
        repeated = done + go_on(Desk(folder, **changes), 1000) - count
        assert decision_hash(read_ledger(folder)) == expected, cut
        assert repeated == 0, cut
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    "changes",
    [{"epoch": 7}, {"config": {"seed": 9}}, {"report": None}, {"report": {"metrics": {}, "classes": {}}}],
    ids=["another epoch", "another trial", "an older version", "an empty report"],
)
def test_a_state_that_does_not_continue_the_trial_is_not_adopted_but_kept(tmp_path: Path, changes: dict[str, Any]) -> None:
    desk = Desk(tmp_path)
    stint = desk.begin()
    desk.train(stint, 1, 2)
    desk.save(stint, 3, changes)
    desk.stop()
    after = resumed(tmp_path)
    assert after.epochs() == [1, 2]
    assert "0003-1" in after.states()
    assert after.notes == []


def test_a_damaged_state_is_not_adopted_and_an_older_attempt_is(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    stint = desk.begin()
    desk.train(stint, 1, 2)
    desk.save(stint, 3)
    later = desk.save(stint._replace(attempt=2), 3)
    assert later.checkpoint
    (tmp_path / later.checkpoint["path"] / "state.pt").write_bytes(b"half a state")
    desk.stop()
    after = resumed(tmp_path)
    assert after.epochs() == [1, 2, 3]
    assert after.states() == ["0002-1", "0003-1"]
    assert after.notes == ["1 epoch was saved but not in the ledger yet: now in the ledger"]


def test_an_epoch_whose_state_alone_was_written_down_is_completed(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    stint = desk.begin()
    report = desk.save(stint, 1)
    assert report.checkpoint
    desk.ledger.append("checkpoint", trial_id=stint.trial_id, **report.checkpoint)  # killed here
    desk.stop()
    after = resumed(tmp_path)
    assert after.epochs() == [1]
    assert sum(event["event"] == "checkpoint" for event in read_ledger(tmp_path)) == 1


def test_strangers_of_trials_that_have_ended_or_never_began_are_removed(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    first, second = desk.begin(), desk.begin()
    desk.train(first, *range(1, EPOCHS + 1))
    desk.train(second, 1)
    desk.save(first._replace(attempt=3), 9)
    desk.save(second._replace(trial_id="t0099"), 1)
    desk.stop()
    after = resumed(tmp_path)
    assert after.states() == ["0008-1"]
    assert after.states("t0001") == ["0001-1"]
    assert after.states("t0099") == []


def test_when_a_trial_ends_nothing_is_left_but_what_the_ledger_names(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    stint = desk.begin()
    desk.save(stint._replace(attempt=0), 6)  # of a process that died before it could report
    with desk.ledger:
        desk.train(stint, *range(1, EPOCHS + 1))
    assert desk.states() == ["0008-1"]


def test_nothing_outside_the_folder_is_removed_whatever_the_ledger_says(tmp_path: Path) -> None:
    """A received folder: its ledger names a folder of the machine, or a link leads there."""
    folder, precious = tmp_path / "received", tmp_path / "precious"
    desk = Desk(folder)
    desk.train(desk.begin(), 1, 2, 3)
    desk.stop()
    (precious / "letters").mkdir(parents=True)
    crafted = (folder / LEDGER).read_bytes().replace(b"checkpoints/t0000/0001-1", str(precious).encode())
    lines = crafted.splitlines(keepends=True)
    (folder / HEAD).unlink()
    last = next(n for n, line in enumerate(lines) if str(precious).encode() in line)
    original = (folder / LEDGER).read_bytes()
    (folder / LEDGER).write_bytes(b"".join(lines[: last + 1]))
    with pytest.raises(ValueError, match=r"path is .*precious'; allowed: checkpoints/TRIAL/EPOCH-ATTEMPT"):
        Desk(folder)
    (folder / LEDGER).write_bytes(original)
    (folder / "checkpoints" / "t0009").symlink_to(precious)
    with pytest.raises(ValueError, match="is a symbolic link"):
        Desk(folder)
    assert (precious / "letters").is_dir()
