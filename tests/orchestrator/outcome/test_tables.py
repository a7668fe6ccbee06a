import json
import random
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestrator.ledger import parquet_files
from orchestrator.ledger.class_arrays import append_epoch, seal
from orchestrator.ledger.events import Event
from orchestrator.ledger.ledger import Ledger, LedgerError
from orchestrator.ledger.parquet_files import table_of
from orchestrator.outcome.tables import TRIAL_COLUMNS, best_trial, epoch_rows, not_dominated, trial_rows, write_tables
from trainables.config import TrialConfig
from trainables.method_config import CrossEntropyConfig


def record(folder: Path) -> None:
    """Two trials: the first is stopped after a repeated epoch, the second finishes; a third was only suggested."""
    clock = iter(range(100))
    with Ledger(folder, clock=lambda: float(next(clock))) as ledger:
        ledger.append("sweep_start")
        for number, config in enumerate((TrialConfig(), TrialConfig(method=CrossEntropyConfig()), TrialConfig())):
            ledger.append("suggest", trial_id=f"t{number}", role="search", variant="", seed=0, config=config.model_dump())
        ledger.append("trial_start", trial_id="t0", attempt=1)
        ledger.append("epoch", trial_id="t0", epoch=1, attempt=1, metrics={"val/acc": 0.9, "val/acc_many": float("nan")})
        ledger.append("trial_start", trial_id="t1", attempt=1)
        ledger.append("epoch", trial_id="t0", epoch=1, attempt=2, metrics={"val/acc": 0.5, "val/acc_many": float("nan")})
        for epoch, accuracy in ((1, 0.6), (2, 0.7), (3, 0.65)):
            ledger.append("epoch", trial_id="t1", epoch=epoch, attempt=1, metrics={"val/acc": accuracy})
        ledger.append("trial_end", trial_id="t0", status="stopped_early", stop_reason="below the cutoff")
        nothing = [None, None]
        classes = {"accuracy": [0.0, 0.1], "meta_accuracy": nothing, "difficulty": nothing, "weight": [1.0, 1.0]}
        append_epoch(folder, "t1", 1, classes | {"train_count": [5, 5]})
        part = seal(folder, "t1", {1, 2, 3})
        ledger.append("trial_end", trial_id="t1", status="finished", stop_reason=None, **part)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    record(tmp_path)
    return tmp_path


def events(folder: Path) -> Sequence[Event]:
    from orchestrator.ledger.ledger import read_ledger

    return read_ledger(folder)


def test_a_row_for_each_trial_with_its_last_and_its_best_epoch(folder: Path) -> None:
    first, second, third = trial_rows(events(folder))
    assert (first["status"], first["stop_reason"], first["epochs"]) == ("stopped_early", "below the cutoff", 1)
    assert first["best/val/acc"] == 0.5  # the 0.9 of the attempt that was repeated is gone
    assert (second["status"], second["epochs"], second["last/val/acc"]) == ("finished", 3, 0.65)
    assert (second["best/epoch"], second["best/val/acc"]) == (2, 0.7)
    assert second["config/method.name"] == "cross_entropy"
    assert second["wall_s"] == 4  # from its start to its last epoch
    assert (third["status"], third["epochs"]) == ("running", 0)


def test_of_a_repeated_epoch_the_last_attempt_counts(folder: Path) -> None:
    rows = list(epoch_rows(events(folder)))
    assert [(row["trial_id"], row["epoch"], row["attempt"]) for row in rows] == [
        ("t0", 1, 2),
        ("t1", 1, 1),
        ("t1", 2, 1),
        ("t1", 3, 1),
    ]
    assert rows[0]["val/acc"] == 0.5


def suggested(trial_id: str, **fields: object) -> Event:
    config = TrialConfig().model_dump()
    return {
        "event": "suggest",
        "time": 0.0,
        "trial_id": trial_id,
        "role": "search",
        "variant": "",
        "seed": 0,
        "config": config,
        **fields,
    }


def epoch_of(trial_id: str, epoch: int, accuracy: float | None) -> Event:
    metrics = {"val/acc": accuracy}
    return {"event": "epoch", "time": 0.0, "trial_id": trial_id, "epoch": epoch, "attempt": 1, "metrics": metrics}


def test_of_equal_epochs_the_earlier_is_the_best_and_one_without_a_number_is_not() -> None:
    (row,) = trial_rows([suggested("t0"), *(epoch_of("t0", n, value) for n, value in enumerate((None, 0.7, 0.7, 0.6), 1))])
    assert (row["best/epoch"], row["best/val/acc"], row["last/val/acc"]) == (2, 0.7, 0.6)


