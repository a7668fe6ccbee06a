"""The shipped cluster files: Ray's own schema, and our checks where there is no schema."""

import os
import re
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.cluster.cluster_checks import faults_of
from orchestrator.cluster.cluster_file import read_cluster

ROOT = Path(__file__).parents[3]
FILES = [ROOT / "ray_cluster.yaml", *sorted((ROOT / "clusters").iterdir())]
OF_RAY = [file for file in FILES if file.suffix == ".yaml" and "kind" not in yaml.safe_load(file.read_text())]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_file_says_how_to_start_run_watch_and_stop_it_and_what_it_costs(file: Path) -> None:
    head = [line for line in file.read_text().splitlines() if line.startswith("#")]
    found = [
        word for line in head if (word := line.removeprefix("# ").split(":")[0]) in ("Start", "Run", "Watch", "Stop", "Cost")
    ]
    wanted = ["Start", "Watch", "Stop", "Cost"] if file.suffix == ".sh" else ["Start", "Run", "Watch", "Stop", "Cost"]
    assert found == wanted


@pytest.mark.parametrize("file", OF_RAY, ids=lambda file: file.name)
def test_our_checks_find_nothing(file: Path) -> None:
    assert faults_of(read_cluster(file)) == []


@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
@pytest.mark.parametrize("file", [file for file in OF_RAY if file.name != "fake.yaml"], ids=lambda file: file.name)
def test_ray_takes_the_file(file: Path) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(yaml.safe_load(file.read_text())))


def test_the_kubernetes_job_is_consistent() -> None:
    tree: dict[str, Any] = yaml.safe_load((ROOT / "clusters" / "kuberay.yaml").read_text())
    assert (tree["apiVersion"], tree["kind"]) == ("ray.io/v1", "RayJob")
    cluster = tree["spec"]["rayClusterSpec"]
    assert cluster["rayVersion"] == version("ray")
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["autoscalerOptions"]["idleTimeoutSeconds"] > 480  # as long as a machine takes to come
    slots = int(re.search(r"resources\.slots=(\d+)", tree["spec"]["entrypoint"])[1])  # type: ignore[index]
    assert slots == sum(group["maxReplicas"] for group in cluster["workerGroupSpecs"])
    images = set()
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        (container,) = group["template"]["spec"]["containers"]
        images.add(container["image"])
        asked = container["resources"]["requests"]
        assert group["rayStartParams"]["num-cpus"] == asked["cpu"]
        assert int(group["rayStartParams"].get("num-gpus", 0)) == asked.get("nvidia.com/gpu", 0)
        mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert {"/shared", "/dev/shm"} == mounted.keys()
        assert set(mounted.values()) == {volume["name"] for volume in group["template"]["spec"]["volumes"]}
        if "maxReplicas" in group:
            assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    assert len(images) == 1


@pytest.mark.parametrize("file", [file for file in FILES if file.suffix == ".sh"], ids=lambda file: file.name)
def test_the_scripts_are_valid_bash_and_can_be_run(file: Path) -> None:
    subprocess.run(["bash", "-n", str(file)], check=True)
    assert os.access(file, os.X_OK)


@pytest.mark.parametrize("file", [ROOT / "ray_cluster.yaml", ROOT / "clusters" / "gcp.yaml"], ids=lambda file: file.name)
def test_the_head_has_an_mlflow_server_before_ray_starts_and_hands_its_address_to_jobs(file: Path) -> None:
    commands = yaml.safe_load(file.read_text())["head_start_ray_commands"]
    (server,) = [number for number, command in enumerate(commands) if "mlflow_server.sh" in command]
    (ray,) = [number for number, command in enumerate(commands) if "ray start" in command]
    assert server < ray
