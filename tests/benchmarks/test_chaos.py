import json
import random
import signal
import subprocess
from collections import Counter
from copy import deepcopy
from pathlib import Path

import pytest
from simulation import Simulation

from benchmarks import chaos, damage, synthetic, victims
from benchmarks.accounts import (
    Tables,
    doubled,
    lost,
    missing,
    read_tables,
    repeated,
    running_in_ledger,
    running_in_mlflow,
    running_in_study,
    unexplained,
)
from benchmarks.chaos import Outcome, main, table
from benchmarks.victims import KINDS
from orchestrator.config.sweep_config import SweepConfig
from orchestrator.ledger.ledger import LEDGER, Event, Ledger, read_ledger
from orchestrator.ledger.parquet_files import table_of, write_table
from orchestrator.ledger.trial_states import State, trial_states_of
from orchestrator.outcome.tables import TRIAL_COLUMNS, epoch_rows, trial_rows
from orchestrator.tracking.mlflow_runs import connect
from trainables.checkpoint import read_checkpoint, write_checkpoint
from trainables.config import TrialConfig
from trainables.config_file import Origin, check
from trainables.engine.health import Diverged, OutOfMemory


def sweep_of(name: str) -> SweepConfig:
    return check(SweepConfig, victims.COMMON | KINDS[name].sweep, Origin("test"))


def simulate(config: SweepConfig, *crashes: int) -> tuple[list[list[Event]], list[Event]]:
    """What the ledger held at each crash, and at the end."""
    start = {"event": "sweep_start", "time": 0.0, "config": config.model_dump()}
    simulation = Simulation(config)
    befores = [[start, *simulation.run(crash_after=crash)] for crash in crashes]
    return deepcopy(befores), [start, *simulation.run()]


def tables_of(events: list[Event]) -> Tables:
    epochs = {(row["trial_id"], row["epoch"]) for row in epoch_rows(events)}
    return Tables(table_of(trial_rows(events), TRIAL_COLUMNS).to_pylist(), epochs, set(epochs))


def write(tables: Tables, folder: Path) -> None:
    write_table(table_of(tables.trials, TRIAL_COLUMNS), folder / "trials.parquet")
    for name, held in (("epochs", tables.epochs), ("classes", tables.classes)):
        rows = [{"trial_id": trial_id, "epoch": epoch} for trial_id, epoch in sorted(held)]
        write_table(table_of(rows, {}), folder / f"{name}.parquet")


@pytest.fixture
def killed() -> tuple[list[Event], list[Event]]:
    """The ledger of a sweep when it was killed, and at its end."""
    (before,), after = simulate(sweep_of("promotion"), 110)
    return before, after


@pytest.mark.parametrize("name", KINDS)
def test_a_sweep_that_goes_on_as_it_should_has_nothing_wrong(name: str) -> None:
    config = sweep_of(name)
    befores, after = simulate(config, 20, 50, 51, 80)
    tables = tables_of(after)
    assert [lost(before, after, tables) for before in befores] == [[], [], [], []]
    assert doubled(after, tables) == running_in_ledger(after) == unexplained(after, {}, []) == []
    assert running_in_study(after) == 0
    assert all(count <= 1 for before in befores for count in repeated(before, after[len(before) :]).values())


def test_a_trial_that_has_ended_and_begins_again_is_lost(killed: tuple[list[Event], list[Event]]) -> None:
    before, after = killed
    ended = next(event["trial_id"] for event in before if event["event"] == "trial_end")
    after.append({"event": "trial_start", "time": 999.0, "trial_id": ended, "attempt": 2})
    assert lost(before, after, tables_of(after)) == [ended]


def test_a_trial_that_is_missing_in_the_table_or_stands_there_otherwise_is_lost(killed: tuple[list[Event], list[Event]]) -> None:
    before, after = killed
    ended = next(event["trial_id"] for event in before if event["event"] == "trial_end")
    trials, epochs, classes = tables_of(after)
    missing = [row for row in trials if row["trial_id"] != ended]
    changed = [row | {"epochs": 99} if row["trial_id"] == ended else row for row in trials]
    assert lost(before, after, Tables(missing, epochs, classes)) == [ended]
    assert lost(before, after, Tables(changed, epochs, classes)) == [ended]