def test_of_equal_trials_the_earlier_is_the_best() -> None:
    rows = trial_rows([event for trial_id in ("t0", "t1") for event in (suggested(trial_id), epoch_of(trial_id, 1, 0.5))])
    assert best_trial([row | {"status": "finished"} for row in rows])["trial_id"] == "t0"


def test_a_trial_that_was_interrupted_and_goes_on_is_running() -> None:
    trial: Event = {"time": 0.0, "trial_id": "t0"}
    end = trial | {"event": "trial_end", "status": "interrupted", "stop_reason": "Ctrl-C"}
    (row,) = trial_rows([suggested("t0"), end, trial | {"event": "trial_start", "attempt": 2}])
    assert (row["status"], row["stop_reason"]) == ("running", None)


def test_an_offspring_names_the_state_that_it_goes_on_from() -> None:
    first, second = trial_rows([suggested("t0"), suggested("t1", parent={"trial_id": "t0", "epoch": 4})])
    assert (first["parent_trial"], first["parent_epoch"]) == (None, None)
    assert (second["parent_trial"], second["parent_epoch"]) == ("t0", 4)


def test_a_column_of_numbers_and_words_becomes_text_and_what_is_missing_stays_missing() -> None:
    table = table_of([{"x": 1, "y": 1}, {"x": "mean", "y": 0.5}, {}], TRIAL_COLUMNS)
    assert (table["x"].to_pylist(), table["y"].to_pylist()) == (["1", "mean", None], [1.0, 0.5, None])


def test_only_finished_trials_compete(folder: Path) -> None:
    rows = trial_rows(events(folder))
    assert best_trial(rows)["trial_id"] == "t1"
    assert best_trial([row for row in rows if row["status"] != "finished"]) is None


def test_the_tables_can_be_read_by_anyone(folder: Path) -> None:
    write_tables(folder, events(folder))
    trials, epochs, classes = (pq.read_table(folder / f"{name}.parquet") for name in ("trials", "epochs", "classes"))
    assert trials.column_names[:8] == ["trial_id", "role", "variant", "seed", "status", "stop_reason", "epochs", "wall_s"]
    assert trials["config/method.driver_weight"].to_pylist() == [0.3, None, 0.3]
    assert epochs["val/acc_many"].null_count == 4
    assert classes.to_pylist()[1] == {
        "trial_id": "t1",
        "epoch": 1,
        "class": 1,
        "accuracy": 0.1,
        "mistaken_for": None,
        "meta_accuracy": None,
        "difficulty": None,
        "weight": 1.0,
        "train_count": 5,
        "clean_count": None,
    }


def test_writing_the_tables_again_gives_the_same_tables(folder: Path) -> None:
    write_tables(folder, events(folder))
    first = {path.name: pq.read_table(path) for path in folder.glob("*.parquet")}
    write_tables(folder, events(folder))
    assert all(pq.read_table(folder / name) == table for name, table in first.items())
    assert len(first) == 3


@pytest.mark.parametrize("damage", ["change", "remove"])
def test_a_part_that_is_not_what_was_written_is_noticed(folder: Path, damage: str) -> None:
    part = folder / "parts" / "t1.parquet"
    part.unlink() if damage == "remove" else part.write_bytes(part.read_bytes() + b"x")
    with pytest.raises(LedgerError, match=r"t1.parquet is missing or was changed"):
        write_tables(folder, events(folder))


def test_only_trials_that_none_surpasses_are_worth_choosing_from() -> None:
    scores = {"t0": (0.9, 0.1), "t1": (0.8, 0.5), "t2": (0.7, 0.5), "t3": (0.1, 0.9), "t4": (0.8, 0.5)}
    competing = {"status": "finished", "role": "search", "variant": ""}
    rows = [{"trial_id": name, "best/a": a, "best/b": b, **competing} for name, (a, b) in scores.items()]
    for other in ({"status": "failed"}, {"role": "confirm", "variant": ""}):  # neither of which is the search's
        rows.append({"trial_id": "t5", "best/a": 1.0, "best/b": 1.0, **competing, **other})
    assert [row["trial_id"] for row in not_dominated(rows, ["a", "b"])] == ["t0", "t1", "t3", "t4"]


def test_a_configuration_that_the_search_ran_on_several_seeds_counts_with_their_mean() -> None:
    def row(trial_id: str, seed: int, lr: float, value: float) -> dict[str, object]:
        known = {"trial_id": trial_id, "role": "search", "variant": "", "status": "finished", "confirms": None}
        return known | {"config/seed": seed, "config/lr": lr, "config/select_by": "val/acc", "best/val/acc": value}

    lucky = [row("t0", 0, 0.1, 0.7), row("t1", 1, 0.1, 0.9), row("t2", 0, 0.2, 0.81)]
    assert best_trial(lucky) == lucky[2]
    better = [row("t0", 0, 0.1, 0.75), row("t1", 1, 0.1, 0.9), row("t2", 0, 0.2, 0.81)]
    assert best_trial(better) == better[0]  # the first of its runs, on the seed of all others


