"""Computes how many trials run side by side, and on which resources.

A slot is a process that serves one trial after another, alone or with workers.
"""

from typing import NamedTuple

from orchestrator.config.sweep_config import SweepConfig
from trainables.machine import num_cores, num_gpus

Node = dict[str, float]
"""The resources of a machine, under Ray's names: `CPU`, `GPU`."""


class Arrangement(NamedTuple):
    """How a sweep uses the available machines."""

    slots: int
    """Number of trials side by side; 0 when not even one fits."""
    workers: int
    """Number of workers of each slot."""
    own_process: bool
    """Whether a trial runs in the slot's own process. Otherwise each worker is a separate process."""
    fitting: int
    """Number of workers that all machines together have room for."""


def needs_of_worker(config: SweepConfig) -> Node:
    """The resources of one worker, without those that are 0."""
    needs = {"CPU": config.resources.cpus_per_worker or config.trial.threads, "GPU": config.resources.gpus_per_worker}
    return {kind: float(count) for kind, count in needs.items() if count}


def room_on(node: Node, needs: Node) -> int:
    """The number of workers for which a machine has room."""
    # The margin absorbs rounding errors: 0.3 / 0.1 is less than 3.
    return min(int(node.get(kind, 0) / count + 1e-6) for kind, count in needs.items())


def in_words(needs: Node) -> str:
    """Resources in words, as `1 CPU and 1 GPU`."""
    return " and ".join(f"{count:g} {kind}" for kind, count in needs.items())


def this_machine(config: SweepConfig) -> Node:
    """The resources of this machine. GPUs are counted only when trials use them, because counting imports torch."""
    return {"CPU": num_cores(), "GPU": num_gpus() if config.resources.gpus_per_worker else 0}


def arrange(config: SweepConfig, nodes: list[Node], more_may_come: bool = False) -> Arrangement:
    """Arranges the slots of a sweep on `nodes`. The first node holds the slots' own processes.

    A single worker runs in the slot's own process when the first node has room for all wanted slots, or is the only one for
    good. When the number of workers is a range, the largest number is taken that leaves room for `resources.slots`, or for one
    slot when that is None.
    """
    needs, (least, most) = needs_of_worker(config), config.resources.worker_range()
    fitting = [room_on(node, needs) for node in nodes]
    wanted = config.resources.slots or min(config.resources.wanted_slots(config.num_trials()), config.num_trials())
    workers = max(least, min(most, sum(fitting) // (config.resources.slots or 1)))
    own_process = most == 1 and (fitting[0] >= wanted or (len(nodes) == 1 and not more_may_come))
    return Arrangement(min(wanted, sum(fitting) // workers), workers, own_process, sum(fitting))
