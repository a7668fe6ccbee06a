import math
import os
import pwd
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from miniatures import own_images
from torch import Tensor, nn

from orchestrator.cluster import placement as slots
from orchestrator.config.resources_config import ResourcesConfig
from orchestrator.config.search_config import SearchConfig
from orchestrator.config.sweep_config import SweepConfig, read_sweep
from orchestrator.ledger.ledger import Ledger, read_ledger
from orchestrator.run import preflight
from orchestrator.run.preflight import (
    MOST_INITIAL,
    Found,
    check_data,
    check_folder,
    check_machine,
    check_place,
    check_split,
    check_surroundings,
    check_weights,
    unused_gpus,
    young_averages,
)
from trainables.classifier_config import CLASSIFIER_SETTINGS, ClassifierSettings
from trainables.config import TrialConfig
from trainables.config_file import ConfigError, Origin, dump_yaml
from trainables.machine import num_gpus
from trainables.models import CLASSIFIERS, Classifier

IMAGES = Path(__file__).parents[3] / "search_spaces" / "own_images.yaml"


def hold(folder: Path, config: SweepConfig, *statuses: str) -> None:
    """A sweep that has ended as often as it has statuses; only a finished one is complete."""
    folder.mkdir()
    (folder / "sweep.yaml").write_text(dump_yaml(config.model_dump()))
    with Ledger(folder) as ledger:
        ledger.append("sweep_start", config=config.model_dump(), split_sha256="abc")
        for status in statuses:
            ledger.append("sweep_end", status=status, complete=status == "finished")


def changed(config: SweepConfig, **changes: Any) -> SweepConfig:
    tree = config.model_dump()
    for key, value in changes.items():
        part = tree
        for name in key.split("__")[:-1]:
            part = part[name]
        part[key.split("__")[-1]] = value
    return SweepConfig.model_validate(tree)


def test_a_new_or_empty_folder_is_free(config: SweepConfig, tmp_path: Path) -> None:
    assert check_folder(tmp_path / "a" / "b", config) is Found.NOTHING
    assert not (tmp_path / "a").exists()
    assert check_folder(tmp_path, config) is Found.NOTHING
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "sweep.yaml").touch()  # killed before it had begun
    (tmp_path / "ledger.jsonl").touch()
    (tmp_path / "changes-0123456789ab.diff").touch()
    assert check_folder(tmp_path, config) is Found.NOTHING
    with pytest.raises(ConfigError, match="holds no sweep that could go on"):
        check_folder(tmp_path, config, resume=True)
    (tmp_path / "changes-of-mine.diff").touch()
    with pytest.raises(ConfigError, match="holds files that are no sweep"):
        check_folder(tmp_path, config)


@pytest.mark.parametrize("resume", [False, True])
def test_the_same_sweep_is_recognised(config: SweepConfig, tmp_path: Path, resume: bool) -> None:
    hold(tmp_path / "s", config, "interrupted", "finished")
    assert check_folder(tmp_path / "s", config, resume) is Found.COMPLETE


def test_a_sweep_of_another_configuration_is_refused_with_all_differences(config: SweepConfig, tmp_path: Path) -> None:
    hold(tmp_path / "s", config, "finished")
    other = changed(config, trial__epochs=30, search__seed=7)
    for resume in (False, True):
        with pytest.raises(ConfigError, match=r"another configuration; nothing was changed") as error:
            check_folder(tmp_path / "s", other, resume)
        assert "search.seed: 0 there, 7 here" in str(error.value)
        assert "trial.epochs: 40 there, 30 here" in str(error.value)
    assert "--warm-start" in str(error.value)


def test_another_space_is_refused_with_the_difference_and_the_way_out(config: SweepConfig, tmp_path: Path) -> None:
    hold(tmp_path / "s", config, "interrupted")
    tree = config.model_dump()
    tree["space"]["method.meta_lr"]["high"] = 1.0
    del tree["space"]["method.hidden_width"]
    with pytest.raises(ConfigError, match=r"--name NEW --warm-start") as error:
        check_folder(tmp_path / "s", SweepConfig.model_validate(tree), resume=True)
    assert "space.method.meta_lr.high: 0.1 there, 1.0 here" in str(error.value)
    assert "space.method.hidden_width.high: 64 there, 'absent' here" in str(error.value)


