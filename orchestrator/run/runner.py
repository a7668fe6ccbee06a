"""Runs a sweep on Ray: connects, builds the Tuner, and leaves nothing running."""

import logging
import os
import signal
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

# Ray reads these when it is imported: no usage reports, no live table, no result files beside the ledger.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")

import ray
from ray import tune

from orchestrator.config.sweep_config import SweepConfig
from orchestrator.ledger.ledger import Event, Ledger
from orchestrator.run.placement import arrange, needs_of_worker
from orchestrator.run.supervisor import Supervisor
from orchestrator.run.trial import Slots, Trial
from orchestrator.run.tune_hooks import StintCallback, StintScheduler, StintSearch, our_id
from trainables.data import LongTailedData
from trainables.machine import num_cores
from trainables.workers.worker_group import GroupConfig

HEAD = "node:__internal_head__"
"""A resource that Ray gives to the head and to no other machine."""
HEAD_SHARE = 0.001
PACKAGES = ("tailtune", "ray", "optuna", "mlflow", "torch", "torchvision", "numpy", "pyarrow")


@contextmanager
def local_ray() -> Iterator[None]:
    """Ray on this machine, for as long as the block lasts; another cluster that may be running is left alone."""
    ray.init("local", num_cpus=num_cores(), include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a failed trial's traceback goes into the ledger instead
    try:
        yield
    finally:
        ray.shutdown()


def run_trials(
    config: SweepConfig,
    folder: Path,
    ledger: Ledger,
    past: list[Event],
    note: Callable[[str], None],
    when_over: Callable[[], None] = lambda: None,
    trainable: type[Trial] = Trial,
) -> tuple[str, str | None]:
    """Runs what is left of a sweep in the connected cluster.

    Args:
        config: of the sweep.
        folder: its results folder.
        ledger: of the folder, open for writing.
        past: what the ledger holds already.
        note: tells a person.
        when_over: called before the last events are written.
        trainable: what the slots run.

    Returns: `finished` when all trials have ended or the budget is used up, `interrupted` after Ctrl-C or SIGTERM, `failed` when
        too many trials failed or Tune itself gave up; and the reason, if trials are left. Those are in the ledger as interrupted.
    """
    with tempfile.TemporaryDirectory(prefix="tailtune-", ignore_cleanup_errors=True) as scratch:
        slots, resources = prepare_slots(config, folder, Path(scratch))
        supervisor = Supervisor(config, ledger, past, slots, note)
        try:
            with until_terminated(supervisor), quiet():
                fit(supervisor, slots, resources, Path(scratch), trainable)
        except KeyboardInterrupt:  # before Tune has taken the signal over; later it comes back from fit
            pass
        except Exception as error:
            note(f"Ray Tune ended: {error!r}")
            supervisor.conductor.halt("failed", f"Ray Tune ended: {error!r}")
    when_over()
    conductor = supervisor.conductor
    conductor.close()
    failed = conductor.halted and conductor.halted[0] == "failed"
    if conductor.over and not failed:
        return "finished", None
    status, reason = conductor.halted or ("interrupted", "the sweep was interrupted")
    conductor.interrupt(reason)
    return status, reason


def fit(supervisor: Supervisor, slots: Slots, resources: dict[str, float], scratch: Path, trainable: type[Trial]) -> None:
    """Has Tune carry out stints until there are none."""
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(slots.number)  # otherwise processes start one after the other
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
    """Without Ray's advice on how to use Tune differently."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def until_terminated(supervisor: Supervisor) -> Iterator[None]:
    """Takes SIGTERM, a spot machine's notice, as a wish to stop at the end of the current epochs; a second one ends at once."""

    def stop(number: int, frame: object) -> None:
        if supervisor.conductor.halted:
            raise KeyboardInterrupt
        supervisor.conductor.halt("interrupted", "the sweep was terminated")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def prepare_slots(config: SweepConfig, folder: Path, scratch: Path) -> tuple[Slots, dict[str, float]]:
    """The slots of a sweep in the connected cluster, and what Tune reserves for each.

    Their own processes stay on the head, where the results folder is. What workers need is reserved by their group.
    """
    nodes = sorted((node["Resources"] for node in ray.nodes() if node["Alive"]), key=lambda node: HEAD not in node)
    plan, needs = arrange(config, nodes), needs_of_worker(config)
    slots_folder = scratch / "slots"
    slots_folder.mkdir()
    results = folder.resolve()  # trials have another working directory
    number = config.resources.slots or max(plan.slots, 1)  # machines may still be on their way
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


def sweep_facts(config: SweepConfig, data: LongTailedData, git_commit: str | None) -> dict[str, Any]:
    """What the ledger's first event says: the configuration, the split with all sample ids, and the versions."""
    return {
        "config": config.model_dump(),
        "split_sha256": data.sha256,
        "split": data.split.manifest(),
        "class_counts": data.class_counts.tolist(),
        "git_commit": git_commit,
        "versions": {name: version(name) for name in PACKAGES},
    }