def random_ledger(folder: Path, seed: int) -> None:
    """Trials that report in turns, with repeated epochs, missing metrics and arrays by class."""
    draw = random.Random(seed)
    with Ledger(folder) as ledger:
        ledger.append("sweep_start")
        trials = [f"t{number:04d}" for number in range(5)]
        for trial_id in trials:
            config = TrialConfig().model_dump()
            ledger.append("suggest", trial_id=trial_id, role="search", variant="", seed=0, config=config)
        for _ in range(60):
            trial_id, epoch = draw.choice(trials), draw.randint(1, 8)
            metrics = {"val/acc": draw.random(), "val/acc_few": draw.choice([None, 0.25]), "count": draw.choice([1, 2.5])}
            if draw.random() < 0.3:
                metrics["late"] = draw.randint(0, 9)
            ledger.append("epoch", trial_id=trial_id, epoch=epoch, attempt=draw.randint(1, 3), metrics=metrics)
            arrays = {name: [draw.random(), None] for name in ("accuracy", "meta_accuracy", "difficulty", "weight")}
            append_epoch(folder, trial_id, epoch, arrays | {"train_count": [7, 1]})
        for trial_id in trials:
            ledger.append("trial_end", trial_id=trial_id, status="finished", stop_reason=None, **seal(folder, trial_id, range(9)))


@pytest.mark.parametrize("seed", range(3))
def test_tables_written_in_parts_are_those_made_of_all_rows_at_once(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against tables that are made in memory, in the simplest way."""
    monkeypatch.setattr(parquet_files, "ROWS_AT_A_TIME", 7)
    monkeypatch.setattr(parquet_files, "ROWS_OF_GROUP", 10)
    random_ledger(tmp_path, seed)
    write_tables(tmp_path, events(tmp_path))
    rows: dict[tuple[str, int], dict[str, object]] = {}
    for event in events(tmp_path):
        if event["event"] == "epoch":
            own = {key: event[key] for key in ("trial_id", "epoch", "attempt", "time")}
            rows[event["trial_id"], event["epoch"]] = own | event["metrics"]
    assert pq.ParquetFile(tmp_path / "epochs.parquet").num_row_groups > 1
    assert pq.read_table(tmp_path / "epochs.parquet").equals(all_at_once(list(rows.values())))
    classes = []
    for number in range(5):
        last = {}
        for line in arrays_of(tmp_path, f"t{number:04d}"):
            last[line["epoch"]] = line
        classes += [last[epoch] for epoch in sorted(last)]
    found = pq.read_table(tmp_path / "classes.parquet").to_pylist()
    assert [(row["epoch"], row["class"], row["accuracy"]) for row in found] == [
        (line["epoch"], number, value) for line in classes for number, value in enumerate(line["accuracy"])
    ]


def all_at_once(rows: list[dict[str, object]]) -> pa.Table:
    names = list(dict.fromkeys(key for row in rows for key in row))
    kinds = {"trial_id": pa.string(), "epoch": pa.int64(), "attempt": pa.int64(), "late": pa.int64()}
    return pa.table({name: pa.array([row.get(name) for row in rows], kinds.get(name, pa.float64())) for name in names})


def arrays_of(folder: Path, trial_id: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "parts" / f"{trial_id}.jsonl").read_text().splitlines()]


def test_a_collapsed_weighting_is_named_as_of_the_last_epoch(tmp_path: Path) -> None:
    zero, none = {"collapse/zero_weight_classes": 2.0}, {"collapse/zero_weight_classes": 0.0}
    with Ledger(tmp_path, clock=lambda: 0.0) as ledger:
        for trial_id, signs in {"t0": (none, zero), "t1": (zero, none), "t2": ({}, {}), "t3": ()}.items():
            ledger.append("suggest", trial_id=trial_id, role="search", variant="", seed=0, config=TrialConfig().model_dump())
            ledger.append("trial_start", trial_id=trial_id, attempt=1)
            for epoch, metrics in enumerate(signs, 1):
                ledger.append("epoch", trial_id=trial_id, epoch=epoch, attempt=1, metrics={"val/acc": 0.5, **metrics})
    write_tables(tmp_path, events(tmp_path))
    assert pq.read_table(tmp_path / "trials.parquet")["collapse"].to_pylist() == [
        "the weights of 2 classes are 0",
        None,
        None,
        None,
    ]