@pytest.mark.parametrize("statuses", [(), ("interrupted",)])
def test_an_unfinished_sweep_goes_on_only_when_asked_to(config: SweepConfig, tmp_path: Path, statuses: tuple[str, ...]) -> None:
    hold(tmp_path / "s", config, *statuses)
    with pytest.raises(ConfigError, match="unfinished; nothing was changed; go on with --resume"):
        check_folder(tmp_path / "s", config)
    assert check_folder(tmp_path / "s", config, resume=True) is Found.UNFINISHED


def test_a_sweep_may_go_on_with_more_trials_another_budget_or_other_machines(config: SweepConfig, tmp_path: Path) -> None:
    config = changed(config, search__deterministic=False)
    hold(tmp_path / "s", config, "finished")
    more = changed(config, search__trials=30, budget__wall_hours=2.0, resources__max_concurrent=4, checkpoint_interval=2)
    assert check_folder(tmp_path / "s", more, resume=True) is Found.UNFINISHED
    with pytest.raises(ConfigError, match=r"choose another --name, or go on with --resume"):
        check_folder(tmp_path / "s", more)
    with pytest.raises(ConfigError, match=r"begun with search.trials=22, now it is 20; allowed: at least 22"):
        check_folder(tmp_path / "s", changed(config, search__trials=20), resume=True)
    confirmed = changed(config, search__confirm={"top": 2, "seeds": 2}, failures__retries=0, tracking__mlflow=False)
    assert check_folder(tmp_path / "s", confirmed, resume=True) is Found.UNFINISHED
    with pytest.raises(ConfigError, match=r"scheduler.reduction_factor: 2.0 there, 3.0 here"):
        check_folder(tmp_path / "s", changed(config, scheduler__reduction_factor=3), resume=True)
    hold(tmp_path / "d", changed(config, search__deterministic=True), "interrupted")
    for name, there, here in (("max_concurrent", 2, 4), ("slots", None, 1)):
        other = changed(config, search__deterministic=True, **{f"resources__{name}": here})
        with pytest.raises(ConfigError, match=f"resources.{name}: {there} there, {here} here"):
            check_folder(tmp_path / "d", other, resume=True)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("trial__compute__readers", 0),
        ("trial__compute__cuda_graphs", True),
        ("trial__bilevel__check_interval", 5),
        ("trial__data__root", "/elsewhere"),
        ("trial__device", "cpu"),
        ("trial__threads", 2),
        ("resources__heartbeat_timeout_s", 60.0),
        ("tracking__experiment", "another"),
    ],
)
def test_a_sweep_may_go_on_with_other_settings_that_decide_no_result(tmp_path: Path, key: str, value: Any) -> None:
    own_images(tmp_path / "images")
    config = read_sweep(IMAGES, [f"trial.data.root={tmp_path / 'images'}"])
    hold(tmp_path / "s", config, "interrupted")
    other = changed(config, **{key: value})
    assert check_folder(tmp_path / "s", other, resume=True) is Found.UNFINISHED
    with pytest.raises(ConfigError, match="choose another --name, or go on with --resume"):
        check_folder(tmp_path / "s", other)
    with pytest.raises(ConfigError) as error:
        check_folder(tmp_path / "s", changed(other, trial__data__image_size=8, trial__compute__precision="bf16"), resume=True)
    assert [line.strip() for line in str(error.value).splitlines()[1:]] == [
        "trial.compute.precision: 'float32' there, 'bf16' here",
        "trial.data.image_size: 224 there, 8 here",
    ]


def test_a_comparison_may_go_on_with_more_trials_for_each_arm(config: SweepConfig, tmp_path: Path) -> None:
    methods = {"type": "categorical", "choices": ["difficulty_net", "mfrw"]}
    space = {"method.name": methods, "method.meta_lr": config.space["method.meta_lr"].model_dump()}
    config = changed(config, search__deterministic=False, search__per_method=5, search__references={}, space=space)
    hold(tmp_path / "s", config, "finished")
    assert check_folder(tmp_path / "s", changed(config, search__per_method=7), resume=True) is Found.UNFINISHED
    with pytest.raises(ConfigError, match=r"begun with search.per_method=5, now it is 4; allowed: at least 5"):
        check_folder(tmp_path / "s", changed(config, search__per_method=4), resume=True)
    with pytest.raises(ConfigError, match=r"begun with search.per_method=5, now it is None; allowed: a number"):
        check_folder(tmp_path / "s", changed(config, search__per_method=None), resume=True)


