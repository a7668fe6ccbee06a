"""What is wrong with a cluster's file, and with a sweep on that cluster: found before any machine is paid for."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from orchestrator.cluster.cluster_file import FAKE, LOCAL, ClusterFile, NodeType
from orchestrator.cluster.placement import arrange, in_words, needs_of_worker
from orchestrator.config.sweep_config import SweepConfig

LOCAL_SOURCES = ("digits", "generated")
"""Sources whose images every machine has, or makes."""
GPU_MACHINES = re.compile(r"^(p\d|g\d)\w*\.|^a\d-|^g2-")
"""Kinds of AWS and GCP machines with GPUs."""
ANYWHERE = ("0.0.0.0", "::")
"""Addresses that the whole network reaches."""


class Fault(NamedTuple):
    """Something that would keep a sweep from running, or endanger it."""

    where: str
    """File and line, or the sweep's field."""
    text: str
    """Given and allowed, with a cure."""

    def __str__(self) -> str:
        return f"{self.where}: {self.text}"


def faults_of(cluster: ClusterFile, config: SweepConfig | None = None, sweep: str = "the sweep") -> list[Fault]:
    """All faults of a cluster's file; with a sweep, those of the two together as well.

    Args:
        cluster: the file.
        config: of the sweep.
        sweep: its file, for the messages.
    """
    found = [*_safety(cluster), *_commands(cluster)]
    if cluster.provider == LOCAL:  # its machines are there, and a sweep asks them
        return found
    found += [*_sizes(cluster), *_times(cluster), *_machines(cluster)]
    if config is not None:
        found += [*_placement(cluster, config, sweep), *_limits(cluster, config, sweep), *_data(cluster, config, sweep)]
    return found


def _fault(cluster: ClusterFile, field: str, text: str) -> Fault:
    return Fault(cluster.at(field), f"{field} {text}")


def _sizes(cluster: ClusterFile) -> Iterator[Fault]:
    if cluster.head.most:
        field = f"available_node_types.{cluster.head.name}.max_workers"
        yield _fault(cluster, field, f"is {cluster.head.most}, but this is the head's type; allowed: 0, or a type of its own")
    if not cluster.workers or not cluster.max_workers:
        field = "max_workers" if cluster.workers else "available_node_types"
        yield _fault(cluster, field, "leaves no machine beside the head; allowed: at least one, or no cluster")
    for kind in cluster.workers:
        field = f"available_node_types.{kind.name}"
        if kind.fewest > kind.most:
            text = f"is {kind.fewest}, but max_workers is {kind.most}; allowed: 0 to {kind.most}"
            yield _fault(cluster, f"{field}.min_workers", text)
        if kind.most > cluster.max_workers:
            text = f"is {kind.most}, but the cluster's max_workers is {cluster.max_workers}, so that they never come; allowed: 0 "
            yield _fault(cluster, f"{field}.max_workers", f"{text}to {cluster.max_workers}, or a larger max_workers at the top")
    if (fewest := sum(kind.fewest for kind in cluster.workers)) > cluster.max_workers:
        yield _fault(cluster, "max_workers", f"is {cluster.max_workers}, but min_workers add up to {fewest}; allowed: {fewest}")


def _times(cluster: ClusterFile) -> Iterator[Fault]:
    if cluster.idle_s <= cluster.boot_s:
        idle, boot = cluster.idle_s / 60, cluster.boot_s / 60
        text = (
            f"is {idle:g}, but a machine of {cluster.provider} takes about {boot:g} minutes to come: the first of a group would "
            f"go before the last is there; allowed: more than {boot:g}"
        )
        yield _fault(cluster, "idle_timeout_minutes", text)


