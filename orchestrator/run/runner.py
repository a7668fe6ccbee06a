"""Runs trials on Ray: connects, builds the Tuner, and leaves nothing running."""

import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

# Ray reads these when it is imported: no usage reports, no live table, no result files beside the ledger.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")

import ray
from ray import tune

from orchestrator.config.sweep_config import SweepConfig
from orchestrator.decide.conductor import Halt
from orchestrator.ledger.events import Status
from orchestrator.ledger.ledger import Ledger
from orchestrator.run.interrupts import heeded_endings
from orchestrator.run.leftovers import RAY, SCRATCH, remove_leftovers, working_folder
from orchestrator.run.placement import arrange, needs_of_worker
from orchestrator.run.signals import Slots
from orchestrator.run.supervisor import Supervisor
from orchestrator.run.trial import Trial
from orchestrator.run.tune_hooks import StintCallback, StintScheduler, StintSearch, our_id
from trainables.config_file import ConfigError
from trainables.machine import num_cores, ray_folder
from trainables.workers.worker_group import GroupConfig

HEAD = "node:__internal_head__"
"""A resource that Ray gives to the head and to no other machine."""
HEAD_SHARE = 0.001


def check_ray() -> None:
    """Sees that this process may start Ray.

    Raises:
        ConfigError: when it is connected to Ray already.
    """
    if ray.is_initialized():
        raise ConfigError(
            "this process is connected to Ray already, and a sweep starts Ray by itself; nothing was started; allowed: call "
            "ray.shutdown() first, or run the sweep in another process"
        )


@contextmanager
def importable_everywhere() -> Iterator[None]:
    """Processes that start in this block can import plug-ins from the same folders as this one. Ray itself passes on the starting
    folder only, not what a script or a notebook added to `sys.path`.
    """
    before = os.environ.get("PYTHONPATH")
    own = [os.path.abspath(folder) for folder in sys.path if folder and not folder.startswith((sys.prefix, sys.base_prefix))]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([*own, *([before] if before else [])]))
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


@contextmanager
def local_ray() -> Iterator[None]:
    """Ray on this machine, for as long as the block lasts. Other clusters on the machine are not touched."""
    remove_leftovers()
    with working_folder(RAY, ray_folder()) as folder:
        with importable_everywhere(), own_signals():
            ray.init(
                "local",
                num_cpus=num_cores(),
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
                _temp_dir=str(folder),
            )
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a failed trial's traceback goes into the ledger instead
        try:
            yield
        finally:
            ray.shutdown()


@contextmanager
def own_signals() -> Iterator[None]:
    """For the start of Ray: its processes do not take SIGHUP, which a closing terminal sends to all of them, so that trials can
    end their epochs; and the handler of SIGTERM, which Ray replaces, is ours again afterwards.
    """
    # Processes inherit the mask of blocked signals. This process has other threads, which still take the signal.
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        if main and handler is not None:
            signal.signal(signal.SIGTERM, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def run_trials(
    config: SweepConfig,
    folder: Path,
    ledger: Ledger,
    note: Callable[[str], None],
    when_over: Callable[[], None] = lambda: None,
    trainable: type[Trial] = Trial,
) -> tuple[Status, str | None]:
    """Runs what is left of a sweep in the connected cluster.

    Args:
        config: of the sweep.
        folder: its results folder.
        ledger: of the folder, open for writing; holds at least how the sweep began.
        note: tells a person.
        when_over: called before the last events are written.
        trainable: what the slots run.

    Returns: finished when all trials have ended or the budget is used up, interrupted after Ctrl-C or SIGTERM, failed when too
        many trials failed or Ray Tune itself gave up; and the reason, if trials are left. The ledger has these as interrupted.
    """
    with working_folder(SCRATCH) as scratch:
        slots, resources = prepare_slots(config, folder, scratch)
        supervisor = Supervisor(config, ledger, slots, note)
        try:
            with until_terminated(supervisor), quiet():
                fit(supervisor, slots, resources, scratch, trainable)
        except KeyboardInterrupt:  # from before Ray Tune took the signal over; later `fit` returns
            pass
        except (Exception, SystemExit) as error:  # a library's exit is an error of the library
            note(f"Ray Tune ended: {error!r}")
            supervisor.conductor.halt(Status.FAILED, f"Ray Tune ended: {error!r}")
        when_over()  # before the folder is removed: Ray Tune has given Ctrl-C back, and one more must not lose the ending
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
            trial_name_creator=our_id,
            trial_dirname_creator=lambda trial: f"{our_id(trial)}-{trial.trial_id}",
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


def prepare_slots(config: SweepConfig, folder: Path, scratch: Path) -> tuple[Slots, dict[str, float]]:
    """The slots of a sweep in the connected cluster, and what Tune reserves for each.

    The slots' own processes stay on the head, where the results folder is. A group reserves what its workers need.
    """
    nodes = sorted((node["Resources"] for node in ray.nodes() if node["Alive"]), key=lambda node: HEAD not in node)
    plan, needs = arrange(config, nodes), needs_of_worker(config)
    slots_folder = scratch / "slots"
    slots_folder.mkdir()
    results = folder.resolve()  # trials have another working directory
    number = config.resources.slots or max(plan.slots, 1)  # machines may still be starting
    if plan.own_process:
        return Slots(number, slots_folder, results, config.checkpoint_interval), needs | {HEAD: HEAD_SHARE}
    resources = config.resources
    group = GroupConfig(
        min_workers=resources.worker_range()[0],
        max_workers=plan.workers,
        cpus_per_worker=needs["CPU"],
        gpus_per_worker=resources.gpus_per_worker,
        device=config.trial.device,
        heartbeat_timeout_s=resources.heartbeat_timeout_s,
        start_s=resources.start_limit_s,
        restarts=resources.restarts,
    )
    return Slots(number, slots_folder, results, config.checkpoint_interval, group), {HEAD: HEAD_SHARE}
