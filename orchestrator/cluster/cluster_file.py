"""The cluster's file (ray_cluster.yaml), as far as a sweep depends on it: which machines may come, how many, and how fast.

Ray reads the file, too, and its own schema decides what else stands in it. This module needs neither Ray nor torch.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from orchestrator.cluster.placement import Node
from trainables.config_file import ConfigError, Tree

LOCAL, FAKE = "local", "fake_multinode"
"""Providers: machines that are there and are reached by ssh; machines that are processes."""
BOOT_S = {FAKE: 15.0, LOCAL: 60.0}
"""Seconds from the request for a machine to the moment when it takes work, by provider."""
SLOW_BOOT_S = 480.0
"""Of all other providers: a cloud machine boots and installs torch with CUDA."""


class NodeType(NamedTuple):
    """A kind of machine."""

    name: str
    resources: Node
    fewest: int
    most: int
    config: Tree
    """What the provider is told, `node_config`."""


class ClusterFile(NamedTuple):
    """What a cluster's file says."""

    path: Path
    tree: Tree
    lines: dict[str, int]
    """The line of each field, by dotted name."""
    head: NodeType
    workers: list[NodeType]
    max_workers: int

    @property
    def provider(self) -> str:
        """The provider's name: aws, gcp, local ..."""
        return str(self.tree["provider"]["type"])

    @property
    def boot_s(self) -> float:
        """Seconds that a machine takes to come."""
        return BOOT_S.get(self.provider, SLOW_BOOT_S)

    @property
    def idle_s(self) -> float:
        """Seconds without work after which a machine goes."""
        return 60 * float(self.tree.get("idle_timeout_minutes", 5))

    def machines(self, needs: Mapping[str, float]) -> list[Node]:
        """The machines that may be up at a time: the head, then the workers, those first that hold most of `needs`.

        Args:
            needs: resources of one worker of a trial.
        """
        fitting = {kind.name: min(kind.resources.get(name, 0) / count for name, count in needs.items()) for kind in self.workers}
        kinds = sorted(self.workers, key=lambda kind: -fitting[kind.name])
        return [self.head.resources, *[kind.resources for kind in kinds for _ in range(kind.most)][: self.max_workers]]

    def at(self, field: str) -> str:
        """The file and the line of a field; of the nearest one above, if the field is missing."""
        names = field.split(".")
        lines = [self.lines[name] for end in range(len(names), 0, -1) if (name := ".".join(names[:end])) in self.lines]
        return f"{self.path}:{lines[0] if lines else 1}"


class Cluster(NamedTuple):
    """The running cluster on which a sweep is to run."""

    address: str
    """`auto`, or HOST:PORT of the head."""
    file: ClusterFile | None
    """Says which machines may come; None where those that are up are all."""


def read_cluster(path: Path) -> ClusterFile:
    """Reads a cluster's file.

    Raises:
        ConfigError: when it cannot be read, or lacks what says which machines there are.
    """
    try:
        text = path.read_text(encoding="utf-8")
        tree, root = yaml.safe_load(text), yaml.compose(text, Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict) or root is None:
        raise ConfigError(f"{path}: expected a mapping, as Ray's cluster launcher takes it; see ray_cluster.yaml")
    lines = dict(_lines_of(root))

    def refusal(field: str, given: Any, allowed: str) -> ConfigError:
        line = lines.get(field) or lines.get(field.rpartition(".")[0], 1)
        return ConfigError(f"{path}:{line}: {field} is {'missing' if given is None else repr(given)}; allowed: {allowed}")

    provider = tree.get("provider")
    provider = provider.get("type") if isinstance(provider, dict) else None
    if not isinstance(provider, str):
        raise refusal("provider.type", provider, "the name of a provider: aws, gcp, local ...")
    most = tree.get("max_workers", 2)  # Ray's default
    if not _is_count(most):
        raise refusal("max_workers", most, "a number of machines beside the head, from 0 on")
    if provider == LOCAL:  # these machines are there: what they have, they say themselves
        addresses = tree["provider"].get("worker_ips")
        if not isinstance(addresses, list) or not tree["provider"].get("head_ip"):
            raise refusal("provider.worker_ips", addresses, "a list of addresses, and head_ip beside it")
        return ClusterFile(path, tree, lines, NodeType("head", {}, 0, 0, {}), [], len(addresses))
    types = tree.get("available_node_types")
    if not isinstance(types, dict) or not types:
        raise refusal(
            "available_node_types", types, "kinds of machines by name, each with resources, min_workers and max_workers"
        )
    if tree.get("head_node_type") not in types:
        raise refusal("head_node_type", tree.get("head_node_type"), f"one of available_node_types: {', '.join(map(str, types))}")
    kinds = []
    for name, given in types.items():
        field = f"available_node_types.{name}"
        if not isinstance(given, dict):
            raise refusal(field, given, "resources, min_workers, max_workers and node_config")
        resources = given.get("resources")
        if not isinstance(resources, dict) or not resources:
            raise refusal(
                f"{field}.resources", resources, "the machine's CPU and GPU, as {CPU: 4, GPU: 1}: a sweep plans by them"
            )
        for kind, number in resources.items():
            if type(number) not in (int, float) or number < 0:
                raise refusal(f"{field}.resources.{kind}", number, "a number from 0 on")
        bounds: dict[str, Any] = {"min_workers": given.get("min_workers", 0), "max_workers": given.get("max_workers", most)}
        for bound, number in bounds.items():
            if not _is_count(number):
                raise refusal(f"{field}.{bound}", number, "a number of machines, from 0 on")
        node = {str(kind): float(number) for kind, number in resources.items()}
        kinds.append(NodeType(str(name), node, bounds["min_workers"], bounds["max_workers"], given.get("node_config") or {}))
    head = next(kind for kind in kinds if kind.name == tree["head_node_type"])
    return ClusterFile(path, tree, lines, head, [kind for kind in kinds if kind is not head], most)


def _is_count(number: Any) -> bool:
    return type(number) is int and number >= 0


def _lines_of(node: yaml.Node, prefix: str = "") -> list[tuple[str, int]]:
    """The line of each key, counted from 1, by dotted name."""
    if not isinstance(node, yaml.MappingNode):
        return []
    found = []
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        found += [(name, key.start_mark.line + 1), *_lines_of(value, f"{name}.")]
    return found
