"""Runs trials on the connected Ray: arranges the slots, builds the Tuner, and passes Ctrl-C on."""

import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

# Ray Tune reads these when it is imported: no live table, no result files beside the ledger.
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")

import ray
from ray import tune

from orchestrator.cluster.machines import Machines
from orchestrator.cluster.placement import arrange, needs_of_worker
from orchestrator.config.sweep_config import SweepConfig
from orchestrator.decide.conductor import Halt
from orchestrator.ledger.events import Status
from orchestrator.ledger.ledger import Ledger
from orchestrator.run.groups import group_of
from orchestrator.run.interrupts import heeded_endings
from orchestrator.run.leftovers import SCRATCH, working_folder
from orchestrator.run.signals import Slots
from orchestrator.run.supervisor import Supervisor
from orchestrator.run.trial import Trial
from orchestrator.run.tune_hooks import StintCallback, StintScheduler, StintSearch, name_of
from trainables.files import remove_place

HEAD = "node:__internal_head__"
"""A resource that Ray gives to the head and to no other machine."""
HEAD_SHARE = 0.001


def run_trials(
    config: SweepConfig,
    folder: Path,
    ledger: Ledger,
    note: Callable[[str], None],
    when_over: Callable[[], None] = lambda: None,
    trainable: type[Trial] = Trial,
    machines: Machines | None = None,
    remove: Callable[[Path, bool], None] = remove_place,
) -> tuple[Status, str | None]:
    """Runs what is left of a sweep in the connected cluster.

    Args:
        config: of the sweep.
        folder: its results folder.
        ledger: of the folder, open for writing; holds at least how the sweep began.
        note: tells a person.
        when_over: called before the last events are written.
        trainable: what the slots run.
        machines: of the cluster that this process has joined; None for Ray of its own.
        remove: removes what is not needed any more, as Supervisor says.

    Returns: finished when all trials have ended or the budget is used up, interrupted after Ctrl-C or SIGTERM, failed when too
        many trials failed or Ray Tune itself gave up; and the reason, if trials are left. The ledger has these as interrupted.
    """
    with working_folder(SCRATCH) as scratch:
        slots, resources = prepare_slots(config, folder, scratch, machines)
        supervisor = Supervisor(config, ledger, slots, note, machines=machines, remove=remove)
        try:
            with until_terminated(supervisor), quiet():
                fit(supervisor, slots, resources, scratch, trainable)
        except KeyboardInterrupt:  # from before Ray Tune took the signal over; later `fit` returns
            pass
        except (Exception, SystemExit) as error:  # a library's exit is an error of the library
            note(f"Ray Tune ended: {error!r}")
            supervisor.conductor.halt(Status.FAILED, f"Ray Tune ended: {error!r}")
        when_over()  # before the folder is removed: Ray Tune has given Ctrl-C back, and one more must not lose the ending
        supervisor.close()
    conductor = supervisor.conductor
    conductor.close()
    failed = conductor.halted and conductor.halted.status == Status.FAILED
    if conductor.over and not failed:
        return Status.FINISHED, None
    halt = conductor.halted or Halt(Status.INTERRUPTED, "the sweep was interrupted")
    conductor.interrupt(halt.reason)
    return halt.status, halt.reason


def fit(supervisor: Supervisor, slots: Slots, resources: dict[str, float], scratch: Path, trainable: type[Trial]) -> None:
    """Lets Ray Tune run stints until there are none."""
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(slots.number)  # the default starts processes one after the other
    tune.Tuner(
        tune.with_resources(tune.with_parameters(trainable, slots=slots), resources),
        tune_config=tune.TuneConfig(
            num_samples=-1,
            search_alg=StintSearch(supervisor),
            scheduler=StintScheduler(supervisor, slots.number),
            reuse_actors=True,
            trial_name_creator=name_of,
            trial_dirname_creator=lambda trial: f"{name_of(trial)}-{trial.trial_id}",
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(scratch.resolve()),
            callbacks=[StintCallback(supervisor)],
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            verbose=0,
        ),
    ).fit()


@contextmanager
def quiet() -> Iterator[None]:
    """Hides Ray's warnings on how to use Tune differently."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def until_terminated(supervisor: Supervisor) -> Iterator[None]:
    """Lets SIGTERM, a spot machine's notice, and SIGHUP, the end of the terminal, stop the sweep at the end of the current
    epochs; a second one stops it at once. Under nohup SIGHUP stays ignored.

    In a thread other than the main one the caller's handlers stay.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        if supervisor.conductor.halted:
            raise KeyboardInterrupt
        supervisor.conductor.halt(Status.INTERRUPTED, "the sweep was terminated")

    before = {number: signal.signal(number, stop) for number in heeded_endings()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def prepare_slots(
    config: SweepConfig, folder: Path, scratch: Path, machines: Machines | None = None
) -> tuple[Slots, dict[str, float]]:
    """The slots of a sweep in the connected cluster, and what Tune reserves for each.

    The slots' own processes stay on the head, where the results folder is. A group reserves what its workers need. On a cluster
    the number of slots is the most that there may be: it comes from the machines that may come, if the cluster's file names them.
    """
    nodes = sorted((node["Resources"] for node in ray.nodes() if node["Alive"]), key=lambda node: HEAD not in node)
    needs = needs_of_worker(config)
    if machines and machines.file:
        nodes = machines.file.machines(needs)
    plan = arrange(config, nodes, more_may_come=machines is not None)
    slots_folder = scratch / "slots"
    slots_folder.mkdir()
    results = folder.resolve()  # trials have another working directory
    number = config.resources.slots or max(plan.slots, 1)  # machines may still be starting
    if machines and not machines.file and not plan.own_process:  # nobody knows how many may come
        number = min(config.resources.wanted_slots(config.num_trials()), config.num_trials())
    least, group = config.resources.worker_range()[0], None
    if not plan.own_process:
        group = group_of(config, least, plan.workers, needs["CPU"], machines is not None)
    slots = Slots(number, slots_folder, results, config.checkpoint_interval, group, config.resources.fused)
    return slots, (needs if plan.own_process else {}) | {HEAD: HEAD_SHARE}
