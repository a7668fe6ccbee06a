"""Where a sweep is to run: options of the command line, and what is refused before Ray is asked."""

from pathlib import Path

import pytest

from orchestrator.ablate import main as ablate
from orchestrator.doctor import main as doctor
from orchestrator.request import read_place
from orchestrator.sweep import main
from trainables.config_file import ConfigError

ROOT = Path(__file__).parents[3]


def test_without_an_address_a_sweep_runs_on_this_machine() -> None:
    assert read_place(None, None) is None


def test_the_cluster_s_file_is_the_one_that_is_given_or_the_head_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    found = read_place("auto", None)
    assert found
    assert found.file is None
    own = tmp_path / "ray_bootstrap_config.yaml"
    own.write_text((ROOT / "ray_cluster.yaml").read_text())
    for given, file in ((None, own), (ROOT / "clusters" / "fake.yaml", ROOT / "clusters" / "fake.yaml")):
        found = read_place("127.0.0.1:6379", given)
        assert found
        assert found.file
        assert (found.address, found.file.path) == ("127.0.0.1:6379", file)


@pytest.mark.parametrize(
    ("address", "file", "reason"),
    [
        (None, Path("ray_cluster.yaml"), "--address is missing; allowed: --address auto"),
        ("ray://head:10001", None, "--address is ray://head:10001; allowed: auto, or HOST:PORT"),
        ("auto", Path("nowhere.yaml"), "nowhere.yaml: cannot be read"),
    ],
)
def test_what_makes_no_place_is_refused(address: str | None, file: Path | None, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        read_place(address, file)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("verb", ["sweep", "ablate"])
def test_a_sweep_that_does_not_fit_the_cluster_is_refused_with_all_reasons(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, plan = (main, "digits_lt.yaml") if verb == "sweep" else (ablate, "ablation_lambda.yaml")
    place = ["--address", "127.0.0.1:1", "--cluster", str(ROOT / "ray_cluster.yaml"), "--results", str(tmp_path / "results")]
    words = [str(ROOT / "search_spaces" / plan), *place, "resources.start_limit_s=60", "resources.cpus_per_worker=40"]
    assert run(words) == 2
    said = capsys.readouterr().err
    assert "this sweep cannot run on this cluster; nothing was started" in said
    assert "resources.start_limit_s is 60" in said
    assert "resources.cpus_per_worker is 40" in said
    assert not (tmp_path / "results").exists()


def test_the_doctor_looks_at_a_cluster_s_file_and_at_a_sweep_on_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    sweep, file = str(ROOT / "search_spaces" / "digits_lt.yaml"), str(ROOT / "ray_cluster.yaml")
    common = ["--cluster", file, "--results", str(tmp_path)]
    doctor([sweep, *common])
    assert "1 to 5 machines of aws: the head, and up to 4 that come with the work" in capsys.readouterr().out
    assert doctor([sweep, "resources.gpus_per_worker=1", "resources.workers=5", *common]) == 1
    said = capsys.readouterr().out
    assert "resources.workers is 5, but the machines of" in said
    assert "this machine holds" not in said  # it need not


@pytest.mark.filterwarnings("ignore")
def test_a_cluster_that_is_not_there_is_named_with_what_may_be_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--address", "127.0.0.1:1", "--results", str(tmp_path / "results"), "tracking.mlflow=false"]
    assert main(words) == 2
    assert "--address is 127.0.0.1:1" in capsys.readouterr().err
