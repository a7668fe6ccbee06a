"""Folders in which something was changed after it was written. Whole real sweeps are verified in test_sweep.py."""

import hashlib
import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from recorded import DIGITS, lively, record_virtual

from orchestrator.config.sweep_config import read_sweep
from orchestrator.decide.conductor import decision_hash
from orchestrator.decide.virtual_sweep import run
from orchestrator.ledger.events import Kind
from orchestrator.ledger.ledger import Ledger, line_digests, read_ledger
from orchestrator.outcome.bundle import PROVENANCE, sealed
from orchestrator.outcome.tables import write_tables
from orchestrator.verify import main
from trainables.checkpoint import write_checkpoint


def bundle(folder: Path) -> Path:
    """An exported folder."""
    folder.mkdir()
    (folder / "config.yaml").write_text("epochs: 3\n")
    (folder / "model.safetensors").write_bytes(bytes(range(256)))
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    (folder / PROVENANCE).write_bytes(sealed({"sweep": "demo", "trial_id": "t0001", "files": files}))
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
    """The results of a sweep in virtual time, with a checkpoint, changes to the program, and its tables."""
    folder = tmp_path_factory.mktemp("results") / "demo"
    config = read_sweep(DIGITS, ["search.trials=6"])
    record_virtual(folder, config, run(config, lively, 2))
    digest = write_checkpoint(folder / "checkpoints" / "t0000" / "0001-1", b"state")
    changes = f"changes-{hashlib.sha256(b'diff').hexdigest()[:12]}.diff"
    (folder / changes).write_bytes(b"diff")
    with Ledger(folder) as ledger:
        ledger.append(
            Kind.SWEEP_RESUME, segment=2, config=config.model_dump(), git_commit="a+changes", changes=changes, versions={}
        )
        ledger.append(Kind.CHECKPOINT, trial_id="t0000", epoch=1, path="checkpoints/t0000/0001-1", sha256=digest)
        write_tables(folder, ledger.events)
        decided = decision_hash(ledger.events)
        ledger.append(Kind.SWEEP_END, status="finished", reason=None, complete=True, decisions_sha256=decided)
    return folder


@pytest.fixture
def copy(sweep: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sweep, tmp_path / "demo"))


def test_a_results_folder_is_what_its_ledger_gives(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(sweep)]) == 0
    out = capsys.readouterr().out
    epochs = sum(event["event"] == "epoch" for event in read_ledger(sweep))
    assert f"tables as the ledger gives them: rows of trials 8, epochs {epochs}, classes 0" in out
    assert "1 checkpoints" in out
    assert "1 files with changes to the program" in out


def test_a_changed_number_in_a_table_is_seen(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = pq.read_table(copy / "epochs.parquet", partitioning=None)
    place = table.schema.get_field_index("val/acc")
    values = table["val/acc"].to_pylist()
    values[3] += 1e-12
    pq.write_table(table.set_column(place, "val/acc", [values]), copy / "epochs.parquet")
    assert main([str(copy)]) == 1
    assert "epochs.parquet is not what the ledger gives" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["ledger.jsonl", "checkpoints/t0000/0001-1/state.pt", "trials.parquet", "changes-*.diff"])
def test_a_changed_file_is_named(name: str, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (file,) = copy.glob(name)
    flip(file, file.stat().st_size // 2)
    assert main([str(copy)]) == 1
    assert file.name in capsys.readouterr().err


def test_a_table_of_another_version_of_pyarrow_is_compared_by_its_values(copy: Path) -> None:
    content = (copy / "trials.parquet").read_bytes()
    writer = pq.ParquetFile(copy / "trials.parquet").metadata.created_by.encode()
    (copy / "trials.parquet").write_bytes(content.replace(writer, writer[:-1] + b"0"))
    assert main([str(copy)]) == 0


def test_another_digest_of_the_decisions_is_seen(sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "demo").mkdir()
    with Ledger(tmp_path / "demo") as ledger:
        for event in read_ledger(sweep):
            fields = {key: value for key, value in event.items() if key not in ("event", "n", "time", "prev", "schema")}
            if event["event"] not in ("checkpoint", "sweep_resume"):
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
