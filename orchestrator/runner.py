"""Runs a sweep on Ray: connects, builds the Tuner, writes down what happens, and leaves nothing running."""

import logging
import os
import shutil
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
from ray.tune.experiment import Trial as TuneTrial

from orchestrator.config import SweepConfig
from orchestrator.ledger import Event, Ledger
from orchestrator.schedule import build_scheduler
from orchestrator.search import StudySearch, trial_status
from orchestrator.slots import arrange, needs_of_worker
from orchestrator.trial import Slots, Trial
from trainables.checkpoint import MANIFEST, STATE
from trainables.data import LongTailedData
from trainables.files import file_sha256
from trainables.machine import num_cores
from trainables.worker_group import GroupConfig

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


def run_trials(config: SweepConfig, folder: Path, ledger: Ledger, note: Callable[[str], None]) -> str:
    """Runs all trials of a sweep in the connected cluster.

    Returns: `finished` when all of them ended, `interrupted` after Ctrl-C, `failed` when Tune itself gave up; the reason goes to
        `note`. Trials that had not ended are in the ledger as interrupted or failed.
    """
    slots, resources = prepare_slots(config, folder)
    recorder = Recorder(ledger, folder)
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(Trial, slots=slots), resources),
        tune_config=tune.TuneConfig(
            num_samples=config.search.trials,
            max_concurrent_trials=slots.number,
            search_alg=StudySearch(config, ledger),
            scheduler=build_scheduler(config),
            reuse_actors=True,
            trial_name_creator=our_id,
            trial_dirname_creator=our_id,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(folder.resolve()),
            callbacks=[recorder],
            verbose=0,
            checkpoint_config=tune.CheckpointConfig(
                num_to_keep=1, checkpoint_frequency=config.checkpoint_interval, checkpoint_at_end=True
            ),
        ),
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Ray's advice on how to use Tune differently
            tuner.fit()
    except KeyboardInterrupt:  # before Tune has taken the signal over; later it comes back from fit
        pass
    except Exception as error:
        note(f"Ray Tune ended: {error!r}")
        recorder.end_running("failed", f"Ray Tune ended: {error!r}")
        return "failed"
    finally:
        shutil.rmtree(slots.folder, ignore_errors=True)
    recorder.end_running("interrupted", "the sweep was interrupted")
    return "finished" if recorder.num_ended == config.search.trials else "interrupted"


def prepare_slots(config: SweepConfig, folder: Path) -> tuple[Slots, dict[str, float]]:
    """The slots of a sweep in the connected cluster, and what Tune reserves for each.

    Their own processes stay on the head, where the results folder is. What workers need is reserved by their group.
    """
    nodes = sorted((node["Resources"] for node in ray.nodes() if node["Alive"]), key=lambda node: HEAD not in node)
    plan, needs = arrange(config, nodes), needs_of_worker(config)
    slots_folder = folder.resolve() / "tune" / "slots"  # trials have another working directory
    slots_folder.mkdir(parents=True)
    number = config.resources.slots or max(plan.slots, 1)  # machines may still be on their way
    if plan.own_process:
        return Slots(number, slots_folder), needs | {HEAD: HEAD_SHARE}
    resources = config.resources
    group = GroupConfig(
        min_workers=resources.worker_range()[0],
        max_workers=plan.workers,
        cpus_per_worker=needs["CPU"],
        gpus_per_worker=resources.gpus_per_worker,
        device=config.trial.device,
        silence_s=resources.silence_limit_s,
        start_s=resources.start_limit_s,
        restarts=resources.restarts,
    )
    return Slots(number, slots_folder, group), {HEAD: HEAD_SHARE}


def our_id(trial: TuneTrial) -> str:
    """The trial's name in folders and messages."""
    return str(trial.config["trial_id"])


