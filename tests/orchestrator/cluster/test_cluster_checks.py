"""Broken pairs of a sweep and a cluster are refused, each with its reason and the line to change; sound pairs pass."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.cluster.cluster_checks import faults_of
from orchestrator.cluster.cluster_file import ClusterFile, read_cluster
from orchestrator.config.sweep_config import SweepConfig
from trainables.config_file import ConfigError, Origin, check

ROOT = Path(__file__).parents[3]
AWS = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())
SWEEP = {"resources": {"gpus_per_worker": 1, "cpus_per_worker": 2, "max_concurrent": 4}, "search": {"trials": 8}}
Change = Callable[[Any], object]


def cluster_of(folder: Path, tree: Any) -> ClusterFile:
    file = folder / "cluster.yaml"
    file.write_text(yaml.safe_dump(tree, sort_keys=False))
    return read_cluster(file)


def texts(folder: Path, cluster: Any = AWS, sweep: Any = SWEEP) -> list[str]:
    """What is wrong with a pair: one error while reading, or all faults."""
    try:
        found = cluster_of(folder, cluster)
        space = {"optim.lr": {"type": "float", "low": 0.01, "high": 0.1}}
        config = check(SweepConfig, {"space": space} | sweep, Origin("sweep.yaml"))
        return [str(fault) for fault in faults_of(found, config, "sweep.yaml")]
    except ConfigError as error:
        return [str(error)]


def worker(tree: Any) -> Any:
    return tree["available_node_types"]["gpu_worker"]


def head(tree: Any) -> Any:
    return tree["available_node_types"]["head"]


def put(place: Callable[[Any], Any], **values: Any) -> Change:
    return lambda tree: place(tree).update(values)


def top(tree: Any) -> Any:
    return tree


BROKEN_CLUSTERS: dict[str, tuple[Change, str]] = {
    "no provider": (lambda tree: tree.pop("provider"), "provider.type is missing; allowed: the name of a provider"),
    "no kinds of machines": (put(top, available_node_types={}), "available_node_types is {}; allowed: kinds of machines"),
    "head of no kind": (put(top, head_node_type="boss"), "head_node_type is 'boss'; allowed: one of available_node_types"),
    "own machines without addresses": (
        put(top, provider={"type": "local"}),
        "provider.worker_ips is missing; allowed",
    ),
    "negative limit": (put(top, max_workers=-1), "max_workers is -1; allowed: a number of machines"),
    "negative limit of a kind": (put(worker, max_workers=-1), "gpu_worker.max_workers is -1; allowed: a number of machines"),
    "limit as a word": (put(worker, min_workers="two"), "gpu_worker.min_workers is 'two'; allowed: a number of machines"),
    "resources left to Ray": (
        lambda tree: worker(tree).pop("resources"),
        "gpu_worker.resources is missing; allowed: the machine's",
    ),
    "resources as a word": (put(worker, resources={"CPU": "four"}), "gpu_worker.resources.CPU is 'four'; allowed: a number"),
    "head may be many": (put(head, max_workers=1), "head.max_workers is 1, but this is the head's type"),
    "no machine but the head": (put(top, max_workers=0), "max_workers leaves no machine beside the head"),
    "more at least than at most": (put(worker, min_workers=5, max_workers=4), "min_workers is 5, but max_workers is 4"),
    "a kind exceeds the cluster": (
        put(worker, max_workers=9),
        "is 9, but the cluster's max_workers is 4, so that they never come",
    ),
    "at least more than the cluster": (
        lambda tree: tree["available_node_types"].update(
            a={"resources": {"CPU": 1}, "min_workers": 3, "max_workers": 3},
            b={"resources": {"CPU": 1}, "min_workers": 3, "max_workers": 3},
        ),
        "max_workers is 4, but min_workers add up to 6",
    ),
    "gone before the group is there": (put(top, idle_timeout_minutes=5), "idle_timeout_minutes is 5, but a machine of aws takes"),
    "spot head": (
        lambda tree: head(tree)["node_config"].update(InstanceMarketOptions={"MarketType": "spot"}),
        "a spot machine",
    ),
    "no cores": (put(worker, resources={"GPU": 1}), "is {GPU: 1}, without CPU"),
    "GPU machine without GPU": (put(worker, resources={"CPU": 4}), "but g6.xlarge has a GPU, which no trial would get"),
    "GPU on a machine without one": (
        lambda tree: worker(tree)["node_config"].update(InstanceType="m7i.xlarge"),
        "has 1 GPU, but m7i.xlarge has none",
    ),
    "no image": (lambda tree: worker(tree)["node_config"].pop("ImageId"), "names no image"),
    "open dashboard": (
        lambda tree: tree.update(
            head_start_ray_commands=[text.replace("127.0.0.1", "0.0.0.0") for text in tree["head_start_ray_commands"]]
        ),
        "opens the dashboard to the network (0.0.0.0)",
    ),
    "head without token": (
        lambda tree: tree.update(
            head_start_ray_commands=[text.replace("RAY_AUTH_MODE=token ", "") for text in tree["head_start_ray_commands"]]
        ),
        "head_start_ray_commands starts Ray without a token",
    ),
    "worker without token": (
        lambda tree: tree.update(worker_start_ray_commands=["ray start --address=$RAY_HEAD_IP:6379"]),
        "worker_start_ray_commands starts Ray without a token",
    ),
    "token left at home": (put(top, file_mounts={"~/tailtune": "."}), "file_mounts does not bring the token"),
    "no autoscaler": (
        put(top, head_start_ray_commands=["RAY_AUTH_MODE=token ray start --head --port=6379"]),
        "starts no autoscaler, so that no machine comes",
    ),
    "no head is started": (put(top, head_start_ray_commands=[]), "has no `ray start --head`"),
    "a worker joins nobody": (put(top, worker_start_ray_commands=["RAY_AUTH_MODE=token ray start"]), "does not join the head"),
    "another port": (
        put(top, worker_start_ray_commands=["RAY_AUTH_MODE=token ray start --address=$RAY_HEAD_IP:6380"]),
        "joins the port 6380, but the head listens on 6379",
    ),
}
BROKEN_SWEEPS: dict[str, tuple[Change, str]] = {
    "more cores than a machine has": (
        lambda sweep: sweep["resources"].update(cpus_per_worker=8),
        "resources.cpus_per_worker is 8, but no machine of",
    ),
    "more threads than a machine has": (
        lambda sweep: (sweep["resources"].pop("cpus_per_worker"), sweep.update(trial={"threads": 8})),
        "trial.threads is 8, but no machine of",
    ),
    "a group larger than the cluster": (
        lambda sweep: sweep["resources"].update(workers=5),
        "resources.workers is 5, but the machines of",
    ),
    "more slots than the cluster": (
        lambda sweep: sweep["resources"].update(workers=2, slots=3),
        "resources.slots is 3, but the machines of",
    ),
    "started sooner than a machine comes": (
        lambda sweep: sweep["resources"].update(start_limit_s=300),
        "resources.start_limit_s is 300, but a machine of aws takes about 480 s",
    ),
    "a GPU that nobody reserves": (
        lambda sweep: (sweep["resources"].update(gpus_per_worker=0), sweep.update(trial={"device": "cuda"})),
        "trial.device is cuda, but resources.gpus_per_worker is 0",
    ),
    "images that stay at home": (
        lambda sweep: sweep.update(trial={"data": {"source": "cifar10", "root": "/home/me/images"}}),
        "trial.data.root is '/home/me/images', which the machines of",
    ),
}


@pytest.mark.parametrize("name", BROKEN_CLUSTERS)
def test_a_broken_cluster_is_refused_with_its_reason(name: str, tmp_path: Path) -> None:
    tree = copy.deepcopy(AWS)
    change, reason = BROKEN_CLUSTERS[name]
    change(tree)
    found = texts(tmp_path, tree)
    assert [text for text in found if reason in text], found
    assert all(text.startswith(f"{tmp_path / 'cluster.yaml'}:") for text in found if reason in text)
    assert all("allowed: " in text for text in found)


@pytest.mark.parametrize("name", BROKEN_SWEEPS)
def test_a_sweep_that_does_not_fit_is_refused_with_its_reason(name: str, tmp_path: Path) -> None:
    sweep = copy.deepcopy(SWEEP)
    change, reason = BROKEN_SWEEPS[name]
    change(sweep)
    found = texts(tmp_path, AWS, sweep)
    assert [text for text in found if text.startswith(f"sweep.yaml: {reason}")], found
    assert all("allowed: " in text for text in found)


def test_a_sweep_for_gpus_needs_a_machine_with_one(tmp_path: Path) -> None:
    tree = copy.deepcopy(AWS)
    worker(tree).update(resources={"CPU": 4}, node_config={"InstanceType": "m7i.xlarge"})
    assert any("resources.gpus_per_worker is 1, but no machine" in text for text in texts(tmp_path, tree))


GOOD: dict[str, tuple[Change, Change]] = {
    "as shipped": (lambda tree: None, lambda sweep: None),
    "two workers for each trial": (lambda tree: None, lambda sweep: sweep["resources"].update(workers=2, slots=2)),
    "a range of workers": (lambda tree: None, lambda sweep: sweep["resources"].update(workers=[1, 4])),
    "trials share a GPU": (lambda tree: None, lambda sweep: sweep["resources"].update(gpus_per_worker=0.5, slots=8)),
    "on the CPUs": (lambda tree: None, lambda sweep: sweep["resources"].update(gpus_per_worker=0)),
    "two kinds of machines": (
        lambda tree: tree["available_node_types"].update(big=worker(copy.deepcopy(tree)) | {"resources": {"CPU": 48, "GPU": 4}}),
        lambda sweep: sweep["resources"].update(workers=4, slots=4),
    ),
    "a machine that is always there": (put(worker, min_workers=1), lambda sweep: None),
    "images on a shared disk": (
        lambda tree: None,
        lambda sweep: sweep.update(trial={"data": {"source": "cifar10", "root": "/mnt/images"}}),
    ),
    "images in a store": (
        lambda tree: None,
        lambda sweep: sweep.update(trial={"data": {"source": "parquet", "root": "s3://bucket/images"}}),
    ),
    "images among the file mounts": (
        lambda tree: tree["file_mounts"].update({"/data/cifar": "data/cifar"}),
        lambda sweep: sweep.update(trial={"data": {"source": "cifar10", "root": "/data/cifar/python"}}),
    ),
}


@pytest.mark.parametrize("name", GOOD)
def test_sound_pairs_pass(name: str, tmp_path: Path) -> None:
    tree, sweep = copy.deepcopy(AWS), copy.deepcopy(SWEEP)
    for changed, change in zip((tree, sweep), GOOD[name], strict=True):
        change(changed)
    assert texts(tmp_path, tree, sweep) == []


def test_the_line_that_is_named_is_the_one_to_change(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    text = (ROOT / "ray_cluster.yaml").read_text().replace("idle_timeout_minutes: 10 ", "idle_timeout_minutes: 1 ")
    file.write_text(text)
    (fault,) = faults_of(read_cluster(file))
    line = int(fault.where.rpartition(":")[2])
    assert text.splitlines()[line - 1].startswith("idle_timeout_minutes: 1 ")


def test_of_several_kinds_the_machines_that_hold_most_workers_come_first(tmp_path: Path) -> None:
    tree = copy.deepcopy(AWS)
    tree["available_node_types"]["big"] = {"resources": {"CPU": 48, "GPU": 4}, "min_workers": 0, "max_workers": 3}
    machines = cluster_of(tmp_path, tree).machines({"CPU": 1, "GPU": 1})
    assert [node.get("GPU", 0) for node in machines] == [0, 4, 4, 4, 1]
