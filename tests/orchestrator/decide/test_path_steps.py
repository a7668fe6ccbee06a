"""Ablation paths in virtual time: which sets of components are trained, and what the table says of them."""

from pathlib import Path
from typing import Any

import pytest
from recorded import record_virtual

from orchestrator.config.sweep_config import SweepConfig
from orchestrator.decide.conductor import Conductor
from orchestrator.decide.virtual_sweep import Virtual, run
from orchestrator.ledger.events import Event, Kind
from orchestrator.ledger.ledger import read_ledger
from orchestrator.outcome.ablation import compared, explanation, findings
from orchestrator.outcome.confirmation import Row
from orchestrator.outcome.tables import trial_rows
from trainables.config_file import Origin, check
from trainables.settings import flatten

COMPONENTS = {"lr": {"optim.lr": 0.5}, "decay": {"optim.weight_decay": 0.1}, "momentum": {"optim.momentum": 0.5}}


def path(seeds: Any = 2, **changed: Any) -> SweepConfig:
    plan = {"kind": "path", "components": COMPONENTS, "seeds": seeds, "metric": "val/acc", **changed}
    return check(SweepConfig, {"ablation": plan, "trial": {"epochs": 2}}, Origin("PLAN"))


def value(settings: dict[str, Any], epoch: int = 2) -> float | None:
    """Momentum gains 10 points, the step size 5, the decay nothing; but beside momentum, the step size loses 1."""
    momentum, lr = settings["optim.momentum"] == 0.5, settings["optim.lr"] == 0.5
    gain = 0.1 * momentum + (0.05 if not momentum else -0.01) * lr
    return float(0.5 + gain + 0.001 * epoch + 0.01 * settings["seed"])


def trained(events: list[Event]) -> list[tuple[str, int]]:
    return [(event["variant"], event["seed"]) for event in events if event["event"] == Kind.SUGGEST]


def rows_of(done: Virtual, folder: Path, config: SweepConfig) -> list[Row]:
    record_virtual(folder, config, done)
    return trial_rows(read_ledger(folder))


def test_only_the_sets_along_the_path_are_trained_each_once_on_every_seed() -> None:
    config = path()
    found = trained(run(config, value, slots=2).events)
    first = ["none", "lr", "decay", "momentum", "full"]
    assert found == [(name, seed) for seed in (0, 1) for name in first] + [
        (name, seed) for seed in (0, 1) for name in ("lr+momentum", "decay+momentum")
    ]
    assert len(found) == config.num_trials()


def test_the_table_holds_the_steps_and_the_sentences_say_what_each_gains(tmp_path: Path) -> None:
    config = path()
    rows = rows_of(run(config, value, slots=2), tmp_path, config)
    lines = compared(config, rows)
    assert [line.row.name for line in lines] == ["none", "momentum", "decay+momentum", "full"]
    assert [line.label for line in lines] == ["none", "+ momentum", "+ decay", "+ lr"]
    assert [round(line.row.difference or 0, 6) for line in lines] == [0, 0.1, 0.1, 0.09]
    assert [sentence.split(" points")[0] for sentence in findings(config, rows)] == [
        "Step 1 of the path takes momentum: +10.00",
        "Step 2 of the path takes decay: +0.00",
        "Step 3 of the path takes lr: -1.00",
    ]
    assert any("a chosen step looks a little better than it is" in sentence for sentence in explanation(config))


def test_the_path_goes_by_val_and_by_the_epoch_of_the_metric(tmp_path: Path) -> None:
    """In its last epoch momentum loses what it has gained."""

    def falling(settings: dict[str, Any], epoch: int) -> float | None:
        return (value(settings, epoch) or 0) - 0.2 * (settings["optim.momentum"] == 0.5 and epoch == 2)

    assert ("decay+momentum", 0) in trained(run(path(metric="test/acc"), falling, slots=2).events)
    at_the_end = trained(run(path(metric="test_last/acc"), falling, slots=2).events)
    assert {name for name, _ in at_the_end} >= {"lr+decay", "lr+momentum"}
    assert ("decay+momentum", 0) not in at_the_end
    config = path(metric="last/acc")
    lines = compared(config, rows_of(run(config, falling, slots=2), tmp_path, config))
    assert [line.label for line in lines] == ["none", "+ lr", "+ decay", "+ momentum"]


def test_a_set_that_diverges_is_passed_over() -> None:
    def diverging(settings: dict[str, Any], epoch: int) -> float | None:
        return None if settings["optim.momentum"] == 0.5 and settings["seed"] == 1 else value(settings, epoch)

    done = run(path(), diverging, slots=2)
    assert done.conductor.over
    assert {name for name, _ in trained(done.events)} >= {"lr+decay", "lr+momentum"}


@pytest.mark.parametrize("cut", range(3, 60, 7))
def test_a_path_that_is_cut_off_anywhere_asks_for_the_same_trials(cut: int) -> None:
    config = path()
    whole = run(config, value, slots=2)
    past: list[Event] = list(whole.events[:cut])

    def append(event: Kind, **fields: Any) -> Event:
        past.append({"event": event, **fields})  # type: ignore[arg-type]
        conductor.apply(past[-1])
        return past[-1]

    conductor = Conductor(config, 2, append)
    conductor.restore(list(past))
    while conductor.next_stints():
        pass
    assert set(trained(past)) <= set(trained(whole.events))
    assert len(trained(past)) == len(set(trained(past)))


@pytest.mark.parametrize("seeds", [3, 5])
def test_more_seeds_go_on_with_the_trials_that_there_are(seeds: int) -> None:
    """On the first two seeds momentum gains most, on all of them the step size does: then other sets lie on the path."""

    def turning(settings: dict[str, Any], epoch: int) -> float | None:
        return (value(settings, epoch) or 0) + 0.5 * (settings["optim.lr"] == 0.5 and settings["seed"] > 1)

    events = list(run(path(), turning, slots=1).events)
    before = set(trained(events))

    def append(event: Kind, **fields: Any) -> Event:
        events.append({"event": event, **fields})  # type: ignore[arg-type]
        conductor.apply(events[-1])
        return events[-1]

    conductor = Conductor(path(seeds), 1, append)
    conductor.restore(list(events))
    while stints := conductor.next_stints():
        [stint] = stints
        append(Kind.TRIAL_START, trial_id=stint.trial_id, attempt=stint.attempt)
        for epoch in (1, 2):
            append(Kind.CHECKPOINT, trial_id=stint.trial_id, epoch=epoch, path="", sha256="")
            metrics = {"val/acc": turning(flatten(stint.config), epoch)}
            append(Kind.EPOCH, trial_id=stint.trial_id, epoch=epoch, attempt=1, metrics=metrics)
            conductor.after_epoch(stint.trial_id)
    assert conductor.over
    assert len(trained(events)) == len(set(trained(events)))
    at_once = set(trained(run(path(seeds), turning, slots=1).events))
    assert before - at_once
    assert set(trained(events)) == before | at_once


@pytest.mark.parametrize("kind", ["path", "factorial"])
def test_slots_of_several_machines_give_the_same_table(kind: str, tmp_path: Path) -> None:
    config = path(kind=kind, seeds=4)
    tables = []
    for slots in (1, 7):
        rows = rows_of(run(config, value, slots, seed=slots), tmp_path / str(slots), config)
        tables.append((compared(config, rows), findings(config, rows)))
    assert tables[0] == tables[1]
    assert len(tables[0][0]) > 3