class Recorder(tune.Callback):
    """Writes what Tune reports into the ledger, under our trial ids and epochs."""

    def __init__(self, ledger: Ledger, folder: Path) -> None:
        self._ledger, self._folder = ledger, folder.resolve()
        self._class_rows: dict[str, list[dict[str, Any]]] = {}
        self._last: dict[str, dict[str, Any]] = {}
        self._attempts: dict[str, int] = {}
        self._open: set[str] = set()
        self.num_ended = 0
        ledger.listen(self._follow)

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """A process has taken the trial up."""
        trial_id = trial.config["trial_id"]
        self._attempts[trial_id] = self._attempts.get(trial_id, 0) + 1
        self._class_rows[trial_id], self._last[trial_id] = [], {}
        self._ledger.append("trial_start", trial_id=trial_id, attempt=self._attempts[trial_id])

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, Any], **info: Any
    ) -> None:
        """An epoch has ended."""
        trial_id = trial.config["trial_id"]
        self._last[trial_id] = result
        for event in result["events"]:
            self._on_workers(trial_id, result, **event)
        if "ended" in result:
            return
        epoch, classes = result["epoch"], result["classes"]
        self._class_rows[trial_id] += [
            {"trial_id": trial_id, "epoch": epoch, "class": c} | {name: values[c] for name, values in classes.items()}
            for c in range(len(classes["train_count"]))
        ]
        self._ledger.append("epoch", trial_id=trial_id, epoch=epoch, attempt=self._attempts[trial_id], metrics=result["metrics"])

    def on_checkpoint(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, checkpoint: Any, **info: Any) -> None:
        """Tune has stored a checkpoint, or the empty folder of a trial that has not ended with an epoch."""
        path = Path(checkpoint.path)
        if not (path / MANIFEST).is_file():
            return
        place = path.relative_to(self._folder).as_posix() if path.is_relative_to(self._folder) else str(path)
        trial_id = trial.config["trial_id"]
        epoch = self._last[trial_id]["epoch"]
        self._ledger.append("checkpoint", trial_id=trial_id, epoch=epoch, path=place, sha256=file_sha256(path / STATE))

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """The trial has ended by itself or by the scheduler."""
        last = self._last[trial.config["trial_id"]]
        status = trial_status(last)
        early = f"below the cutoff of the scheduler at epoch {last.get('epoch')}" if status == "stopped_early" else None
        self._end(trial.config["trial_id"], status, last.get("reason", early))

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """The trial has failed."""
        # Ray has written the error beside its own log by now; to the storage, where get_error looks, it comes later.
        file = Path(trial.error_file) if trial.error_file else None
        text = file.read_text(encoding="utf-8", errors="replace").strip() if file and file.is_file() else "no reason known"
        self._end(trial.config["trial_id"], "failed", text)

    def end_running(self, status: str, reason: str) -> None:
        """Ends the trials that were suggested and have not ended, whether or not a process had taken them up."""
        for trial_id in sorted(self._open):
            self._end(trial_id, status, reason)

    def _on_workers(self, trial_id: str, result: dict[str, Any], event: str, **fields: Any) -> None:
        """A group of workers has come up or was lost while it served a trial."""
        self._attempts[trial_id] += event == "group_lost"
        self._ledger.append(event, trial_id=trial_id, slot=result["pid"], epoch=result["epoch"], **fields)

    def _follow(self, event: Event) -> None:
        if event["event"] == "suggest":
            self._open.add(event["trial_id"])
        elif event["event"] == "trial_end":
            self._open.discard(event["trial_id"])

    def _end(self, trial_id: str, status: str, reason: str | None) -> None:
        last, rows = self._last.pop(trial_id, {}), self._class_rows.pop(trial_id, [])
        part = self._ledger.write_part(trial_id, rows) if rows else {}
        best = {"best_epoch": last["best_epoch"], "best_value": last["objective"]} if "best_epoch" in last else {}
        self._ledger.append("trial_end", trial_id=trial_id, status=status, stop_reason=reason, **best, **part)
        self.num_ended += status != "interrupted"


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
