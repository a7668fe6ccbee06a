import json
import signal
import subprocess
import sys
from pathlib import Path

import miniatures
import pytest

from trainables.train import main

SMALL = "epochs: 2\nmethod: {name: cross_entropy}\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(SMALL)
    return path


def test_it_trains_and_writes_what_it_found(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(file), "--out", str(tmp_path / "out"), "--read-test"]) == 0
    output = capsys.readouterr().out
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert f"best val/acc {metrics['best']['val/acc']:.4f}" in output
    assert f"test/acc {metrics['test']['test/acc']:.4f}" in output
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == ["config.yaml", "metrics.json", "model.safetensors", "split.json"]


def test_the_test_set_is_not_read_unless_asked_for(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(file)]) == 0
    assert "test/" not in capsys.readouterr().out


def test_a_sweep_s_file_gives_the_trial_that_it_starts_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(f"trial:\n  {SMALL.replace(chr(10), chr(10) + '  ')}\nsearch: {{trials: 3}}\n")
    for change in ("epochs=1", "trial.epochs=1"):
        assert main([str(sweep), change]) == 0
        assert "epoch   1/1" in capsys.readouterr().out
    assert main([str(sweep), "optim.lrr=1"]) == 2
    assert "command line: optim.lrr is not a setting" in capsys.readouterr().err


def test_notes_about_the_data_are_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = miniatures.own_images(tmp_path / "pets", endings=(".png",))
    (tmp_path / "pets" / "cat" / "scan.heic").write_text("something")
    data = counts | {"source": "image_folder", "root": "pets", "loading": "memory", "image_size": 8, "augment": []}
    (tmp_path / "config.yaml").write_text(json.dumps({"data": data, "epochs": 1, "method": {"name": "cross_entropy"}}))
    monkeypatch.chdir(tmp_path)
    assert main(["config.yaml"]) == 0
    assert "note: data.extra_endings is []: 1 file in the class folders is not read (1 .heic)\n" in capsys.readouterr().out


def test_other_images_than_those_of_the_record_are_refused(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    main([str(file), "--out", str(out)])
    recorded = json.loads((out / "split.json").read_text())
    (out / "split.json").write_text(json.dumps(recorded | {"sha256": "0" * 64}))
    assert main([str(out / "config.yaml"), "--out", str(tmp_path / "again")]) == 2
    assert "the split is not the one that" in capsys.readouterr().err
    assert not (tmp_path / "again").exists()


def test_its_output_trained_again_is_recognised_as_the_same(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(file), "--out", str(tmp_path / "out")])
    capsys.readouterr()
    assert main([str(tmp_path / "out" / "config.yaml")]) == 0
    assert "this run is the same" in capsys.readouterr().out
    assert main([str(tmp_path / "out" / "config.yaml"), "seed=1"]) == 0
    assert "recorded" not in capsys.readouterr().out  # another seed is another trial


def test_a_folder_that_exists_is_not_touched(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(file), "--out", str(tmp_path)]) == 2
    assert "File exists" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_a_folder_that_cannot_be_made_is_refused_before_training(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(file), "--out", "/proc/tailtune"]) == 2
    output = capsys.readouterr()
    assert "--out is /proc/tailtune" in output.err
    assert "epoch" not in output.out


@pytest.mark.parametrize("metrics", ["{}", "[1", '{"best": 3}'])
def test_foreign_files_beside_the_configuration_cost_nothing(file: Path, tmp_path: Path, metrics: str) -> None:
    (tmp_path / "metrics.json").write_text(metrics)
    assert main([str(file), "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_a_diverged_training_leaves_no_folder(file: Path, tmp_path: Path) -> None:
    assert main([str(file), "--out", str(tmp_path / "out"), "optim.lr=1e30"]) == 1
    assert not (tmp_path / "out").exists()


def test_wrong_input_and_divergence_have_their_own_exit_codes(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(file), "data.source=digits", "data.meta_per_class=100"]) == 2
    assert "data.meta_per_class is 100" in capsys.readouterr().err
    assert main([str(file), "epoch=3"]) == 2
    assert main([str(file), "optim.lr=1e30"]) == 1
    assert "train/loss became" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_end_of_the_machine_or_of_the_terminal_leaves_nothing_behind(
    file: Path, tmp_path: Path, number: signal.Signals
) -> None:
    command = [sys.executable, "-m", "trainables.train", file.name, "epochs=1000", "--out", "out"]
    running = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert running.stdout
    while not running.stdout.readline().startswith("epoch"):
        pass
    running.send_signal(number)
    _, error = running.communicate(timeout=60)
    assert (running.returncode, error) == (130, "\ninterrupted; nothing was written\n")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_reader_that_goes_away_does_not_end_the_training(file: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "trainables.train", file.name, "epochs=3", "--out", "out"]
    running = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert running.stdout
    running.stdout.readline()
    running.stdout.close()  # as `| head -1` does
    assert running.stderr
    with running.stderr as errors:
        assert "the output cannot be written (Broken pipe); the work goes on without it" in errors.read()
    assert running.wait(60) == 0
    assert (tmp_path / "out" / "model.safetensors").is_file()
