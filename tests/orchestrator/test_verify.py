"""Folders in which something was changed after it was written. Whole real sweeps are verified in test_sweep.py."""

import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from recorded import DIGITS

from benchmarks.virtual_folder import write_folder
from orchestrator.config.sweep_config import read_sweep
from orchestrator.decide.conductor import decision_hash
from orchestrator.ledger.events import Kind
from orchestrator.ledger.ledger import Ledger, line_digests, read_ledger
from orchestrator.outcome.bundle import PROVENANCE, sealed
from orchestrator.outcome.leaderboard import write_leaderboard
from orchestrator.outcome.tables import trial_rows, write_tables
from orchestrator.verify import main
from trainables.checkpoint import write_checkpoint

OTHER_VERSION = pa.__version__[:-1] + ("1" if pa.__version__.endswith("0") else "0")
"""Of pyarrow."""


def bundle(folder: Path, ledger_head: str = "", **files: object) -> Path:
    """An exported folder; with `files`, also of what is JSON in them."""
    folder.mkdir()
    (folder / "config.yaml").write_text("epochs: 3\n")
    (folder / "model.safetensors").write_bytes(bytes(range(256)))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return seal_again(folder, sweep="demo", trial_id="t0001", ledger_head_sha256=ledger_head)


def seal_again(folder: Path, **known: object) -> Path:
    """Writes provenance.json as an export does, with the digests of the files as they are now."""
    files = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir()) if path.name != PROVENANCE
    }
    earlier = json.loads((folder / PROVENANCE).read_text()) if (folder / PROVENANCE).exists() else {}
    (folder / PROVENANCE).write_bytes(sealed({**earlier, **known, "files": files}))
    return folder


def flip(file: Path, place: int) -> None:
    """Changes one byte."""
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(bytes(content))