def test_a_population_keeps_its_size(config: SweepConfig, tmp_path: Path) -> None:
    population = changed(config, scheduler={"name": "pbt", "interval_epochs": 5}, resources__max_concurrent=24)
    hold(tmp_path / "s", population, "interrupted")
    with pytest.raises(ConfigError, match=r"begun with search.trials=22, now it is 30; allowed: 22"):
        check_folder(tmp_path / "s", changed(population, search__trials=30), resume=True)


def test_a_sweep_that_has_gone_on_is_compared_with_what_it_last_ran_with(config: SweepConfig, tmp_path: Path) -> None:
    config = changed(config, search__deterministic=False)
    more = changed(config, search__trials=30)
    hold(tmp_path / "s", config, "finished")
    with Ledger(tmp_path / "s") as ledger:
        ledger.append("sweep_resume", config=more.model_dump())
    assert check_folder(tmp_path / "s", more, resume=True) is Found.UNFINISHED  # killed before it ended again
    with Ledger(tmp_path / "s") as ledger:
        ledger.append("sweep_end", status="finished", complete=True)
    assert check_folder(tmp_path / "s", more) is Found.COMPLETE
    with pytest.raises(ConfigError, match=r"begun with search.trials=30, now it is 22; allowed: at least 30"):
        check_folder(tmp_path / "s", config, resume=True)


def test_a_sweep_goes_on_with_the_images_that_it_began_with(config: SweepConfig, tmp_path: Path) -> None:
    hold(tmp_path / "s", config, "interrupted")
    with pytest.raises(ConfigError, match=r"the images or labels have changed since the sweep began \(split sha256 abc there"):
        check_split(read_ledger(tmp_path / "s"), check_data(config, Origin("x")), tmp_path / "s")


def test_a_folder_with_other_files_is_refused(config: SweepConfig, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="holds files that are no sweep"):
        check_folder(tmp_path, config)
    hold(tmp_path / "s", config, "interrupted")
    (tmp_path / "s" / "sweep.yaml").unlink()
    with pytest.raises(ConfigError, match="holds files that are no sweep"):
        check_folder(tmp_path / "s", config, resume=True)


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
    few = crowded.model_copy(update={"search": config.search.model_copy(update={"trials": 0})})
    assert check_machine(few, Origin("x")) == []  # no trial has to wait
    full = config.model_copy(update={"trial": config.trial.model_copy(update={"threads": 2})})
    assert len(check_machine(full, Origin("x"))) == 1  # a trial that takes all cores is not refused
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


