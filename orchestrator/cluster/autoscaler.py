"""What a cluster's autoscaler does about machines that trials wait for, in words."""

import json
from collections import Counter
from contextlib import suppress
from typing import Any, NamedTuple

import ray
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.experimental.internal_kv import _internal_kv_get


class Doings(NamedTuple):
    """What the autoscaler does."""

    starting: Counter[str]
    """Machines on their way, by type."""
    failed: dict[str, str]
    """Why machines do not come, by type."""


def doings() -> str:
    """What the autoscaler of the connected cluster does, in a sentence."""
    return in_words(look())


def look() -> Doings | None:
    """What the autoscaler of the connected cluster does; None when there is none, or it does not say."""
    with suppress(Exception):  # Ray's internals: knowing less is no reason to end a sweep
        return _second() if is_autoscaler_v2() else _first()
    return None


def _second() -> Doings:
    """As autoscaler v2 says."""
    status = get_cluster_status(ray.get_runtime_context().gcs_address)
    starting: Counter[str] = Counter()
    for launch in status.pending_launches:
        starting[launch.ray_node_type_name] += launch.count
    starting.update(node.ray_node_type_name for node in status.pending_nodes)
    failed = {launch.ray_node_type_name: str(launch.details or "no reason given") for launch in status.failed_launches}
    return Doings(+starting, failed)


def _first() -> Doings | None:
    """As autoscaler v1 says."""
    text = _internal_kv_get(DEBUG_AUTOSCALING_STATUS)
    if not text:
        return None
    report: dict[str, Any] = json.loads(text).get("autoscaler_report") or {}
    starting = Counter(report.get("pending_launches") or {})
    starting.update(kind for _, kind, *_ in report.get("pending_nodes") or [])
    failed = {kind: "a machine that came has failed" for _, kind in report.get("failed_nodes") or []}
    for found in ((report.get("node_availability_summary") or {}).get("node_availabilities") or {}).values():
        if error := found.get("unavailable_node_information"):
            failed[found["node_type"]] = f"{error['category']}: {error['description']}"
    return Doings(+starting, failed)


def in_words(doings: Doings | None) -> str:
    """A sentence."""
    if doings is None:
        return "no autoscaler answers: perhaps no machine comes by itself"
    parts = []
    if doings.starting:
        parts.append("is starting " + " and ".join(f"{number} {kind}" for kind, number in sorted(doings.starting.items())))
    parts += [f"could not start {kind}: {' '.join(reason.split())[:200]}" for kind, reason in sorted(doings.failed.items())]
    return f"the autoscaler {', and '.join(parts)}" if parts else "the autoscaler starts no machine: all that may come are there"