def test_an_exported_folder_is_verified_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(bundle(tmp_path / "best"))]) == 0
    assert "3 files of trial t0001 of the sweep demo" in capsys.readouterr().out
    (tmp_path / "best" / "config.yaml").unlink()
    assert main([str(tmp_path / "best"), "--json"]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert (answer["matches"], answer["exit_code"], answer["seen"]) == (False, 1, [])
    assert "config.yaml is missing" in answer["mismatch"]


@pytest.mark.parametrize("name", ["config.yaml", "model.safetensors", PROVENANCE])
def test_any_flipped_byte_of_an_exported_file_is_seen_and_the_file_is_named(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = bundle(tmp_path / "best") / name
    for place in range(file.stat().st_size):
        flip(file, place)
        assert main([str(file.parent)]) == 1, place
        assert f"does not match: {file}" in capsys.readouterr().err
        flip(file, place)
    assert main([str(file.parent)]) == 0


def test_a_file_that_is_missing_or_was_added_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best = bundle(tmp_path / "best")
    (best / "notes.txt").touch()
    assert main([str(best)]) == 1
    assert "notes.txt was not exported" in capsys.readouterr().err
    (best / "notes.txt").unlink()
    (best / "config.yaml").unlink()
    assert main([str(best)]) == 1
    assert "config.yaml is missing" in capsys.readouterr().err


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a sweep in virtual time, with all that a folder may hold: settings, arrays by class, a checkpoint,
    changes to the program, tables, an export with a reading of the test set, and the rows for public tables.
    """
    config = read_sweep(DIGITS, ["search.trials=1", "trial.epochs=3", "scheduler.grace_epochs=1"])
    folder = write_folder(tmp_path_factory.mktemp("results") / "demo", config, end=None)
    for lines in folder.glob("parts/*.jsonl"):  # a sweep removes them
        lines.unlink()
    digest = write_checkpoint(folder / "checkpoints" / "t0000" / "0001-1", b"state")
    changes = f"changes-{hashlib.sha256(b'diff').hexdigest()[:12]}.diff"
    (folder / changes).write_bytes(b"diff")
    settings = hashlib.sha256((folder / "sweep.yaml").read_bytes()).hexdigest()
    best = next(row for row in trial_rows(read_ledger(folder)) if row["status"] == "finished")
    test = {"test/acc": 0.5, "test/plain_acc": 0.5}
    with Ledger(folder) as ledger:
        ledger.append(
            Kind.SWEEP_RESUME,
            segment=2,
            config=config.model_dump(),
            settings_sha256=settings,
            git_commit="a+changes",
            changes=changes,
            versions={"pyarrow": OTHER_VERSION},
        )
        ledger.append(Kind.CHECKPOINT, trial_id="t0000", epoch=1, path="checkpoints/t0000/0001-1", sha256=digest)
        write_tables(folder, ledger.events)
        ledger.append(Kind.TEST_READ, trial_id=best["trial_id"], metrics=test)
        bundle(folder / "best", ledger.head, metrics=metrics_of(best, test))
        ledger.append(Kind.EXPORT, trial_id=best["trial_id"], path=str(folder / "best"), metrics={})
        decided = decision_hash(ledger.events)
        ledger.append(Kind.SWEEP_END, status="finished", reason=None, complete=True, decisions_sha256=decided)
    write_leaderboard(folder, read_ledger(folder))
    return folder


def metrics_of(row: dict[str, Any], test: dict[str, float]) -> dict[str, Any]:
    """metrics.json of a trial that is a reference as well."""
    known: dict[str, Any] = {
        prefix: {key.removeprefix(f"{prefix}/"): value for key, value in row.items() if key.startswith(f"{prefix}/")}
        for prefix in ("best", "last")
    }
    known["trial_id"] = row["trial_id"]
    return {**known, "test": test, "references": {"same": known}}


@pytest.fixture
def copy(sweep: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sweep, tmp_path / "demo"))


def test_a_results_folder_is_what_its_ledger_gives(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(sweep)]) == 0
    out = capsys.readouterr().out
    epochs = [event for event in read_ledger(sweep) if event["event"] == "epoch"]
    assert f"tables as the ledger gives them: rows of trials 3, epochs {len(epochs)}, classes {10 * len(epochs)}" in out
    for seen in ("ledger.head, which", "sweep.yaml, as", "1 checkpoint,", "1 file with changes", "leaderboard.md, as"):
        assert seen in out
    assert "1 exported folder, with the numbers of the ledger\n" in out


@pytest.mark.slow
def test_a_flipped_byte_of_any_file_is_seen_and_the_file_is_named(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(sweep, tmp_path / "demo"))
    files = [path for path in copy.rglob("*") if path.is_file()]
    assert len(files) == 18  # of every kind
    for file in files:
        for place in (0, file.stat().st_size // 2):
            flip(file, place)
            assert main([str(copy)]) == 1, (file, place)
            assert file.name in capsys.readouterr().err, place
            flip(file, place)
    assert main([str(copy)]) == 0


@pytest.mark.slow
def test_a_file_that_is_missing_is_named(sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = Path(shutil.copytree(sweep, tmp_path / "demo"))
    for file in [path for path in copy.rglob("*") if path.is_file() and path.name not in ("ledger.jsonl", "ledger.head")]:
        content = file.read_bytes()
        file.unlink()
        may_be_gone = file.name == PROVENANCE  # without it, a folder is no export
        assert main([str(copy)]) == (0 if may_be_gone else 1), file
        assert may_be_gone or file.name in capsys.readouterr().err
        file.write_bytes(content)


def test_a_results_folder_may_be_moved_and_copied(sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The folder where it was belongs to another sweep by now, or is a copy that was damaged."""
    original, moved = Path(shutil.copytree(sweep, tmp_path / "demo")), tmp_path / "elsewhere"
    renamed = {str(event["n"]): {"path": str(original / "best")} for event in read_ledger(sweep) if event["event"] == "export"}
    rewritten(original, moved, renamed)
    flip(original / "best" / "config.yaml", 0)
    assert main([str(moved)]) == 0
    assert "1 exported folder" in capsys.readouterr().out
    shutil.rmtree(moved / "best")
    shutil.rmtree(original)
    assert main([str(moved)]) == 0
    assert (
        f"0 exported folders, with the numbers of the ledger; not there any more: {original / 'best'}" in capsys.readouterr().out
    )


def test_an_export_that_lies_elsewhere_is_verified_too(sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place, copy = tmp_path / "mine", tmp_path / "demo"
    renamed = {str(event["n"]): {"path": str(place)} for event in read_ledger(sweep) if event["event"] == "export"}
    rewritten(sweep, copy, renamed)
    (copy / "best").rename(place)
    assert main([str(copy)]) == 0
    flip(place / "model.safetensors", 0)
    assert main([str(copy)]) == 1
    assert str(place / "model.safetensors") in capsys.readouterr().err


def rewritten(folder: Path, place: Path, changes: dict[str, dict[str, Any]]) -> None:
    """A copy of a results folder whose ledger says something else in some events, by number."""
    shutil.copytree(folder, place, ignore=shutil.ignore_patterns("ledger.*", "best"))
    shutil.copytree(folder / "best", place / "best")
    times = (event["time"] for event in read_ledger(folder))
    with Ledger(place, clock=lambda: next(times)) as ledger:
        for event in read_ledger(folder):
            fields = {key: value for key, value in event.items() if key not in ("event", "n", "time", "prev", "schema")}
            if event["event"] == Kind.EXPORT:
                seal_again(place / "best", ledger_head_sha256=ledger.head)
            ledger.append(event["event"], **fields | changes.get(str(event["n"]), {}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"best": {"val/acc": 0.99}}, "best/val/acc of t0000 is 0.99, and the ledger gives "),
        ({"last": {"val/acc": 0.99}}, "last/val/acc of t0000 is 0.99"),
        ({"test": {"test/acc": 0.99}}, "has test numbers of t0000 that the ledger does not hold"),
        ({"trial_id": "t0099"}, "of t0099 is "),
        ({"references": {"same": {"trial_id": "t0000", "best": {"val/acc": 0.99}, "last": {}}}}, "best/val/acc of t0000 is 0.99"),
        ({"references": None}, "is not the file of an export"),
    ],
)
def test_numbers_of_an_export_that_the_ledger_does_not_give_are_named_also_when_it_was_sealed_anew(
    change: dict[str, Any], message: str, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = copy / "best" / "metrics.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    seal_again(copy / "best")
    assert main([str(copy)]) == 1
    error = capsys.readouterr().err
    assert f"{file}" in error
    assert message in error


def test_an_export_of_another_ledger_is_none_of_this_one(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seal_again(copy / "best", ledger_head_sha256="0" * 64)
    assert main([str(copy)]) == 1
    assert f"{copy / 'best'} was exported from another ledger" in capsys.readouterr().err


def test_rows_for_public_tables_without_a_reading_are_none_of_the_ledger(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "leaderboard.json").write_text((copy / "leaderboard.json").read_text().replace("50.0", "60.0"))
    assert main([str(copy)]) == 1
    said = re.search(r"leaderboard.json is not what the ledger gives; (.*) writes it anew", capsys.readouterr().err)
    assert said
    subprocess.run(said[1], shell=True, check=True, capture_output=True)
    assert main([str(copy)]) == 0


def test_links_in_an_export_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best = bundle(tmp_path / "best")
    for name in ("model.safetensors", PROVENANCE):
        (best / name).rename(tmp_path / name)
        (best / name).symlink_to(tmp_path / name)
        assert main([str(best)]) == 1
        assert f"{best / name} is a symbolic link" in capsys.readouterr().err
        (best / name).unlink()
        (tmp_path / name).rename(best / name)


def test_a_changed_number_in_a_table_is_seen(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = pq.read_table(copy / "epochs.parquet", partitioning=None)
    place = table.schema.get_field_index("val/acc")
    values = table["val/acc"].to_pylist()
    values[3] += 1e-12
    pq.write_table(table.set_column(place, "val/acc", [values]), copy / "epochs.parquet")
    assert main([str(copy)]) == 1
    assert "epochs.parquet is not what the ledger gives" in capsys.readouterr().err


def test_a_table_of_another_version_of_pyarrow_is_compared_by_its_values(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a version that the ledger names: another one is a changed byte."""
    file = copy / "trials.parquet"
    content, writer = file.read_bytes(), pq.ParquetFile(file).metadata.created_by.encode()
    assert writer.endswith(pa.__version__.encode())
    file.write_bytes(content.replace(writer, writer[: -len(OTHER_VERSION)] + OTHER_VERSION.encode()))
    assert main([str(copy)]) == 0
    file.write_bytes(content.replace(writer, writer[:-1] + b"x"))
    assert main([str(copy)]) == 1
    assert "trials.parquet is not what the ledger gives" in capsys.readouterr().err


def test_another_digest_of_the_decisions_is_seen(sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "demo").mkdir()
    with Ledger(tmp_path / "demo") as ledger:
        for event in read_ledger(sweep):
            fields = {key: value for key, value in event.items() if key not in ("event", "n", "time", "prev", "schema")}
            if event["event"] not in ("checkpoint", "sweep_resume", "export", "trial_end"):
                ledger.append(event["event"], **fields | ({"decisions_sha256": "0" * 64} if "decisions_sha256" in event else {}))
    assert main([str(tmp_path / "demo")]) == 1
    assert "the decisions in the ledger have the SHA-256" in capsys.readouterr().err


def test_a_sweep_that_goes_on_has_no_tables_to_compare(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = read_sweep(DIGITS).model_dump()
    with Ledger(copy) as ledger:
        ledger.append(Kind.SWEEP_RESUME, segment=3, config=config, git_commit=None, versions={})
    assert main([str(copy)]) == 0
    assert "the sweep goes on: the tables are written at its end" in capsys.readouterr().out


def test_what_is_no_folder_of_ours_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "holds neither ledger.jsonl nor provenance.json; allowed: " in capsys.readouterr().err


def test_the_digests_of_lines_are_those_of_the_chain(sweep: Path) -> None:
    lines = [json.loads(line) for line in (sweep / "ledger.jsonl").read_text().splitlines()]
    assert {line["prev"] for line in lines[1:]} <= line_digests(sweep)
    assert len(line_digests(sweep)) == len(lines)