def _machines(cluster: ClusterFile) -> Iterator[Fault]:
    if _is_spot(cluster.head):
        field = f"available_node_types.{cluster.head.name}.node_config"
        yield _fault(
            cluster, field, "asks for a spot machine as the head, which holds the results; allowed: an on-demand machine"
        )
    for kind in [cluster.head, *cluster.workers]:
        field, machine = f"available_node_types.{kind.name}", _machine_of(kind)
        if not kind.resources.get("CPU"):
            yield _fault(
                cluster, f"{field}.resources", f"is {_in_words(kind)}, without CPU; allowed: the machine's number of cores"
            )
        if GPU_MACHINES.match(machine) and not kind.resources.get("GPU"):
            text = f"is {_in_words(kind)}, but {machine} has a GPU, which no trial would get; allowed: GPU: 1 or more"
            yield _fault(cluster, f"{field}.resources", text)
        if kind.resources.get("GPU") and machine and not GPU_MACHINES.match(machine) and "guestAccelerators" not in kind.config:
            text = f"has {kind.resources['GPU']:g} GPU, but {machine} has none; allowed: a machine with a GPU, or no GPU"
            yield _fault(cluster, f"{field}.resources.GPU", text)
        if kind.resources.get("GPU") and not _has_image(cluster, kind):
            text = (
                "names no image, and the default one may have a driver too old for torch's CUDA 13; allowed: an image with an "
                "NVIDIA driver of version 580 or later"
            )
            yield _fault(cluster, f"{field}.node_config", text)


def _is_spot(kind: NodeType) -> bool:
    market = kind.config.get("InstanceMarketOptions") or {}
    scheduling = kind.config.get("scheduling") or {}
    scheduling = scheduling if isinstance(scheduling, dict) else {}
    return (
        market.get("MarketType") == "spot" or bool(scheduling.get("preemptible")) or scheduling.get("provisioningModel") == "SPOT"
    )


def _machine_of(kind: NodeType) -> str:
    return str(kind.config.get("InstanceType") or kind.config.get("machineType") or "").rsplit("/", 1)[-1]


def _in_words(kind: NodeType) -> str:
    return "{" + ", ".join(f"{name}: {number:g}" for name, number in kind.resources.items()) + "}"


def _has_image(cluster: ClusterFile, kind: NodeType) -> bool:
    if cluster.provider == "aws":
        return "ImageId" in kind.config
    if cluster.provider == "gcp":
        return any("sourceImage" in (disk.get("initializeParams") or {}) for disk in kind.config.get("disks") or [])
    return True


def _safety(cluster: ClusterFile) -> Iterator[Fault]:
    starts = _start_commands(cluster)
    for field, command in starts:
        if (host := _option(command, "dashboard-host")) in ANYWHERE:
            text = (
                f"opens the dashboard to the network ({host}): whoever reaches it runs code; allowed: --dashboard-host=127.0.0.1"
            )
            yield _fault(cluster, field, f"{text}, and `ray dashboard {cluster.path.name}` from a laptop")
        if cluster.provider != FAKE and "RAY_AUTH_MODE=token" not in command:
            text = "starts Ray without a token: whoever reaches a port runs code; allowed: RAY_AUTH_MODE=token before `ray start`"
            yield _fault(cluster, field, text)
    mounts = cluster.tree.get("file_mounts") or {}
    if cluster.provider != FAKE and not any(str(place).endswith(".ray/auth_token") for place in mounts):
        text = (
            "does not bring the token to the machines; allowed: ~/.ray/auth_token: ~/.ray/auth_token, after `ray get-auth-token "
            "--generate`"
        )
        yield _fault(cluster, "file_mounts", text)


def _start_commands(cluster: ClusterFile) -> list[tuple[str, str]]:
    fields = ("head_start_ray_commands", "worker_start_ray_commands")
    commands = [(field, str(command)) for field in fields for command in cluster.tree.get(field) or []]
    return [(field, command) for field, command in commands if "ray start" in command]


def _option(command: str, name: str) -> str | None:
    found = re.search(rf"--{name}[= ](\S+)", command)
    return found.group(1).strip("'\"") if found else None


