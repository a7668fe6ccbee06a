import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.run import leftovers
from orchestrator.run.leftovers import SCRATCH, is_left, remove_leftovers, working_folder

HOLDS = """
import sys, time
from pathlib import Path
from orchestrator.run.leftovers import SCRATCH, working_folder
with working_folder(SCRATCH, sys.argv[1]) as folder:
    print(folder, flush=True)
    time.sleep(100)
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temporary folder."""
    monkeypatch.setattr(leftovers.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(leftovers, "ray_folder", lambda: str(tmp_path))
    return tmp_path


def test_a_working_folder_goes_with_its_sweep(place: Path) -> None:
    with working_folder(SCRATCH) as folder:
        (folder / "slots").mkdir()
        assert folder.parent == place
        assert not is_left(folder)
    assert list(place.iterdir()) == []


def test_the_folder_of_a_killed_sweep_is_removed_by_the_next_one_and_no_other(place: Path) -> None:
    (place / "tailtune-of-somebody").mkdir()  # without a lock: perhaps of another program
    (place / "other").mkdir()
    running = subprocess.Popen([sys.executable, "-c", HOLDS, str(place)], stdout=subprocess.PIPE, text=True)
    assert running.stdout
    with running.stdout as said:
        folder = Path(said.readline().strip())
    remove_leftovers()
    assert folder.is_dir()
    running.kill()
    running.wait()
    assert leftovers.leftovers() == [folder]
    remove_leftovers()
    assert sorted(path.name for path in place.iterdir()) == ["other", "tailtune-of-somebody"]


def test_a_link_is_not_followed(place: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "lock").touch()
    (place / "tailtune-link").symlink_to(elsewhere)
    remove_leftovers()
    assert (elsewhere / "lock").exists()
