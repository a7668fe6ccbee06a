import errno
import os
from pathlib import Path

import pytest

from trainables.files import replace_text, wait_for_space


class Disk:
    """A disk that has no space for the first attempts."""

    def __init__(self, *errors: OSError) -> None:
        self.errors = list(errors)

    def write(self) -> str:
        if self.errors:
            raise self.errors.pop(0)
        return "written"


FULL = OSError(errno.ENOSPC, "No space left on device", "/results/a/state.pt")
OVER_QUOTA = OSError(errno.EDQUOT, "Disk quota exceeded")


def test_what_finds_no_space_is_written_when_there_is_some() -> None:
    told: list[str] = []
    pauses: list[float] = []
    disk = Disk(FULL, FULL, OVER_QUOTA)
    assert wait_for_space(disk.write, told.append, pause_s=4, sleep=pauses.append) == "written"
    assert pauses == [4, 4, 4]
    of_disk = "/results/a/state.pt: no space left (No space left on device); trying again every 4 s"
    assert told == [of_disk, of_disk, "a file: no space left (Disk quota exceeded); trying again every 4 s"]


def test_where_there_is_space_nobody_waits() -> None:
    assert wait_for_space(Disk().write, pytest.fail, sleep=pytest.fail) == "written"


@pytest.mark.parametrize("error", [PermissionError(errno.EACCES, "Permission denied"), OSError(errno.EIO, "broken"), OSError()])
def test_other_errors_are_not_waited_for(error: OSError) -> None:
    with pytest.raises(OSError) as caught:  # noqa: PT011
        wait_for_space(Disk(error).write, pytest.fail, sleep=pytest.fail)
    assert caught.value is error


def test_who_is_told_can_end_the_waiting() -> None:
    def give_up(message: str) -> None:
        raise TimeoutError(message)

    with pytest.raises(TimeoutError, match="no space left"):
        wait_for_space(Disk(FULL).write, give_up, sleep=pytest.fail)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's device that is always full")
def test_a_disk_that_is_really_full_is_waited_for(tmp_path: Path) -> None:
    told: list[str] = []
    (tmp_path / "a.json.partial").symlink_to("/dev/full")
    wait_for_space(lambda: replace_text(tmp_path / "a.json", "new"), told.append, pause_s=0)
    assert told == [f"{tmp_path}: no space left (No space left on device); trying again every 0 s"]
    assert os.listdir(tmp_path) == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "new"
