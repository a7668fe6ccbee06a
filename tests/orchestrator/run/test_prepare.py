from pathlib import Path

import pytest
from miniatures import own_images

from orchestrator.config.sweep_config import SweepConfig, read_sweep_with_origin
from orchestrator.ledger.ledger import Ledger, read_ledger
from orchestrator.run.preflight import check_data
from orchestrator.run.prepare import SweepRequest, changed_rounding, prepare, read_warm_start
from orchestrator.run.session import begin
from trainables.config_file import ConfigError, Origin, dump_yaml

IMAGES = Path(__file__).parents[3] / "search_spaces" / "own_images.yaml"


def test_a_warm_start_from_trials_with_other_settings_says_so(tmp_path: Path, config: SweepConfig) -> None:
    other = config.trial.model_copy(update={"epochs": 30})
    with Ledger(tmp_path) as ledger:
        ledger.append("sweep_start", config=config.model_copy(update={"trial": other}).model_dump())
        ledger.append("suggest", trial_id="t0000", role="search", variant="", seed=0, config=other.model_dump())
        ledger.append("trial_end", trial_id="t0000", status="diverged", stop_reason="nan")
    notes: list[str] = []
    (trial,) = read_warm_start(tmp_path, config, notes.append)
    assert trial["status"] == "diverged"
    assert [note.partition("mislead: ")[2] for note in notes] == ["trial.epochs 30 then, 40 now"]


def changed(config: SweepConfig, **trial: object) -> SweepConfig:
    return config.model_copy(update={"trial": config.trial.model_copy(update=trial)})


def hold(folder: Path, config: SweepConfig) -> None:
    """An interrupted sweep."""
    folder.mkdir()
    (folder / "sweep.yaml").write_text(dump_yaml(config.model_dump()))
    with Ledger(folder) as ledger:
        split = check_data(config, Origin("x")).sha256
        ledger.append("sweep_start", config=config.model_dump(), split_sha256=split, git_commit=None, versions={})
        ledger.append("sweep_end", status="interrupted", complete=False)


def test_a_resumed_sweep_on_another_device_says_and_notes_that_its_trials_are_no_longer_equal_bit_for_bit(
    config: SweepConfig, tmp_path: Path
) -> None:
    hold(tmp_path / "s", config)
    other = changed(config, device="cpu", compute=config.trial.compute.model_copy(update={"readers": 0}))
    notes: list[str] = []
    assert prepare(SweepRequest(other, Origin("x"), tmp_path / "s", resume=True), notes.append)
    expected = (
        "trial.device was 'auto', is 'cpu': trials that go on no longer equal undisturbed ones bit for bit, only up to rounding"
    )
    assert notes == [expected]
    with Ledger(tmp_path / "s") as ledger:
        begin(ledger, {"config": other.model_dump(), "git_commit": None, "versions": {}}, None, None)
    assert read_ledger(tmp_path / "s")[-1]["note"] == expected
    assert changed_rounding(read_ledger(tmp_path / "s"), other.model_dump()) is None
    readers_alone = changed(other, compute=config.trial.compute.model_copy(update={"readers": 1}))
    assert changed_rounding(read_ledger(tmp_path / "s"), readers_alone.model_dump()) is None


def test_a_resumed_sweep_may_read_its_images_elsewhere_but_no_others(tmp_path: Path) -> None:
    counts = own_images(tmp_path / "old")
    settings = [f"trial.data.{key}={value}" for key, value in counts.items()] + ["resources.gpus_per_worker=0"]
    config, _ = read_sweep_with_origin(IMAGES, [*settings, f"trial.data.root={tmp_path / 'old'}"])
    hold(tmp_path / "s", config)
    (tmp_path / "old").rename(tmp_path / "new")
    moved, origin = read_sweep_with_origin(tmp_path / "s" / "sweep.yaml", [f"trial.data.root={tmp_path / 'new'}"])
    assert prepare(SweepRequest(moved, origin, tmp_path / "s", resume=True), print)
    (tmp_path / "new" / "cat" / "00.jpg").write_bytes((tmp_path / "new" / "dog" / "00.jpg").read_bytes() + b" ")
    with pytest.raises(ConfigError) as error:
        prepare(SweepRequest(moved, origin, tmp_path / "s", resume=True), print)
    assert str(error.value).startswith(
        f"command line: trial.data.root is '{tmp_path / 'new'}', where the images are not those that"
    )
    assert f"began with in '{tmp_path / 'old'}'; allowed: a folder with the same images; " in str(error.value)


def test_results_in_the_folder_of_a_ray_job_are_refused_which_would_vanish_with_the_job(
    tmp_path: Path, config: SweepConfig
) -> None:
    folder = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1" / "results" / "x"
    request = SweepRequest(config, Origin("x"), folder)
    with pytest.raises(ConfigError, match=r"which Ray removes after the job; nothing was started; allowed: a --results folder"):
        prepare(request, print)
    assert not folder.exists()
