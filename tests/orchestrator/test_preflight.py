import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from orchestrator import slots
from orchestrator.config import SweepConfig
from orchestrator.ledger import Ledger
from orchestrator.preflight import check_data, check_folder, check_machine, claim_folder
from orchestrator.resources_config import ResourcesConfig
from trainables.config_file import ConfigError, Origin, dump_yaml


def hold(folder: Path, config: SweepConfig, *statuses: str) -> None:
    folder.mkdir()
    (folder / "sweep.yaml").write_text(dump_yaml(config.model_dump()))
    with Ledger(folder) as ledger:
        ledger.append("sweep_start")
        for status in statuses:
            ledger.append("sweep_end", status=status)


def test_a_new_or_empty_folder_is_free(config: SweepConfig, tmp_path: Path) -> None:
    assert check_folder(tmp_path / "a" / "b", config) is False
    assert not (tmp_path / "a").exists()
    assert check_folder(tmp_path, config) is False
    assert list(tmp_path.iterdir()) == []


def test_the_same_sweep_is_recognised(config: SweepConfig, tmp_path: Path) -> None:
    hold(tmp_path / "s", config, "finished")
    assert check_folder(tmp_path / "s", config) is True


def test_a_sweep_of_another_configuration_is_refused_with_the_difference(config: SweepConfig, tmp_path: Path) -> None:
    hold(tmp_path / "s", config, "finished")
    other = config.model_copy(update={"checkpoint_interval": 3})
    with pytest.raises(
        ConfigError, match=r"another configuration: checkpoint_interval is 10 there and 3 here; nothing was changed"
    ):
        check_folder(tmp_path / "s", other)


@pytest.mark.parametrize("statuses", [(), ("interrupted",)])
def test_an_unfinished_sweep_is_refused(config: SweepConfig, tmp_path: Path, statuses: tuple[str, ...]) -> None:
    hold(tmp_path / "s", config, *statuses)
    with pytest.raises(ConfigError, match="unfinished"):
        check_folder(tmp_path / "s", config)


def test_a_folder_with_other_files_is_refused(config: SweepConfig, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="holds files that are no sweep"):
        check_folder(tmp_path, config)


def test_places_that_cannot_be_written_are_refused(config: SweepConfig, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file" / "s", Path("/proc/tailtune/s")):
        with pytest.raises(ConfigError, match=r"cannot write to .*; choose another --results folder"):
            check_folder(folder, config)


def test_a_full_disk_is_refused(config: SweepConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=3 * 2**20))
    with pytest.raises(ConfigError, match=r"3 MiB free on this disk; a sweep needs 500 MiB"):
        check_folder(tmp_path / "s", config)


def test_more_meta_images_than_a_class_has_are_refused_by_name(config: SweepConfig) -> None:
    data = config.trial.data.model_copy(update={"meta_per_class": 150})
    trial = config.trial.model_copy(update={"data": data})
    with pytest.raises(ConfigError, match=r"x.yaml: trial.data.meta_per_class is 150, .* class 0 has only 178"):
        check_data(config.model_copy(update={"trial": trial}), Origin("x.yaml"))


def test_more_threads_than_cores_are_refused_and_more_trials_are_noted(
    config: SweepConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slots, "num_cores", lambda: 2)
    assert check_machine(config, Origin("x")) == []
    crowded = config.model_copy(update={"resources": config.resources.model_copy(update={"max_concurrent": 5})})
    assert check_machine(crowded, Origin("x")) == [
        "resources.max_concurrent is 5, but this machine holds 2 trials of 1 worker with 1 CPU each at a time; the others wait"
    ]
    heavy = config.model_copy(update={"trial": config.trial.model_copy(update={"threads": 3})})
    with pytest.raises(ConfigError, match=r"trial.threads is 3, but this machine has 2 cores; allowed: 1 to 2"):
        check_machine(heavy, Origin("x"))


def test_more_workers_or_slots_than_cores_are_refused(config: SweepConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "num_cores", lambda: 2)

    def on(**resources: Any) -> SweepConfig:
        return config.model_copy(update={"resources": ResourcesConfig(**resources)})

    with pytest.raises(
        ConfigError, match=r"resources.workers is 3, but this machine holds 2 with 1 CPU each; allowed: at most 2"
    ):
        check_machine(on(workers=3), Origin("x"))
    with pytest.raises(ConfigError, match=r"resources.slots is 2, but this machine holds 1 of 2 workers with 1 CPU each"):
        check_machine(on(workers=2, slots=2), Origin("x"))
    assert check_machine(on(workers=[2, 8], max_concurrent=1), Origin("x")) == []
    assert check_machine(on(workers=2, slots=2, cpus_per_worker=0.5), Origin("x")) == []
    assert check_machine(on(workers=[1, 2], slots=2), Origin("x")) == []
    with pytest.raises(ConfigError, match=r"this machine holds 0 with 5 CPU each; allowed: less for each"):
        check_machine(on(cpus_per_worker=5), Origin("x"))


def test_a_gpu_that_is_not_there_is_refused(config: SweepConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    wanting = config.model_copy(update={"resources": config.resources.model_copy(update={"gpus_per_worker": 0.5})})
    with pytest.raises(
        ConfigError, match=r"command line: resources.gpus_per_worker is 0.5, but torch sees no GPU here; allowed: 0"
    ):
        check_machine(wanting, Origin("x", frozenset({"resources.gpus_per_worker"})))
    wanting = config.model_copy(update={"trial": config.trial.model_copy(update={"device": "cuda"})})
    with pytest.raises(ConfigError, match=r"x: trial.device is cuda, but torch sees no GPU here; allowed: auto, cpu"):
        check_machine(wanting, Origin("x"))


def test_selecting_by_an_empty_band_is_refused(config: SweepConfig) -> None:
    trial = config.trial.model_copy(update={"select_by": "val/acc_many"})
    with pytest.raises(ConfigError, match=r"x: trial.select_by is val/acc_many, but no class .*allowed: val/acc, "):
        check_data(config.model_copy(update={"trial": trial}), Origin("x"))


def test_a_folder_is_claimed_once(tmp_path: Path) -> None:
    claim_folder(tmp_path / "a" / "b")
    claim_folder(tmp_path / "a" / "b")  # still empty: nobody is in it
    (tmp_path / "a" / "b" / "sweep.yaml").touch()
    with pytest.raises(ConfigError, match="taken by another process"):
        claim_folder(tmp_path / "a" / "b")
