"""What a kill at an unlucky moment must not cost."""

import json
from pathlib import Path
from typing import Any

import pytest
from simulation import Simulation

from orchestrator.config.sweep_config import SweepConfig
from orchestrator.decide.conductor import Stint, decision_hash
from orchestrator.ledger.class_arrays import append_epoch, read_class_arrays, seal
from orchestrator.ledger.ledger import LEDGER, Event, Ledger, read_ledger
from orchestrator.run.member import EpochReport
from orchestrator.run.preflight import Found, check_folder
from orchestrator.run.prepare import SweepRequest
from orchestrator.run.signals import Slots
from orchestrator.run.supervisor import Supervisor
from orchestrator.sweep import run
from trainables.config_file import Origin, check

CLASSES = {name: [0.5, None] for name in ("accuracy", "meta_accuracy", "difficulty", "weight")} | {"train_count": [2, 1]}


def sweep(**changes: Any) -> SweepConfig:
    tree = {
        "trial": {"epochs": 4},
        "space": {"method.meta_lr": {"type": "float", "low": 0.001, "high": 0.1}},
        "search": {"trials": 6, "sampler": "random", "deterministic": True},
        "scheduler": {"name": "pbt", "interval_epochs": 2},
        "resources": {"max_concurrent": 6},
    }
    return check(SweepConfig, tree | changes, Origin("test"))


def supervisor(folder: Path, ledger: Ledger, config: SweepConfig) -> Supervisor:
    (folder / "slots").mkdir(exist_ok=True)
    slots = Slots(2, folder / "slots", folder, 1)
    return Supervisor(config, ledger, slots, note=lambda text: None)


def report(stint: Stint, folder: Path, epoch: int) -> EpochReport:
    place = f"checkpoints/{stint.trial_id}/{epoch:04d}-{stint.attempt}"
    (folder / place).mkdir(parents=True)
    return EpochReport(stint.trial_id, epoch, {"val/acc": 0.5}, CLASSES, {"epoch": epoch, "path": place, "sha256": ""})


def test_an_epoch_of_which_the_ledger_knows_has_its_state_there_too(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        sweeping = supervisor(tmp_path, ledger, sweep())
        [stint] = sweeping.next_stints()
        sweeping.on_start([stint.trial_id])
        sweeping.on_reports(stint.bundle, [report(stint, tmp_path, 1)])
    kinds = [event["event"] for event in read_ledger(tmp_path)]
    assert kinds.index("checkpoint") < kinds.index("epoch")


def test_an_offspring_finds_its_origin_wherever_a_kill_came() -> None:
    undisturbed = Simulation(sweep()).run()
    for crash in range(len(undisturbed)):
        simulation = Simulation(sweep())
        simulation.run(crash_after=crash)
        assert decision_hash(simulation.run()) == decision_hash(undisturbed), crash


def test_an_offspring_whose_only_own_state_is_damaged_still_has_its_origin() -> None:
    seen = []

    class Watched(Simulation):
        def _step(self, stint: Stint, epoch: int) -> bool:
            leaves = super()._step(stint, epoch)
            young = [m for m in self.conductor.trials.values() if m.parent and m.state != "ended" and len(m.checkpoints) == 1]
            seen.extend(len(self.conductor.sources(member)) for member in young)
            return leaves

    for order in range(10):
        Watched(sweep(trial={"epochs": 9}, scheduler={"name": "pbt", "interval_epochs": 3}), order).run()
    assert seen
    assert set(seen) == {2}


def test_a_part_can_be_sealed_again_until_the_ledger_has_the_end(tmp_path: Path) -> None:
    config = sweep(trial={"epochs": 1}, scheduler={"name": "none"}, search={"trials": 1})
    with Ledger(tmp_path) as ledger:
        sweeping = supervisor(tmp_path, ledger, config)
        [stint] = sweeping.next_stints()
        append_epoch(tmp_path, stint.trial_id, 1, CLASSES)
        first = seal(tmp_path, stint.trial_id, {1})  # ... and killed before the trial's end was written
        assert first == seal(tmp_path, stint.trial_id, {1})
        sweeping.on_start([stint.trial_id])
        sweeping.on_reports(stint.bundle, [report(stint, tmp_path, 1)])
    assert len(read_class_arrays(tmp_path, read_ledger(tmp_path))) == 2
    assert not list(tmp_path.glob("parts/*.jsonl"))


def test_a_process_waits_for_no_other_where_one_trial_is_all_that_can_go_on(tmp_path: Path) -> None:
    slots = Slots(2, tmp_path, tmp_path, 1)
    slots.want("t0005")
    assert slots.wait_for_all(timeout_s=0)
    slots.want("t0006")
    assert not slots.wait_for_all(timeout_s=0)


def test_a_sweep_that_was_killed_within_its_first_event_has_not_begun(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    folder.mkdir()
    (folder / "sweep.yaml").write_text("")
    (folder / LEDGER).write_text(json.dumps({"n": 0, "event": "sweep_start"})[:20])
    assert check_folder(folder, sweep()) is Found.NOTHING


def test_a_sweep_that_was_killed_after_its_last_event_still_sends_it_to_mlflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[Any] = []

    class Tracker:
        def __init__(self, config: Any, results: Path, name: str, note: Any, past: list[Event], *_: Any) -> None:
            sent.append((results, name, [event["event"] for event in past]))

        def close(self, *_: Any) -> None:
            sent.append("closed")

    monkeypatch.setattr("orchestrator.run.session.Tracker", Tracker)
    monkeypatch.setattr("orchestrator.run.prepare.check_folder", lambda *_: Found.COMPLETE)
    monkeypatch.setattr("orchestrator.terminal.summary.print_outcome", lambda *_, **__: 0)
    (tmp_path / "demo").mkdir()
    with Ledger(tmp_path / "demo") as ledger:
        ledger.append("sweep_end", status="finished")
    assert run(SweepRequest(sweep(), Origin("test"), tmp_path / "demo", resume=True)) == 0
    assert sent == [(tmp_path, "demo", ["sweep_end"]), "closed"]