def _commands(cluster: ClusterFile) -> Iterator[Fault]:
    if cluster.provider == FAKE:
        return
    starts = dict(_start_commands(cluster))
    head, worker = starts.get("head_start_ray_commands"), starts.get("worker_start_ray_commands")
    if head is None or "--head" not in head:
        yield _fault(cluster, "head_start_ray_commands", "has no `ray start --head`; allowed: see ray_cluster.yaml")
    elif not _option(head, "autoscaling-config"):
        text = "starts no autoscaler, so that no machine comes; allowed: --autoscaling-config=~/ray_bootstrap_config.yaml"
        yield _fault(cluster, "head_start_ray_commands", text)
    if worker is None or "$RAY_HEAD_IP" not in worker:
        text = "does not join the head; allowed: ray start --address=$RAY_HEAD_IP:6379"
        yield _fault(cluster, "worker_start_ray_commands", text)
    port, joined = _option(head or "", "port") or "6379", re.search(r"\$RAY_HEAD_IP:(\d+)", worker or "")
    if head and joined and joined.group(1) != port:
        text = f"joins the port {joined.group(1)}, but the head listens on {port}; allowed: the same port"
        yield _fault(cluster, "worker_start_ray_commands", text)


def _placement(cluster: ClusterFile, config: SweepConfig, sweep: str) -> Iterator[Fault]:
    needs, resources = needs_of_worker(config), config.resources
    each = in_words(needs)
    machines = f"the machines of {cluster.path}"
    kinds = [cluster.head, *cluster.workers]
    largest = {kind: max(node.resources.get(kind, 0) for node in kinds) for kind in needs}
    names = {"CPU": "resources.cpus_per_worker", "GPU": "resources.gpus_per_worker"}
    for kind, count in needs.items():
        if count > largest[kind]:
            field = names[kind] if kind == "GPU" or resources.cpus_per_worker else "trial.threads"
            text = f"{field} is {count:g}, but no machine of {cluster.path} has more than {largest[kind]:g} {kind}; allowed: "
            cure = (
                f"at most {largest[kind]:g}"
                if largest[kind]
                else f"0, or a type of machine with a {kind} in available_node_types"
            )
            yield Fault(sweep, text + cure)
            return
    plan = arrange(config, cluster.machines(needs))
    if not plan.fitting:
        yield Fault(
            sweep, f"a worker needs {each}, which no machine of {cluster.path} has together; allowed: less for each worker"
        )
    elif plan.workers > plan.fitting:
        text = (
            f"resources.workers is {resources.workers}, but the machines of {cluster.path} hold {plan.fitting} with {each} each"
        )
        yield Fault(sweep, f"{text}: no trial would ever start; allowed: at most {plan.fitting}, or a larger max_workers there")
    elif resources.slots and plan.slots < resources.slots:
        workers = "1 worker" if plan.workers == 1 else f"{plan.workers} workers"
        text = f"resources.slots is {resources.slots}, but {machines} hold {plan.slots} of {workers} with {each} each"
        yield Fault(sweep, f"{text}, and the others would wait for ever; allowed: 1 to {plan.slots}")
    if config.trial.device == "cuda" and not resources.gpus_per_worker:
        yield Fault(
            sweep,
            "trial.device is cuda, but resources.gpus_per_worker is 0, so that Ray hides the GPUs; allowed: 1, or device: auto",
        )


def _limits(cluster: ClusterFile, config: SweepConfig, sweep: str) -> Iterator[Fault]:
    limit = config.resources.start_limit_s
    if limit <= cluster.boot_s:
        text = (
            f"resources.start_limit_s is {limit:g}, but a machine of {cluster.provider} takes about {cluster.boot_s:g} s to come"
        )
        yield Fault(sweep, f"{text}; allowed: more than {cluster.boot_s:g}")


def _data(cluster: ClusterFile, config: SweepConfig, sweep: str) -> Iterator[Fault]:
    root: Any = getattr(config.trial.data, "root", None)
    if config.trial.data.source in LOCAL_SOURCES or root is None or "://" in str(root):
        return
    if cluster.provider == FAKE:  # its machines have this disk
        return
    place, mounts = Path(str(root)), [Path(str(mount)).expanduser() for mount in cluster.tree.get("file_mounts") or {}]
    if not any(mount == place or mount in place.parents for mount in mounts) and not str(root).startswith(SHARED):
        text = f"trial.data.root is {str(root)!r}, which the machines of {cluster.path} do not have; allowed: a folder of its "
        yield Fault(sweep, f"{text}file_mounts, a shared disk below {' or '.join(SHARED)}, or a URI such as s3://bucket/folder")


SHARED = ("/mnt/", "/nfs/", "/efs/", "/fsx/", "/shared/")
"""Where machines have their shared disks, by custom."""
