"""How many trials run side by side, and on what. A slot is a process that serves trials one by one, alone or with workers."""

from typing import NamedTuple

from orchestrator.config.sweep_config import SweepConfig
from trainables.machine import num_cores, num_gpus

Node = dict[str, float]
"""What a machine has, by Ray's names: `CPU`, `GPU`."""


class Arrangement(NamedTuple):
    """How a sweep uses the machines that are there."""

    slots: int
    """Trials side by side; 0 when not even one fits."""
    workers: int
    """Of each slot."""
    own_process: bool
    """Whether a trial runs in the slot's own process; its workers are processes of their own otherwise."""
    fitting: int
    """How many workers all machines hold."""


def needs_of_worker(config: SweepConfig) -> Node:
    """The resources of one worker, those that are not 0."""
    needs = {"CPU": config.resources.cpus_per_worker or config.trial.threads, "GPU": config.resources.gpus_per_worker}
    return {kind: float(count) for kind, count in needs.items() if count}


def this_machine(config: SweepConfig) -> Node:
    """What this machine has; its GPUs are counted, which takes torch, only where trials want one."""
    return {"CPU": num_cores(), "GPU": num_gpus() if config.resources.gpus_per_worker else 0}


def arrange(config: SweepConfig, nodes: list[Node]) -> Arrangement:
    """The slots of a sweep on `nodes`, the first of which holds the slots' own processes.

    A single worker is the slot's own process where the first machine holds all slots that are wanted, or is the only one. Where
    the number of workers is a range, it is the largest that leaves room for `resources.slots`, or else for one slot.
    """
    needs, (least, most) = needs_of_worker(config), config.resources.worker_range()
    fitting = [min(int(node.get(kind, 0) / count + 1e-6) for kind, count in needs.items()) for node in nodes]
    wanted = config.resources.slots or min(config.resources.max_concurrent, config.search.trials)
    workers = max(least, min(most, sum(fitting) // (config.resources.slots or 1)))
    own_process = most == 1 and (len(nodes) == 1 or fitting[0] >= wanted)
    return Arrangement(min(wanted, sum(fitting) // workers), workers, own_process, sum(fitting))