def test_an_epoch_that_is_missing_in_a_table_is_lost(killed: tuple[list[Event], list[Event]]) -> None:
    before, after = killed
    trials, epochs, classes = tables_of(after)
    assert lost(before, after, Tables(trials, epochs - {("t0000", 1)}, classes)) == ["t0000 epoch 1"]
    assert lost(before, after, Tables(trials, epochs, classes - {("t0000", 2)})) == ["t0000 epoch 2 by class"]


def test_a_ledger_that_was_begun_anew_is_lost(killed: tuple[list[Event], list[Event]]) -> None:
    before, after = killed
    assert lost(before, [*after[:10], *after[11:]], tables_of(after)) == ["the ledger itself: it does not go on where it was"]


def test_what_is_there_twice_is_doubled(killed: tuple[list[Event], list[Event]]) -> None:
    _, after = killed
    end, suggestion = (next(event for event in after if event["event"] == kind) for kind in ("trial_end", "suggest"))
    tables = tables_of(after)
    assert doubled([*after, end], tables) == [f"{end['trial_id']}: 2 ends"]
    assert doubled([*after, end | {"status": "interrupted"}], tables) == []
    (found,) = doubled([*after, suggestion | {"trial_id": "t0099"}], tables)
    assert found.endswith("2 suggestions of")
    assert doubled(after, tables._replace(trials=[*tables.trials, tables.trials[3]])) == ["t0003: 2 rows"]
    assert f"{suggestion['trial_id']}: 2 suggestions" in doubled([*after, suggestion], tables)
    readings = [{"event": "test_read", "trial_id": "t0001"}] * 2
    assert doubled([*after, *readings], tables) == ["t0001: 2 readings of the test set"]


def test_the_tables_are_read_each_from_its_file(killed: tuple[list[Event], list[Event]], tmp_path: Path) -> None:
    _, after = killed
    whole = tables_of(after)
    tables = whole._replace(classes=whole.classes - {("t0000", 1)})
    write(tables, tmp_path)
    assert read_tables(tmp_path) == tables


def epochs(*reports: tuple[str, int], attempt: int = 1) -> list[Event]:
    return [{"event": "epoch", "trial_id": trial_id, "epoch": epoch, "attempt": attempt} for trial_id, epoch in reports]


def test_epochs_that_are_reported_again_are_counted_by_trial() -> None:
    before = epochs(("t0", 1), ("t1", 1), ("t0", 2), ("t0", 3))
    assert repeated(before, epochs(("t1", 2), ("t0", 4), attempt=2)) == {}
    again = epochs(("t0", 2), ("t0", 3), ("t0", 4), ("t1", 1), attempt=2)
    assert repeated(before, again) == {"t0": 2, "t1": 1}


def test_an_epoch_that_a_power_cut_took_and_whose_state_was_adopted_is_not_repeated() -> None:
    before = epochs(("t0", 1), ("t0", 2), ("t0", 3))
    assert repeated(before, [*epochs(("t0", 2)), *epochs(("t0", 3), attempt=2)]) == {"t0": 1}


def test_what_a_power_cut_took_and_nobody_brought_back_is_missing(killed: tuple[list[Event], list[Event]]) -> None:
    before, after = killed
    trials, epochs, classes = tables_of(after)
    saved = next(number for number, event in enumerate(after) if event["event"] == "checkpoint")
    other = [*after[:saved], *after[saved + 1 :]]  # another story with the same outcome
    assert missing(before, other, Tables(trials, epochs, classes)) == []
    assert missing(before, after, Tables(trials, epochs - {("t0000", 1)}, classes)) == ["t0000 epoch 1"]


def test_a_trial_without_an_end_is_running_in_ledger_and_study() -> None:
    _, after = simulate(sweep_of("digits"))  # no trial of it pauses, and ends for the study by that
    last = max(number for number, event in enumerate(after) if event.get("status") == "finished")
    assert running_in_ledger([*after[:last], *after[last + 1 :]]) == [after[last]["trial_id"]]
    assert running_in_study([*after[:last], *after[last + 1 :]]) == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")  # MLflow's own