def test_readers_for_whom_there_are_no_cores_are_noted(config: SweepConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    data = {"source": "image_folder", "root": "x", "image_size": 32, "loading": "stream"}
    streamed = changed(config, trial__data=data, trial__compute__readers=2, resources__max_concurrent=2)
    monkeypatch.setattr(slots, "num_cores", lambda: 6)
    assert check_machine(streamed, Origin("x")) == []  # two trials with a thread and two readers each
    monkeypatch.setattr(slots, "num_cores", lambda: 5)
    (note,) = check_machine(streamed, Origin("x"))
    assert "5 cores are too few for 2 such workers at a time" in note


def test_images_that_cannot_be_read_are_refused(config: SweepConfig, tmp_path: Path) -> None:
    data = own_images(tmp_path)
    folder = changed(config, trial__data={"source": "image_folder", "root": str(tmp_path), "image_size": 8, **data})
    check_data(folder, Origin("x"))
    for image in tmp_path.rglob("*.jpg"):
        image.write_bytes(image.read_bytes()[:100])
    with pytest.raises(ConfigError, match=r"x: trial.data.root: .*jpg"):
        check_data(folder, Origin("x"))


@pytest.mark.parametrize(
    ("classifier", "said"),
    [
        (
            {"name": "torchvision", "model": "vit_b_32"},
            "patches of 32x32 pixels, but the images have 8x8",
        ),
        ({"name": "resnet", "depth": 10, "train": "lora"}, "train is lora, but the backbone has no linear layers"),
        ({"name": "timm", "model": "vit_smal"}, "timm"),
    ],
)
def test_backbones_that_do_not_fit_are_refused_before_anything_starts(
    config: SweepConfig, classifier: dict[str, str], said: str
) -> None:
    with pytest.raises(ConfigError, match=f"x: trial.classifier.*{said}"):
        check_weights(changed(config, trial__classifier=classifier), check_data(config, Origin("x")), Origin("x"))


class Distances(nn.Module):
    """(B, 1, 8, 8) -> (B, 64); torch's operator has no forward mode."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cdist(x, x).flatten(1)


class DistancesConfig(ClassifierSettings):
    """A plug-in."""

    name: str = "distances"


@pytest.fixture
def distances(config: SweepConfig, monkeypatch: pytest.MonkeyPatch) -> SweepConfig:
    """The default sweep with a plug-in that has no forward mode."""

    def build(config: DistancesConfig, image_shape: tuple[int, int, int], num_classes: int) -> Classifier:
        return Classifier(nn.Sequential(nn.Conv2d(1, 1, 1), Distances()), nn.Linear(64, num_classes), 64)

    monkeypatch.setitem(CLASSIFIER_SETTINGS, "distances", DistancesConfig)
    monkeypatch.setitem(CLASSIFIERS, "distances", build)
    return changed(config, trial__classifier={"name": "distances"})


def test_a_backbone_without_forward_mode_is_refused_before_anything_starts(distances: SweepConfig) -> None:
    said = r"x: trial.classifier.name is distances: .*_cdist_forward.* allowed: bilevel.meta_gradient=finite_difference"
    with pytest.raises(ConfigError, match=said):
        check_weights(distances, check_data(distances, Origin("x")), Origin("x"))


@pytest.mark.parametrize("changes", [{"bilevel": {"meta_gradient": "finite_difference"}}, {"method": {"name": "cross_entropy"}}])
def test_trials_that_need_no_forward_mode_may_have_such_a_backbone(distances: SweepConfig, changes: dict[str, Any]) -> None:
    trial = TrialConfig.model_validate(distances.trial.model_dump() | changes)
    alone = distances.model_copy(update={"trial": trial, "search": SearchConfig(trials=1)})
    check_weights(alone, check_data(distances, Origin("x")), Origin("x"))


def test_what_only_the_search_draws_is_checked_as_well(distances: SweepConfig) -> None:
    data, plain = check_data(distances, Origin("x")), {"name": "cross_entropy"}
    lr = {"optim.lr": {"type": "float", "low": 0.1, "high": 1}}
    searched = lr | {"method.name": {"type": "categorical", "choices": ["cross_entropy", "meta_weight_net"]}}
    found = changed(distances, trial__method=plain, space=searched, search__references={})
    with pytest.raises(ConfigError, match=r"x: with method.name=meta_weight_net: trial.classifier.name is distances: .*_cdist_"):
        check_weights(found, data, Origin("x"))
    arms = changed(found, search={"per_method": 2})
    with pytest.raises(ConfigError, match=r"x: arm meta_weight_net: trial.classifier.name is distances: .*_cdist_"):
        check_weights(arms, data, Origin("x"))
    reference = {"learned": {"method.name": "meta_weight_net"}}
    named = changed(distances, trial__method=plain, space=lr, search__references=reference)
    with pytest.raises(ConfigError, match=r"x: search.references.learned: trial.classifier.name is distances: .*_cdist_"):
        check_weights(named, data, Origin("x"))


def test_backbones_that_only_the_search_draws_are_built_before_anything_starts(config: SweepConfig) -> None:
    classifier = {"name": "torchvision", "model": "mobilenet_v3_small"}
    searched = {"classifier.model": {"type": "categorical", "choices": ["mobilenet_v3_small", "vit_b_32"]}}
    said = r"x: with classifier.model=vit_b_32: trial.classifier.*patches of 32x32 pixels, but the images have 8x8"
    found = changed(config, trial__classifier=classifier, space=searched)
    with pytest.raises(ConfigError, match=said):
        check_weights(found, check_data(config, Origin("x")), Origin("x"))


def test_a_plug_in_that_fails_here_may_run_elsewhere(distances: SweepConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Classifier:
        raise OSError("its weights are on the machines of the trials alone")

    monkeypatch.setitem(CLASSIFIERS, "distances", fail)
    check_weights(distances, check_data(distances, Origin("x")), Origin("x"))


def test_weights_that_are_not_there_are_refused(config: SweepConfig, tmp_path: Path) -> None:
    data = check_data(config, Origin("x"))
    check_weights(config, data, Origin("x"))
    weights = str(tmp_path / "gone.safetensors")
    pretrained = changed(config, trial__classifier={"name": "resnet", "depth": 10, "weights": weights})
    with pytest.raises(ConfigError, match=r"x: trial.classifier.weights: .*gone.safetensors cannot be read"):
        check_weights(pretrained, data, Origin("x"))


def test_selecting_by_an_empty_band_is_refused(config: SweepConfig) -> None:
    trial = config.trial.model_copy(update={"select_by": "val/acc_many"})
    with pytest.raises(ConfigError, match=r"x: trial.select_by is val/acc_many, but no class .*allowed: val/acc, "):
        check_data(config.model_copy(update={"trial": trial}), Origin("x"))


def test_without_a_home_folder_the_refusal_names_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(user: int) -> None:
        raise KeyError(user)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(ConfigError, match=r"HOME is not set.*: HOME=/tmp$"):
        check_surroundings()
    monkeypatch.setenv("HOME", "/tmp")
    check_surroundings()


def test_folders_whose_names_are_not_utf_8_are_refused(
    config: SweepConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = tmp_path / os.fsdecode(b"caf\xe9")
    odd.mkdir()
    with pytest.raises(ConfigError, match=r"the results folder is .*caf\\xe9, a name that is not UTF-8; .*; choose another"):
        check_folder(odd, config)
    monkeypatch.chdir(odd)
    with pytest.raises(ConfigError, match=r"runs is .*caf\\xe9, a name that is not UTF-8; nothing was started; run it in"):
        check_surroundings()


def test_where_no_temporary_folder_is_short_enough_the_refusal_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/" + "x" * 99)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    check_surroundings()
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ConfigError, match=r"TMPDIR is /x+, 100 bytes; allowed: at most 25, .*; nothing was started"):
        check_surroundings()


def test_gpus_that_no_trial_uses_are_told(config: SweepConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    assert unused_gpus(config) == [] or num_gpus()
    monkeypatch.setattr(preflight, "gpu_names", lambda: ["a GPU"])
    monkeypatch.setattr(preflight, "num_gpus", lambda: 2)
    assert unused_gpus(config) == ["torch sees 2 GPUs that no trial uses: resources.gpus_per_worker=1"]
    assert unused_gpus(changed(config, resources__gpus_per_worker=0.5)) == []
    assert unused_gpus(changed(config, trial__device="cpu")) == []  # asked for
    monkeypatch.setattr(preflight, "num_gpus", lambda: 0)  # a driver without a torch that knows it
    assert unused_gpus(config) == []


def test_bf16_without_a_gpu_is_noted_with_a_cure(config: SweepConfig) -> None:
    origin = Origin("s.yaml")
    slow = changed(config, trial__compute__precision="bf16", trial__threads=1)
    notes = [note for note in check_place(slow, origin, None) if "bf16" in note]
    assert len(notes) == 1
    assert notes[0].startswith("trial.compute.precision is bf16, but trials have no GPU")
    cured = changed(slow, trial__compute__precision="float32")
    assert "trial.compute.precision=float32" in notes[0]
    assert not [note for note in check_place(cured, origin, None) if "bf16" in note]


def test_an_average_that_is_still_the_initial_parameters_is_noted_with_a_decay_that_is_not(config: SweepConfig) -> None:
    data = check_data(config, Origin("s.yaml"))
    steps = math.ceil(len(data.train) / config.trial.optim.batch_size) * config.trial.epochs
    assert young_averages(config, data) == []
    (note,) = young_averages(changed(config, trial__optim__ema=0.9999), data)
    assert f"trial.optim.ema is 0.9999, but the first stage has only {steps} steps" in note
    assert f"{0.9999**steps:.0%} of the average" in note
    cure = float(note.rpartition(" ")[2])
    assert MOST_INITIAL / 2 < cure**steps <= MOST_INITIAL
    assert young_averages(changed(config, trial__optim__ema=cure), data) == []
