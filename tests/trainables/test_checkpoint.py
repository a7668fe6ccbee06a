import contextlib
import pickle
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainables.checkpoint import MANIFEST, STATE, pack, read_checkpoint, unpack, write_checkpoint


class Trap:
    """What a planted pickle could do."""

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return (Path.touch, (Path("trapped"),))


def test_state_and_manifest_come_back_as_they_were(tmp_path: Path) -> None:
    state = {"phi": {"weight": torch.randn(3, 2)}, "steps": [1, 2.5, None, "x"]}
    digest = write_checkpoint(tmp_path / "new", pack(state))
    back = unpack(read_checkpoint(tmp_path / "new", expected=digest))
    assert torch.equal(back["phi"]["weight"], state["phi"]["weight"])
    assert back["steps"] == state["steps"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [MANIFEST, STATE]


def test_the_folders_of_a_checkpoint_are_on_the_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr("trainables.checkpoint.sync", synced.append)
    write_checkpoint(tmp_path / "checkpoints" / "t0000" / "0001-1", b"state")
    assert synced == [tmp_path / "checkpoints" / "t0000", tmp_path / "checkpoints", tmp_path]
    write_checkpoint(tmp_path / "checkpoints" / "t0000" / "0002-1", b"state")
    assert synced[3:] == [tmp_path / "checkpoints" / "t0000"]


@given(place=st.floats(0, 1, exclude_max=True), flipped=st.integers(1, 255))
def test_a_changed_byte_is_noticed_wherever_it_is(place: float, flipped: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder), pack({"x": torch.zeros(8)}))
        content = bytearray((Path(folder) / STATE).read_bytes())
        content[int(place * len(content))] ^= flipped
        (Path(folder) / STATE).write_bytes(content)
        with pytest.raises(ValueError, match="is not what was written"):
            read_checkpoint(Path(folder))


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


@pytest.mark.parametrize("trapped", [pack({"x": Trap()}), pickle.dumps(Trap(), protocol=2)], ids=["in a state", "bare"])
def test_a_planted_pickle_is_refused_and_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trapped: bytes) -> None:
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path, trapped)
    with pytest.raises(ValueError, match=r"^state.pt is not the state of a trial: .* programs, and nothing of it was run$"):
        unpack(read_checkpoint(tmp_path), "state.pt")
    assert not Path("trapped").exists()
    with contextlib.suppress(RuntimeError):
        torch.load(tmp_path / STATE, weights_only=False)  # the trap is one
    assert Path("trapped").exists()


@pytest.mark.parametrize("damaged", [b"", b"abc", pack({"x": torch.zeros(8)})[:-30]])
def test_bytes_that_are_no_state_are_refused(damaged: bytes) -> None:
    with pytest.raises(ValueError, match=r"^this is not the state of a trial: it cannot be read \(\w+: "):
        unpack(damaged)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's device that is always full")
@pytest.mark.parametrize("name", [STATE, MANIFEST])
def test_on_a_full_disk_the_older_checkpoint_stays_and_the_next_attempt_can_succeed(tmp_path: Path, name: str) -> None:
    write_checkpoint(tmp_path, b"older")
    (tmp_path / f"{name}.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_checkpoint(tmp_path, b"newer")
    assert caught.value.filename == str(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [MANIFEST, STATE]
    assert read_checkpoint(tmp_path) == b"older"
    write_checkpoint(tmp_path, b"newer")
    assert read_checkpoint(tmp_path) == b"newer"