def test_a_run_without_an_end_is_running_in_mlflow(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = connect(uri)
    experiment = client.create_experiment("tailtune")
    ended, _ = (client.create_run(experiment) for _ in range(2))
    client.set_terminated(ended.info.run_id)
    assert running_in_mlflow(uri) == 1


def test_only_failures_that_were_caused_are_explained() -> None:
    events = [
        {"event": "retry", "trial_id": "t0"},
        {"event": "trial_end", "trial_id": "t0", "status": "finished", "stop_reason": None},
        {"event": "trial_end", "trial_id": "t1", "status": "failed", "stop_reason": "out of memory"},
    ]
    assert unexplained(events, {"t0": "hang", "t1": "memory"}, ["hang"]) == []
    assert unexplained(events, {"t1": "memory"}, ["hang"]) == ["t0 was tried again 1 times, its fault: None"]
    assert unexplained(events, {"t0": "hang", "t1": None}, ["hang"]) == ["t1 failed: out of memory"]
    diverged = [{"event": "trial_end", "trial_id": "t2", "status": "diverged", "stop_reason": "nan"}]
    assert unexplained(diverged, {"t2": "diverged"}, []) == []
    assert unexplained(diverged, {"t2": None}, []) == unexplained(diverged, {"t2": "memory"}, []) == ["t2 diverged: nan"]
    assert len(unexplained([events[0], *events], {"t0": "hang", "t1": "memory"}, ["hang"])) == 1


def test_a_flipped_bit_damages_the_newest_checkpoint_of_a_running_trial(tmp_path: Path) -> None:
    (before,), _ = simulate(sweep_of("pbt"), 47)
    digests = {}
    for event in before:
        if event["event"] == "checkpoint":
            digests[event["path"]] = write_checkpoint(tmp_path / event["path"], event["path"].encode() * 20)
    trial_id = damage.flip(tmp_path, before, random.Random(0))
    newest = [event["path"] for event in before if event["event"] == "checkpoint" and event["trial_id"] == trial_id][-1]
    assert before[-1]["event"] != "trial_end"
    with pytest.raises(ValueError, match="is not what was written"):
        read_checkpoint(tmp_path / newest, digests.pop(newest))
    for path, digest in digests.items():
        read_checkpoint(tmp_path / path, digest)


def test_neither_ended_trials_nor_a_state_that_an_offspring_is_to_begin_from_are_damaged(tmp_path: Path) -> None:
    def told(event: str, trial_id: str, **fields: object) -> Event:
        return {"event": event, "time": 0.0, "trial_id": trial_id, **fields}

    def begun(trial_id: str, parent: dict[str, object] | None, epoch: int) -> list[Event]:
        config = {"select_by": "val/acc"}
        place = f"checkpoints/{trial_id}/{epoch:04d}-1"
        write_checkpoint(tmp_path / place, b"state" * 20)
        return [
            told("suggest", trial_id, role="search", variant="", seed=0, config=config, parent=parent),
            told("trial_start", trial_id, attempt=1),
            told("checkpoint", trial_id, epoch=epoch, path=place, sha256=""),
        ]

    def reported(trial_id: str, epoch: int) -> Event:
        return told("epoch", trial_id, epoch=epoch, metrics={"val/acc": 0.5})

    rng = random.Random(0)
    donor = begun("t0000", None, 4)
    assert damage.flip(tmp_path, donor, rng) is None  # a state before its epoch is reported is nobody's yet
    donor.append(reported("t0000", 4))
    assert damage.flip(tmp_path, donor, rng) == "t0000"
    offspring = begun("t0001", {"trial_id": "t0000", "epoch": 4}, 5)
    assert damage.flip(tmp_path, [*donor, *offspring], rng) is None  # it needs that state still
    offspring.append(reported("t0001", 5))
    ended = told("trial_end", "t0001", status="finished", stop_reason=None)
    assert damage.flip(tmp_path, [*donor, *offspring, ended], rng) == "t0000"
    assert damage.flip(tmp_path, [*donor[:-1], *offspring, ended], rng) is None


def test_what_is_removed_and_left_behind_is_counted(tmp_path: Path) -> None:
    for name in ("tailtune-1", "tailtune-2", "other"):
        (tmp_path / "scratch" / name).mkdir(parents=True)
    assert damage.drop_scratch(tmp_path / "scratch") == "scratch folders removed: 2"
    assert [path.name for path in (tmp_path / "scratch").iterdir()] == ["other"]
    folder = tmp_path / "sweep"
    damage.leave_orphans(folder)
    assert sorted(damage.orphans_left(folder)) == [f"checkpoints/{trial_id}/9999-9" for trial_id in ("t0000", "t9999")]
    damage.tear(folder)
    assert (folder / "parts" / "t9999.jsonl").read_bytes().startswith(b"half{")


def test_a_torn_ledger_still_reads_as_it_was(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        ledger.append("sweep_start")
    intact = (tmp_path / LEDGER).read_bytes()
    damage.tear(tmp_path)
    assert (tmp_path / LEDGER).read_bytes() != intact
    assert [event["event"] for event in read_ledger(tmp_path)] == ["sweep_start"]


def test_a_power_cut_leaves_what_was_on_the_disk_at_the_last_fsync(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        ledger.append("sweep_start")
        ledger.append("suggest", trial_id="t0000")
        ledger.append("trial_start", trial_id="t0000", attempt=1)
        ledger.append("epoch", trial_id="t0000", epoch=1)
        assert damage.cut_power(tmp_path) == "power cut: 1 lines gone"
    assert [event["event"] for event in read_ledger(tmp_path)] == ["sweep_start", "suggest", "trial_start"]
    assert damage.cut_power(tmp_path) == "power cut: 0 lines gone"


class Presses:
    """A process that ends at the second Ctrl-C, or never."""

    def __init__(self, code: int | None) -> None:
        self.pid, self.code, self.signals = 2**22, code, list[int]()

    def send_signal(self, number: int) -> None:
        self.signals.append(number)

    def wait(self, timeout: float | None = None) -> int:
        if self.code is None and timeout:
            raise subprocess.TimeoutExpired("sweep", timeout)
        return self.code or 0

    def kill(self) -> None:
        self.signals.append(signal.SIGKILL)


@pytest.mark.parametrize(("code", "wrong"), [(130, None), (0, None), (1, "with exit code 1"), (None, "had not ended")])
def test_ctrl_c_is_pressed_twice_and_the_sweep_is_to_end(tmp_path: Path, code: int | None, wrong: str | None) -> None:
    sweep = victims.Sweep(tmp_path, "pbt", KINDS["pbt"])
    process = sweep.process = Presses(code)  # type: ignore[assignment]
    found = sweep.interrupt_twice(0.0)
    assert process.signals[:2] == [signal.SIGINT] * 2
    assert (found is None) if wrong is None else (found is not None and wrong in found)


def settle(base: Path, before: list[Event], after: list[Event], reference: list[Event], flipped: str | None = None) -> Outcome:
    """What a campaign finds in the folder of a digits sweep that was killed once."""
    sweep, outcome = victims.Sweep(base, "digits", KINDS["digits"]), Outcome("digits")
    sweep.folder.mkdir()
    with Ledger(sweep.folder) as ledger:  # gives the events what every line has
        for event in [*after, {"event": "sweep_end", "complete": True}]:
            ledger.append(**{key: value for key, value in event.items() if key not in ("n", "time", "prev")})
    written = list(read_ledger(sweep.folder))
    write(tables_of(written), sweep.folder)
    (sweep.folder / "best").mkdir()
    (sweep.folder / "best" / "model.safetensors").touch()
    past = [chaos.Killed(written[: len(before)], written[: len(before)], flipped)]
    chaos.Campaign(base, {}, 0, print)._settle(sweep, outcome, past, reference)
    return outcome


def test_a_sweep_is_held_to_the_undisturbed_one_and_to_what_a_kill_may_cost(tmp_path: Path) -> None:
    (before,), after = simulate(sweep_of("digits"), 72)
    _, undisturbed = simulate(sweep_of("digits"))
    fine = settle(tmp_path / "fine", before, after, undisturbed)
    assert (fine.wrong, fine.decisions_equal, fine.running, fine.trials) == ([], True, [0, 0, None], 10)
    assert fine.repeated <= 1

    fewer = [event for event in undisturbed if event["event"] != "decide"]
    other = settle(tmp_path / "other", before, after, fewer)
    assert (other.wrong, other.decisions_equal) == (["other decisions than in the undisturbed sweep"], False)

    running = [trial for trial in trial_states_of(before).values() if trial.state == State.RUNNING and trial.epoch >= 2]
    trial_id = running[0].trial_id
    reported = [event for event in before if event["event"] == "epoch" and event["trial_id"] == trial_id]
    again = [*before, *(event | {"attempt": 2} for event in reported[-2:]), *after[len(before) :]]
    costly = settle(tmp_path / "costly", before, again, undisturbed)
    assert costly.wrong == [f"{trial_id} repeated 2 epochs after kill 1"]
    assert settle(tmp_path / "flipped", before, again, undisturbed, flipped=trial_id).wrong == []

    last = max(number for number, event in enumerate(after) if event["event"] == "trial_end")
    left = settle(tmp_path / "left", before, [*after[:last], *after[last + 1 :]], undisturbed)
    assert left.running == [1, 1, None]
    assert "RUNNING (ledger, study, MLflow): [1, 1, None]" in left.wrong


def test_what_is_wrong_decides_the_exit_code_and_stands_below_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = Outcome("pbt", 2, Counter(torn=1), 10, 1, 0, 1, False, [0, 0, None], 12.3, ["lost: t0001"])
    assert table([outcome]).splitlines()[1].split() == ["pbt", "2", "10", "1", "0", "1", "no", "0/0/-", "12", "1", "torn"]
    assert table([outcome]).splitlines()[-1] == "pbt: lost: t0001"
    assert table([Outcome("pbt")]).splitlines()[-1] == "nothing is wrong"
    monkeypatch.setattr(chaos.Campaign, "run", lambda self, kills: [outcome])
    assert main(["--kills", "1", "--json"]) == 1
    monkeypatch.setattr(chaos.Campaign, "run", lambda self, kills: [Outcome("pbt")])
    assert main(["--kills", "1", "--json"]) == 0


@pytest.mark.parametrize("arguments", [["--kills", "0"], ["--sweeps", "0"], ["--sweeps", "pbt,other"]])
def test_a_campaign_without_kills_or_with_an_unknown_sweep_is_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert "allowed: at least 1, and 1 to 4 or ['digits', " in capsys.readouterr().err


def test_results_are_kept_where_a_folder_is_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[tuple[Path, list[str]]] = []

    def run(campaign: chaos.Campaign, kills: int) -> list[Outcome]:
        assert campaign._base.is_dir()
        seen.append((campaign._base, list(campaign._kinds)))
        return []

    monkeypatch.setattr(chaos.Campaign, "run", run)
    main(["--sweeps", "2"])
    main(["--sweeps", "pbt", "--folder", str(tmp_path / "kept")])
    (first, names), (second, name) = seen
    assert (names, name) == (["digits", "promotion"], ["pbt"])
    assert not first.exists()
    assert second.is_dir()


def test_kills_are_shared_by_the_kinds_and_go_on_where_sweeps_end_too_soon(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[tuple[str, int]] = []

    def killed(most: int, kills: int) -> list[tuple[str, int]]:
        def disturb(campaign: chaos.Campaign, name: str, suffix: int, kills: int) -> Outcome:
            asked.append((name, kills))
            return Outcome(name, min(kills, most))

        asked.clear()
        monkeypatch.setattr(chaos.Campaign, "_disturb", disturb)
        chaos.Campaign(tmp_path, {name: KINDS[name] for name in ("pbt", "promotion")}, 0, print).run(kills)
        return asked

    assert killed(most=99, kills=5) == [("pbt", 3), ("promotion", 2)]
    assert killed(most=2, kills=7) == [("pbt", 4), ("promotion", 5), ("pbt", 3), ("promotion", 1)]
    assert killed(most=0, kills=5) == [("pbt", 3), ("promotion", 5)]  # they end before anybody can kill them


@pytest.fixture
def trial(monkeypatch: pytest.MonkeyPatch) -> TrialConfig:
    monkeypatch.setattr(synthetic, "STEP_S", (0.0, 0.0))
    monkeypatch.delenv(synthetic.FOLDER, raising=False)
    return sweep_of("promotion").trial


def epochs_of(run: synthetic.SyntheticRun, count: int) -> list[float]:
    return [run.run_epoch(lambda step: None)["val/acc"] for _ in range(count)]


def test_a_synthetic_trial_goes_on_with_the_same_numbers_but_not_from_another_ones_state(
    trial: TrialConfig, tmp_path: Path
) -> None:
    whole, first, second = synthetic.SyntheticRun(), synthetic.SyntheticRun(), synthetic.SyntheticRun()
    whole.start(trial)
    first.start(trial)
    expected = epochs_of(whole, 4)
    assert epochs_of(first, 2) == expected[:2]
    first.save(tmp_path / "0002-1")
    second.load(tmp_path / "0002-1", trial)
    assert epochs_of(second, 2) == expected[2:]
    mutated = trial.model_copy(update={"method": trial.method.model_copy(update={"meta_lr": 0.5})})
    second.load(tmp_path / "0002-1", mutated)
    assert (second.epoch, second.best) == (2, None)
    with pytest.raises(ValueError, match="belongs to another configuration: seed"):
        second.load(tmp_path / "0002-1", trial.model_copy(update={"seed": 7}))
    (tmp_path / "0002-1").rename(tmp_path / "0003-1")
    with pytest.raises(ValueError, match="holds the state after epoch 2"):
        second.load(tmp_path / "0003-1", trial)


def fail(config: TrialConfig) -> str:
    run = synthetic.SyntheticRun()
    run.start(config)
    try:
        epochs_of(run, synthetic.LAST_FAULTY_EPOCH)
    except (Diverged, OutOfMemory, RuntimeError) as error:
        return type(error).__name__
    return "nothing"


def test_permanent_faults_come_again_and_transient_ones_once(
    trial: TrialConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    having: dict[str | None, TrialConfig] = {}
    for seed in range(100):
        config = trial.model_copy(update={"seed": seed})
        having.setdefault(synthetic.fault_of(config), config)
    assert set(having) == {None, *synthetic.FAULTS}
    assert fail(having["diverged"]) == "nothing"  # without a folder there are no faults
    monkeypatch.setenv(synthetic.FOLDER, str(tmp_path))
    for _ in range(2):
        assert [fail(having[name]) for name in ("diverged", "memory", None)] == ["Diverged", "OutOfMemory", "nothing"]
    monkeypatch.setenv(synthetic.ONLY, "permanent")
    assert fail(having["error"]) == "nothing"
    monkeypatch.delenv(synthetic.ONLY)
    assert [fail(having["error"]) for _ in range(2)] == ["RuntimeError", "nothing"]


@pytest.mark.slow
def test_a_sweep_that_loses_its_power_and_hears_ctrl_c_twice_loses_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The short form of the campaign: a power cut, Ctrl-C twice, and a kill while the sweep ends."""
    monkeypatch.setattr(chaos.Campaign, "_early_moment", lambda self: self._moment_midway(10))
    # Half the processes of the campaign. None of these trials hangs, and a busy machine may keep one from its heartbeat for long.
    one_slot = {"max_concurrent": 1, "heartbeat_timeout_s": 60}
    small = {"trial": victims.TRIAL | {"epochs": 4}, "search": {"trials": 4, "deterministic": True}, "resources": one_slot}
    kinds = {"promotion": KINDS["promotion"]._replace(sweep=KINDS["promotion"].sweep | small)}
    assert main(["--kills", "3", "--json"], kinds) == 0
    (outcome,) = json.loads(capsys.readouterr().out)
    assert (outcome["kills"], outcome["lost"], outcome["doubled"]) == (3, 0, 0)
    assert {"power", "Ctrl-C twice"} <= outcome["faults"].keys()
    assert outcome["decisions_equal"]
