import pickle
from pathlib import Path

import pytest
import torch

from trainables.checkpoint import MANIFEST, STATE, pack, read_checkpoint, unpack, write_checkpoint


class Trap:
    """What a planted pickle could do."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("trapped"),))


def test_state_and_manifest_come_back_as_they_were(tmp_path: Path) -> None:
    state = {"phi": {"weight": torch.randn(3, 2)}, "steps": [1, 2.5, None, "x"]}
    digest = write_checkpoint(tmp_path / "new", pack(state))
    back = unpack(read_checkpoint(tmp_path / "new", expected=digest))
    assert torch.equal(back["phi"]["weight"], state["phi"]["weight"])
    assert back["steps"] == state["steps"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [MANIFEST, STATE]


@pytest.mark.parametrize("place", [10, -10])
def test_a_flipped_byte_is_noticed(tmp_path: Path, place: int) -> None:
    write_checkpoint(tmp_path, pack({"x": torch.zeros(8)}))
    content = bytearray((tmp_path / STATE).read_bytes())
    content[place] ^= 1
    (tmp_path / STATE).write_bytes(content)
    with pytest.raises(ValueError, match="is not what was written"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("missing", [STATE, MANIFEST])
def test_an_incomplete_checkpoint_is_refused(tmp_path: Path, missing: str) -> None:
    write_checkpoint(tmp_path, pack({}))
    (tmp_path / missing).unlink()
    with pytest.raises(ValueError, match="holds no complete checkpoint"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("manifest", ["{}", "[]", "{", "3"])
def test_a_damaged_manifest_is_refused(tmp_path: Path, manifest: str) -> None:
    write_checkpoint(tmp_path, pack({}))
    (tmp_path / MANIFEST).write_text(manifest)
    with pytest.raises(ValueError, match="holds no complete checkpoint"):
        read_checkpoint(tmp_path)


def test_a_checkpoint_that_another_record_does_not_know_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, pack({}))
    with pytest.raises(ValueError, match="expected 0000"):
        read_checkpoint(tmp_path, expected="0000")


def test_a_planted_pickle_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path, pack({"x": Trap()}))
    with pytest.raises(pickle.UnpicklingError):
        unpack(read_checkpoint(tmp_path))
    assert not Path("trapped").exists()
