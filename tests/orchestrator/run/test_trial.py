import hashlib
import os
import pickle
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fused_trials import sizes_of_fused_runs

from orchestrator.decide.conductor import Stint
from orchestrator.run.member import EpochReport
from orchestrator.run.signals import AT_WORK, Slots
from orchestrator.run.trial import Retreat, Trial
from trainables.checkpoint import STATE, pack, read_checkpoint, unpack, write_checkpoint
from trainables.classifier_config import LinearConfig
from trainables.config import ComputeConfig, OptimConfig, TrialConfig
from trainables.data_config import DigitsConfig, GeneratedConfig
from trainables.engine.fused_step import FusedStep
from trainables.method_config import CrossEntropyConfig, DifficultyNetConfig, MetaWeightNetConfig
from trainables.methods import difficulty_net
from trainables.side_by_side import FusedEpochFailed
from trainables.trial_run import TrialRun


def stint_of(
    checkpoints: Sequence[dict[str, Any]] = (),
    due: Sequence[int] = (),
    first_epoch: int = 1,
    more: Mapping[str, Any] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """A bundle of one stint, with a trial's `changes` and `more` fields of the stint."""
    config = TrialConfig(**{"epochs": 2, "method": CrossEntropyConfig()} | changes)
    stint = Stint("t0000", config.model_dump(), list(checkpoints), 1, first_epoch, list(due))  # type: ignore[arg-type]
    return {"bundle": 0, "stints": [stint._asdict() | dict(more or {})]}


def report(trial: Trial) -> EpochReport:
    [found] = trial.step()["reports"]
    assert isinstance(found, EpochReport)
    return found


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    trial = object.__new__(Trial)  # without Tune's own bookkeeping, which needs a cluster
    trial.setup(stint_of(), Slots(1, tmp_path, tmp_path / "results", checkpoint_interval=2))
    return trial


def test_a_step_is_an_epoch(trial: Trial) -> None:
    first, second = report(trial), report(trial)
    assert (first.epoch, second.epoch, first.ended) == (1, 2, None)
    assert len(first.classes["accuracy"]) == 10
    assert first.metrics["train/loss"] != second.metrics["train/loss"]


def test_a_reset_trial_equals_a_new_one(trial: Trial) -> None:
    first = report(trial).metrics["train/loss"]
    assert trial.reset_config(stint_of())
    assert report(trial).metrics["train/loss"] == first


@pytest.mark.parametrize(("due", "saved"), [((), [2, 4, 5]), ((3,), [2, 3, 4, 5])])
def test_the_state_is_saved_at_intervals_where_it_is_due_and_at_the_end(
    trial: Trial, due: tuple[int, ...], saved: list[int]
) -> None:
    trial.reset_config(stint_of(epochs=5, due=due))
    reports = [report(trial) for _ in range(5)]
    assert [found.epoch for found in reports if found.checkpoint] == saved
    for found in reports:
        if found.checkpoint:
            folder = trial._slots.results / found.checkpoint["path"]
            assert hashlib.sha256((folder / STATE).read_bytes()).hexdigest() == found.checkpoint["sha256"]


def test_the_state_after_the_last_epoch_has_what_an_export_needs_and_nothing_that_only_further_epochs_need(trial: Trial) -> None:
    trial.reset_config(stint_of(epochs=4))
    reports = [report(trial) for _ in range(4)]
    before, end = (read_checkpoint(trial._slots.results / reports[n].checkpoint["path"]) for n in (1, 3))
    state, whole = unpack(end), trial._members[0].run.state()
    assert state.keys() == {"best", "epoch", "split_sha256", "format", "pairing", "config", "report"}
    assert all(torch.equal(state["best"]["phi"][name], value) for name, value in whole["best"]["phi"].items())
    assert len(end) < 0.6 * len(before)
    with pytest.raises(ValueError, match="is the state of a trial that was complete"):
        trial._members[0].run.load(trial._slots.results / reports[3].checkpoint["path"], trial._members[0]._config)


def test_a_trial_that_is_told_to_leave_saves_the_epoch_that_it_ends_with(trial: Trial) -> None:
    trial.reset_config(stint_of(epochs=5))
    trial._slots.halt()
    assert report(trial).checkpoint["epoch"] == 1


def test_a_repeated_epoch_touches_no_state_of_the_attempt_before(trial: Trial) -> None:
    places = []
    for attempt in (1, 2):
        trial.reset_config(stint_of(epochs=1, more={"attempt": attempt}))
        places.append(report(trial).checkpoint["path"])
    assert places == ["checkpoints/t0000/0001-1", "checkpoints/t0000/0001-2"]


def test_what_a_trial_waits_for_is_told_until_it_has_it(trial: Trial) -> None:
    sign = trial._slots.heartbeat_file("t0000")
    os.utime(sign, (0, 0))
    trial._members[0]._wait("no space left")
    assert trial._slots.waiting() == {"t0000": "space: no space left"}
    assert sign.stat().st_mtime > 0  # a process that waits is not dead
    trial.reset_config(stint_of(epochs=1))
    assert report(trial).checkpoint
    assert trial._slots.waiting() == {}


def test_what_cannot_even_be_told_is_waited_for_all_the_same(tmp_path: Path) -> None:
    Slots(1, tmp_path / "gone", tmp_path, 1).wait("t0000", "no space left")


def test_a_saved_trial_is_continued_bit_for_bit(trial: Trial) -> None:
    trial.reset_config(stint_of(epochs=4))
    saved = [report(trial) for _ in range(2)][-1].checkpoint
    expected = [report(trial).metrics["train/loss"] for _ in range(2)]
    trial.reset_config(stint_of(epochs=4, checkpoints=[saved]))
    reports = [report(trial) for _ in range(2)]
    assert [found.epoch for found in reports] == [3, 4]
    assert [found.metrics["train/loss"] for found in reports] == expected


@pytest.mark.parametrize("damage", ["flip", "remove", "pickle", "other"])
def test_a_damaged_state_is_noticed_and_the_one_before_is_used(trial: Trial, damage: str, tmp_path: Path) -> None:
    trial.reset_config(stint_of(epochs=6))
    reports = [report(trial) for _ in range(4)]
    newest, before = reports[3].checkpoint, reports[1].checkpoint
    state = trial._slots.results / newest["path"] / STATE
    if damage == "flip":
        content = bytearray(state.read_bytes())
        content[len(content) // 2] ^= 1
        state.write_bytes(content)
    elif damage == "remove":
        state.unlink()
    else:  # written by somebody else, with a digest of its own beside it
        content = pickle.dumps(Planted(str(tmp_path / "ran"))) if damage == "pickle" else pack({"epoch": 4})
        write_checkpoint(state.parent, content)
    trial.reset_config(stint_of(epochs=6, checkpoints=[newest, before]))
    found = report(trial)
    assert (found.epoch, found.metrics["train/loss"]) == (3, reports[2].metrics["train/loss"])
    (event,) = found.events
    assert (event["event"], event["path"]) == ("damaged", newest["path"])
    assert not (tmp_path / "ran").exists()


class Planted:
    """Unpickling it leaves a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (self.path, "w"))


def test_a_planted_pickle_whose_digest_the_ledger_holds_runs_nothing(trial: Trial, tmp_path: Path) -> None:
    digest = write_checkpoint(tmp_path / "results" / "x", pickle.dumps(Planted(str(tmp_path / "ran"))))
    trial.reset_config(stint_of(checkpoints=[{"epoch": 1, "path": "x", "sha256": digest}]))
    found = report(trial)
    assert found.ended == "failed"
    assert not (tmp_path / "ran").exists()


def test_tune_is_not_let_near_a_checkpoint(trial: Trial, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="the checkpoints that the ledger names"):
        trial.restore(str(tmp_path))


def test_without_an_intact_state_a_trial_begins_anew_but_not_one_that_goes_on_from_another(trial: Trial) -> None:
    lost = [{"epoch": 1, "path": "nowhere", "sha256": ""}]
    trial.reset_config(stint_of(checkpoints=lost))
    assert report(trial).epoch == 1
    trial.reset_config(stint_of(checkpoints=lost, first_epoch=2))
    found = report(trial)
    assert (found.ended, found.reason) == ("failed", "the state that the trial goes on from at epoch 2 is gone")


def test_an_offspring_goes_on_from_another_trials_state_with_settings_of_its_own(trial: Trial) -> None:
    donor = DifficultyNetConfig(hidden_width=4, meta_lr=0.01)
    trial.reset_config(stint_of(epochs=4, method=donor))
    saved = [report(trial) for _ in range(2)][-1].checkpoint
    same = report(trial).metrics
    heir = donor.model_copy(update={"meta_lr": 0.05})
    trial.reset_config(stint_of(epochs=4, method=heir, checkpoints=[saved], first_epoch=3))
    found = report(trial)
    assert found.epoch == 3
    assert found.metrics["difficulty/kl_uniform"] != same["difficulty/kl_uniform"]
    assert trial._members[0].run.best.epoch == 3  # one of its own


def test_heartbeats_name_the_process_and_grow_younger_with_each_step(trial: Trial) -> None:
    sign = trial._slots.heartbeat_file("t0000")
    assert int(sign.read_text()) == os.getpid()
    os.utime(sign, (0, 0))
    trial._beaten = 0.0
    trial._on_step(1)
    assert time.time() - sign.stat().st_mtime < 60
    os.utime(sign, (0, 0))
    trial._on_step(2)  # at once: not every step is worth a file's touch
    assert sign.stat().st_mtime == 0


def test_a_diverged_trial_ends_with_the_reason_and_without_an_objective(trial: Trial) -> None:
    trial.reset_config(stint_of(optim=OptimConfig(lr=1e30)))
    found = report(trial)
    assert found.ended == "diverged"
    assert "became" in found.reason


def test_a_trial_whose_meta_gradient_is_dead_fails_with_the_reason(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    """The released code's mistake, in a whole trial."""
    scale = difficulty_net.scale_weights
    monkeypatch.setattr(difficulty_net, "scale_weights", lambda difficulty, how: scale(difficulty, how).detach())
    trial.reset_config(stint_of(epochs=5, method=DifficultyNetConfig(hidden_width=4)))
    found = report(trial)
    while not found.ended:
        found = report(trial)
    assert found.ended == "failed"
    assert "the meta-gradient was exactly 0 in 20 consecutive updates" in found.reason


def test_a_process_without_the_plug_in_says_so_and_serves_the_next_trial(trial: Trial) -> None:
    [stint] = stint_of()["stints"]
    trial.reset_config(stint_of(more={"config": stint["config"] | {"plugins": ["plugin_of_another_machine"]}}))
    found = report(trial)
    assert found.ended == "failed"
    assert found.reason.startswith("trial t0000: plugins: ")
    assert "No module named 'plugin_of_another_machine'" in found.reason
    assert "\n" not in found.reason
    trial.reset_config(stint_of())
    assert report(trial).ended is None


def test_slots_wait_for_each_other_but_not_for_ever(tmp_path: Path) -> None:
    for trial_id in ("t0000", "t0001", "t0002"):
        Slots(2, tmp_path, tmp_path, 1).want(trial_id)
    threading.Timer(0.2, (tmp_path / "1.up").touch).start()
    assert Slots(2, tmp_path, tmp_path, 1).wait_for_all(timeout_s=60)
    beats: list[float] = []
    assert not Slots(3, tmp_path, tmp_path, 1).wait_for_all(timeout_s=0.1, beat=lambda: beats.append(time.monotonic()))
    assert beats
    many = Slots(5, tmp_path, tmp_path, 1)
    (tmp_path / "2.up").touch()
    assert many.wait_for_all(timeout_s=0.1)  # as many as trials want one
    many.want("t0003")
    assert not many.wait_for_all(timeout_s=0.1)
    many.set_wanted(3)  # machines have gone
    assert many.wait_for_all(timeout_s=0.1)
    assert not many.wait_for_all(AT_WORK, timeout_s=0.1)


def test_a_trial_that_cannot_begin_fails_alone_and_the_process_serves_the_next_one(trial: Trial) -> None:
    trial.reset_config(stint_of(data=DigitsConfig(n_max=10_000)))
    found = report(trial)
    assert (found.ended, found.epoch) == ("failed", 1)
    assert "data.n_max" in found.reason
    trial.reset_config(stint_of())
    assert report(trial).ended is None


def test_an_image_that_breaks_in_mid_trial_fails_that_trial_alone_and_leaves_no_checkpoint(
    trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    report(trial)

    def broken(*_: object) -> None:
        raise ValueError("data.root: a.png cannot be read")

    with monkeypatch.context() as patched:
        patched.setattr(TrialRun, "run_epoch", broken)
        found = report(trial)
    assert (found.ended, found.reason) == ("failed", "data.root: a.png cannot be read")
    assert found.checkpoint is None
    trial.reset_config(stint_of())
    assert report(trial).ended is None


def test_a_trial_whose_machines_do_not_come_says_so_and_leaves_when_told(trial: Trial) -> None:
    slots = trial._slots
    sign = slots.heartbeat_file("t0000")
    os.utime(sign, (0, 0))
    trial._while_waiting("2 workers with 1 CPU each")
    assert slots.waiting() == {"t0000": "2 workers with 1 CPU each"}
    assert sign.stat().st_mtime > 0  # a process that waits is not dead
    trial._members[0]._events.append({"event": "group_lost", "reason": "worker 0 died"})
    slots.retreat("t0000")
    with pytest.raises(Retreat):
        trial._while_waiting("2 workers with 1 CPU each")
    assert slots.waiting() == {}
    assert slots.left_behind("t0000") == [{"event": "group_lost", "reason": "worker 0 died"}]
    assert slots.left_behind("t0000") == []


def test_machines_that_come_just_in_time_keep_the_trial(trial: Trial) -> None:
    trial._slots.retreat("t0000")
    trial._while_waiting(None)
    trial._while_waiting("another machine, later")
    trial._slots.halt()  # Ctrl-C ends the waiting
    with pytest.raises(Retreat):
        trial._while_waiting("another machine, later")


def test_all_trials_of_a_process_know_what_has_happened_to_their_workers(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    trial.reset_config(bundle_of(*TOGETHER))
    group = SimpleNamespace(events=[{"event": "group_start"}])
    monkeypatch.setattr(trial, "_group", group)
    reports = trial.step()["reports"]
    group.events.append({"event": "group_lost"})
    expected = [({"event": "group_start", "slot": os.getpid(), "shared_by": 3},)] * 3
    assert [found.events for found in reports] == expected
    trial._slots.halt()
    with pytest.raises(Retreat):
        trial._while_waiting("a worker with 1 CPU")
    left = [trial._slots.left_behind(f"t000{number}") for number in range(3)]
    assert left == [[{"event": "group_lost", "slot": os.getpid(), "shared_by": 3}]] * 3


def test_what_has_happened_is_kept_when_trials_cannot_go_on_together(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_epoch(*_: object) -> None:
        raise FusedEpochFailed("out of memory")

    trial.reset_config(bundle_of(*TOGETHER))
    monkeypatch.setattr(trial, "_group", SimpleNamespace(events=[{"event": "group_start"}], run_epoch=run_epoch))
    monkeypatch.setattr(trial, "_trainer", trial._group)
    with pytest.raises(FusedEpochFailed):
        trial.step()
    expected = [{"event": "group_start", "slot": os.getpid(), "shared_by": 3}]
    assert [trial._slots.left_behind(f"t000{number}") for number in range(3)] == [expected] * 3


LINEAR: dict[str, Any] = {
    "data": GeneratedConfig(num_classes=4, n_max=25, images_per_class=70, image_size=4),
    "classifier": LinearConfig(),
    "compute": ComputeConfig(precision="float64"),
    "epochs": 4,
}
TOGETHER: list[dict[str, Any]] = [
    {"method": CrossEntropyConfig()},
    {"method": DifficultyNetConfig(hidden_width=6, meta_lr=1e-2)},
    {"method": MetaWeightNetConfig(hidden_width=9), "optim": OptimConfig(lr=0.03)},
]


def bundle_of(*trials: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Stints of trials t0000, t0001 and so on; what is no setting of a trial is a field of the stint."""
    stints = []
    for number, trial in enumerate(trials):
        fields = {name: trial[name] for name in trial.keys() & {"checkpoints", "attempt"}}
        config = {name: value for name, value in trial.items() if name not in fields}
        [stint] = stint_of(**LINEAR | changes | config, more={"trial_id": f"t{number:04d}", "bundle": 7, **fields})["stints"]
        stints.append(stint)
    return {"bundle": 7, "stints": stints}


def reports_of(trial: Trial) -> dict[str, EpochReport]:
    return {report.trial_id: report for report in trial.step()["reports"]}


def without_times(metrics: dict[str, float]) -> Any:
    return pytest.approx({name: value for name, value in metrics.items() if not name.startswith("time/")}, abs=1e-10, nan_ok=True)


def assert_same(ours: EpochReport, theirs: EpochReport) -> None:
    assert ours.epoch == theirs.epoch
    assert without_times(ours.metrics) == {name: value for name, value in theirs.metrics.items() if not name.startswith("time/")}
    assert ours.pairing == theirs.pairing
    assert (ours.ended, bool(ours.checkpoint)) == (theirs.ended, bool(theirs.checkpoint))


@pytest.fixture
def alone(trial: Trial) -> list[list[EpochReport]]:
    """The epochs of each of TOGETHER, trained alone."""
    found = []
    for settings in TOGETHER:
        trial.reset_config(stint_of(**LINEAR | settings))
        found.append([report(trial) for _ in range(LINEAR["epochs"])])
    return found


def test_trials_in_one_process_report_what_each_reports_alone(
    trial: Trial, alone: list[list[EpochReport]], monkeypatch: pytest.MonkeyPatch
) -> None:
    fused = sizes_of_fused_runs(monkeypatch)
    for _ in range(2):  # the second bundle is trained by what the first one has left behind
        trial.reset_config(bundle_of(*TOGETHER))
        for epoch in range(LINEAR["epochs"]):
            found = reports_of(trial)
            assert list(found) == ["t0000", "t0001", "t0002"]
            for ours, theirs in zip(found.values(), alone, strict=True):
                assert_same(ours, theirs[epoch])
    assert found["t0001"].checkpoint["path"] == "checkpoints/t0001/0004-1"
    assert fused == [3, 3]


def test_a_trial_that_is_told_to_leave_is_trained_no_further_and_the_others_go_on(
    trial: Trial, alone: list[list[EpochReport]]
) -> None:
    trial.reset_config(bundle_of(*TOGETHER))
    reports_of(trial)
    trial._slots.let_leave("t0001", bundle=6)  # of an earlier bundle
    assert list(reports_of(trial)) == ["t0000", "t0001", "t0002"]
    trial._slots.let_leave("t0001", bundle=7)
    for epoch in (2, 3):
        found = reports_of(trial)
        assert list(found) == ["t0000", "t0002"]
        assert_same(found["t0000"], alone[0][epoch])
        assert_same(found["t0002"], alone[2][epoch])


def test_saved_trials_go_on_together(trial: Trial, alone: list[list[EpochReport]]) -> None:
    trial.reset_config(bundle_of(*TOGETHER))
    saved = [reports_of(trial) for _ in range(2)][-1]
    trial.reset_config(bundle_of(*({**one, "checkpoints": [saved[f"t000{n}"].checkpoint]} for n, one in enumerate(TOGETHER))))
    for epoch in (2, 3):
        for ours, theirs in zip(reports_of(trial).values(), alone, strict=True):
            assert_same(ours, theirs[epoch])


def test_a_damaged_state_sets_its_own_trial_back_and_no_other(trial: Trial, alone: list[list[EpochReport]]) -> None:
    trial.reset_config(bundle_of(*TOGETHER))
    saved = [reports_of(trial) for _ in range(2)][-1]
    (trial._slots.results / saved["t0001"].checkpoint["path"] / STATE).write_bytes(b"damaged")
    trial.reset_config(bundle_of(*({**one, "checkpoints": [saved[f"t000{n}"].checkpoint]} for n, one in enumerate(TOGETHER))))
    for step in range(2):
        found = reports_of(trial)
        assert [report.epoch for report in found.values()] == [3 + step, 1 + step, 3 + step]
        for ours, theirs in zip(found.values(), alone, strict=True):
            assert_same(ours, theirs[ours.epoch - 1])


def test_trials_that_end_by_themselves_leave_the_others_as_they_are(
    trial: Trial, alone: list[list[EpochReport]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One diverges, and the first one, which would load the data, goes on from a state that is not its own."""
    fused = sizes_of_fused_runs(monkeypatch)
    foreign = write_checkpoint(trial._slots.results / "foreign", pack({"epoch": 1}))
    first = TOGETHER[0] | {"checkpoints": [{"epoch": 1, "path": "foreign", "sha256": foreign}]}
    trial.reset_config(bundle_of(first, TOGETHER[1] | {"optim": OptimConfig(lr=1e300)}, TOGETHER[1], TOGETHER[2]))
    found = reports_of(trial)
    assert [report.ended for report in found.values()] == ["failed", "diverged", None, None]
    assert "no trial can go on from it" in found["t0000"].reason
    assert [report.own_fault for report in found.values()] == [False, True, False, False]
    for trial_id in ("t0000", "t0001"):
        trial._slots.let_leave(trial_id, bundle=7)
    assert_same(found["t0002"], alone[1][0])
    found = reports_of(trial)
    assert list(found) == ["t0002", "t0003"]
    assert_same(found["t0002"], alone[1][1])
    assert_same(found["t0003"], alone[2][1])
    assert fused == [3]


def test_trials_that_have_too_little_memory_together_end_the_process_and_are_tried_again(
    trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_much(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(FusedStep, "__call__", too_much)
    trial.reset_config(bundle_of(*TOGETHER))
    with pytest.raises(FusedEpochFailed, match="3 fused trials cannot go on together: out of memory in epoch 1"):
        trial.step()
    trial.reset_config(stint_of(**LINEAR | TOGETHER[1]))
    assert report(trial).ended is None


def test_all_trials_of_a_process_give_heartbeats(trial: Trial) -> None:
    trial.reset_config(bundle_of(*TOGETHER))
    signs = [trial._slots.heartbeat_file(trial_id) for trial_id in ("t0000", "t0001", "t0002")]
    for sign in signs:
        assert int(sign.read_text()) == os.getpid()
        os.utime(sign, (0, 0))
    trial._beaten = 0.0
    trial._on_step(1)
    assert all(time.time() - sign.stat().st_mtime < 60 for sign in signs)
