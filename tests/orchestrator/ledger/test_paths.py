import json
import os
from pathlib import Path
from typing import Any

import pytest

from orchestrator.ledger.class_arrays import read_class_arrays
from orchestrator.ledger.events import SCHEMA
from orchestrator.ledger.ledger import LEDGER, Ledger, LedgerError, read_ledger
from orchestrator.ledger.paths import UnsafePath, inside, refuse_links, uploadable


def plant(folder: Path, **event: Any) -> None:
    """A ledger of one line, as somebody might send it."""
    line = {"schema": SCHEMA, "n": 0, "time": 1.0, **event, "prev": ""}
    (folder / LEDGER).write_text(json.dumps(line) + "\n")


@pytest.mark.parametrize("path", ["/etc", "../other", "checkpoints/../../x", "checkpoints/t0000", "checkpoints/t0/1-1/..", 7, ""])
@pytest.mark.parametrize("kind", ["checkpoint", "damaged"])
def test_a_checkpoint_outside_the_folder_is_refused_with_the_line(tmp_path: Path, kind: str, path: object) -> None:
    plant(tmp_path, event=kind, trial_id="t0000", epoch=1, path=path, sha256="")
    with pytest.raises(LedgerError) as caught:
        read_ledger(tmp_path)
    assert f"{LEDGER}, line 1: path is {path!r}; allowed: checkpoints/TRIAL/EPOCH-ATTEMPT" in str(caught.value)
    with pytest.raises(LedgerError, match="line 1: path is"):
        Ledger(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("trial_id", "../t0000"),
        ("trial_id", "t0000/"),
        ("replaces", "x"),
        ("confirms", "/"),
        ("donor", "t1\n"),
        ("class_arrays", "/etc/passwd"),
        ("class_arrays", "parts/../x.parquet"),
        ("parent", {"trial_id": "../x", "epoch": 1}),
    ],
)
def test_ids_and_parts_of_another_form_are_refused(tmp_path: Path, field: str, value: object) -> None:
    plant(tmp_path, event="suggest", **{"trial_id": "t0000", field: value})
    with pytest.raises(LedgerError, match=rf"line 1: {field if field != 'parent' else 'trial_id of parent'} is .*; allowed: "):
        read_ledger(tmp_path)


def test_what_a_sweep_writes_is_taken(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        ledger.append("checkpoint", trial_id="t12345", epoch=1, path="checkpoints/t12345/0001-1", sha256="")
        ledger.append("trial_end", trial_id="t0007", status="finished", stop_reason=None, class_arrays="parts/t0007.parquet")
        ledger.append("export", trial_id="t0007", path=str(tmp_path / "best"), metrics={})
        ledger.append("export_other", trial_id="t0007", path=str(tmp_path / "export_t0007"))
        ledger.append("decide", trial_id="t0007", epoch=1, action="stop", donor=None)
    assert len(read_ledger(tmp_path)) == 5


def test_a_path_is_inside_when_it_leads_there_without_links(tmp_path: Path) -> None:
    folder, outside = tmp_path / "demo", tmp_path / "outside"
    (folder / "checkpoints").mkdir(parents=True)
    (outside / "0001-1").mkdir(parents=True)
    (folder / "checkpoints" / "t0000").symlink_to(outside)
    (tmp_path / "linked").symlink_to(folder)  # where the folder itself is, is its owner's business
    assert inside(folder, "checkpoints/t0001/0001-1") == folder / "checkpoints/t0001/0001-1"
    inside(tmp_path / "linked", "checkpoints/t0001")
    for path in ("checkpoints/t0000/0001-1", "..", ".", "/etc", "../outside", "checkpoints/t0000"):
        with pytest.raises(UnsafePath, match="allowed: a path inside"):
            inside(folder, path)


@pytest.mark.parametrize("place", ["checkpoints", "checkpoints/t0000", "parts", LEDGER, "sweep.yaml.partial"])
def test_a_folder_with_a_link_is_not_opened_for_writing(tmp_path: Path, place: str) -> None:
    folder, outside = tmp_path / "demo", tmp_path / "outside"
    (folder / place).parent.mkdir(parents=True)
    outside.write_text("a letter without an end of line")
    (folder / place).symlink_to(outside)
    with pytest.raises(UnsafePath, match=r"is a symbolic link to .*; nothing was changed"):
        Ledger(folder)
    assert outside.read_text() == "a letter without an end of line"


def test_arrays_by_class_are_not_read_over_a_link(tmp_path: Path) -> None:
    (tmp_path / "parts").symlink_to(os.sep)
    end = {"event": "trial_end", "trial_id": "t0000", "class_arrays": "parts/t0000.parquet", "class_arrays_sha256": ""}
    with pytest.raises(UnsafePath):
        read_class_arrays(tmp_path, [end])


def test_an_export_is_sent_from_inside_the_folder_only(tmp_path: Path) -> None:
    folder, outside = tmp_path / "demo", tmp_path / "outside"
    for place in (folder / "best", folder / "linked", outside):
        place.mkdir(parents=True)
    (folder / "linked" / "key").symlink_to(outside)
    (tmp_path / "alias").symlink_to(folder)
    found = {
        place: uploadable(tmp_path / "alias", str(folder / place)) for place in ("best", "linked", "..", "../outside", "gone")
    }
    assert found == {"best": True, "linked": False, "..": False, "../outside": False, "gone": False}
    refuse_links(outside)
