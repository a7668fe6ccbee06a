"""A machine of the cluster is compared with the head before a sweep begins there. Here both are this machine."""

from collections.abc import Iterator
from typing import Any

import pytest
import ray

from orchestrator.config.sweep_config import SweepConfig
from orchestrator.run.connection import local_ray
from orchestrator.run.probe import check_worker, look
from trainables import program
from trainables.config import TrialConfig
from trainables.config_file import ConfigError
from trainables.data import build_data
from trainables.program import versions

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with local_ray():
        yield


@pytest.fixture
def digest() -> str:
    trial = TrialConfig()
    return build_data(trial.data, trial.seed).sha256


def test_a_machine_like_this_one_is_accepted_and_nobody_is_told(digest: str) -> None:
    notes: list[str] = []
    check_worker(SweepConfig.model_validate({"search": {"trials": 1}}), digest, notes.append, lambda: None)
    assert notes == []


def test_other_images_are_refused() -> None:
    with pytest.raises(ConfigError, match="sees other images or labels than this one"):
        check_worker(SweepConfig.model_validate({"search": {"trials": 1}}), "0" * 64, print, lambda: None)


def test_other_versions_are_refused_by_name(digest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "versions", lambda: versions() | {"torch": "1.0"})  # here; the task has the real ones
    with pytest.raises(ConfigError, match=r"torch .* there, 1\.0 here; nothing was started; allowed: the same on all machines"):
        check_worker(SweepConfig.model_validate({"search": {"trials": 1}}), digest, print, lambda: None)


def test_what_a_machine_lacks_is_named() -> None:
    trial: dict[str, Any] = TrialConfig().model_dump()
    found = look(trial | {"device": "auto"}, True)
    assert "torch" in found["problem"]  # tests see no GPU
    assert look(trial | {"device": "cpu"}, True)["problem"] == ""
    gone = look(trial | {"data": {"source": "image_folder", "root": "/nowhere", "meta_per_class": 1, "val_per_class": 1}}, False)
    assert "data.root" in gone["problem"]


def test_ctrl_c_ends_the_waiting(digest: str) -> None:
    def pressed() -> None:
        raise KeyboardInterrupt

    config = SweepConfig.model_validate({"search": {"trials": 1}, "resources": {"cpus_per_worker": 500}})
    with pytest.raises(KeyboardInterrupt):
        check_worker(config, digest, print, pressed)
    assert ray.is_initialized()
