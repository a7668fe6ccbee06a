"""The machines of the connected cluster while a sweep runs: their room for workers, the time that they cost, the demand for more.

Demand is placement groups that nobody works in. They are this process's own, so that Ray removes them with it: a sweep that is
killed asks for no machines any more. What `ray.autoscaler.sdk.request_resources` asks for would stay for ever.
"""

import time
from contextlib import suppress
from typing import NamedTuple

import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group

from orchestrator.cluster import autoscaler
from orchestrator.cluster.cluster_file import ClusterFile
from orchestrator.cluster.placement import Node, room_on

PATIENCE_S = 300.0
"""Ray's default of `idle_timeout_minutes`, in seconds."""
LOOK_S = 2.0
"""Seconds from one look at the cluster to the next."""


class Fleet(NamedTuple):
    """The machines at a moment."""

    workers: int
    """Workers for which the machines that are up have room, whoever uses them now."""
    gpus_up: float
    """GPUs of the machines that are up."""
    gpus_starting: float
    """GPUs of the machines that are on their way, as far as the autoscaler and the cluster's file tell."""


class Machines:
    """What a sweep sees of the machines, and what it asks for.

    Args:
        needs: resources of one worker.
        file: the cluster's file, if it is known.
    """

    def __init__(self, needs: Node, file: ClusterFile | None = None) -> None:
        self.file, self._needs = file, needs
        self._gpus = {kind.name: kind.resources.get("GPU", 0.0) for kind in file.workers} if file else {}
        self._demand: list[PlacementGroup] = []
        self._fleet = Fleet(0, 0.0, 0.0)
        self._looked: float | None = None
        self.come_and_go = file is not None
        """Whether machines may come by themselves, and go."""
        self.up_s = self.starting_s = 0.0
        """Seconds, times GPUs, that machines were up and on their way since the first look."""

    def look(self) -> Fleet:
        """The machines now; asks the cluster at most once in LOOK_S."""
        now = time.monotonic()
        if self._looked is not None:
            if now - self._looked < LOOK_S:
                return self._fleet
            self.up_s += self._fleet.gpus_up * (now - self._looked)
            self.starting_s += self._fleet.gpus_starting * (now - self._looked)
        self._looked = now
        try:
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        except Exception:  # Ray's control server did not answer this time; if it is gone, Ray Tune ends the sweep
            return self._fleet
        doings = autoscaler.look()
        self.come_and_go = self.file is not None or doings is not None
        starting = sum(number * self._gpus.get(kind, 0.0) for kind, number in doings.starting.items()) if doings else 0.0
        room = sum(room_on(node, self._needs) for node in nodes)
        self._fleet = Fleet(room, sum(node.get("GPU", 0.0) for node in nodes), starting)
        return self._fleet

    def demand(self, trials: int, workers: int, one_waits: bool) -> None:
        """Asks for machines for trials that do not ask themselves.

        Machines that have come are held until a trial asks for them: its process takes some seconds to start, and an idle machine
        goes.

        Args:
            trials: number of trials.
            workers: of each.
            one_waits: whether a trial asks for machines itself. If some are held, all demand is dropped, so that the trial gets
                them; the next call asks again.
        """
        with suppress(Exception):  # Ray's control server has limits of time for each; the next call tries again
            if one_waits and any(_is_met(group) for group in self._demand):
                trials = 0
            while len(self._demand) > trials:
                remove_placement_group(self._demand[-1])
                self._demand.pop()
            while len(self._demand) < trials:
                self._demand.append(placement_group([self._needs] * workers, strategy="PACK"))

    @property
    def patience_s(self) -> float:
        """Seconds without work after which a machine goes."""
        return self.file.idle_s if self.file else PATIENCE_S

    def doings(self) -> str:
        """What becomes of machines that trials wait for."""
        return autoscaler.doings()


def _is_met(group: PlacementGroup) -> bool:
    """Whether Ray holds machines for the group."""
    return bool(placement_group_table(group).get("state") == "CREATED")
