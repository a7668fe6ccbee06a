from pathlib import Path

import mlflow
import pytest

from orchestrator.config import SweepConfig, TrackingConfig
from orchestrator.ledger import Ledger
from orchestrator.tracking import Tracker, tracking_uri
from trainables.config import CrossEntropyConfig, TrialConfig


def record(folder: Path, config: SweepConfig, tracker: Tracker) -> None:
    """A short sweep: one trial finished, one diverged, one interrupted, one only suggested."""
    folder.mkdir(parents=True)
    best = folder / "best"
    best.mkdir()
    (best / "card.md").write_text("# card")
    clock = iter(range(1000, 2000))
    with Ledger(folder, clock=lambda: float(next(clock))) as ledger:
        ledger.listen(tracker)
        ledger.append("sweep_start", config=config.model_dump(), split_sha256="abc", git_commit=None)
        for number, status in enumerate(("finished", "diverged", "interrupted", "running")):
            trial = TrialConfig(method=CrossEntropyConfig()).model_dump()
            ledger.append("suggest", trial_id=f"t{number}", variant="search", seed=0, config=trial)
            if status == "running":
                continue
            ledger.append("trial_start", trial_id=f"t{number}", attempt=1)
            for epoch in (1, 2):
                metrics = {"val/acc": 0.5 + 0.1 * epoch, "val/acc_many": float("nan")}
                ledger.append("epoch", trial_id=f"t{number}", epoch=epoch, attempt=1, metrics=metrics)
            reason = None if status == "finished" else "why"
            ledger.append("trial_end", trial_id=f"t{number}", status=status, stop_reason=reason, best_epoch=2, best_value=0.7)
        ledger.append("suggest", trial_id="t4", variant="search", seed=0, config=trial)
        ledger.append(
            "trial_end", trial_id="t4", status="failed", stop_reason="Traceback\n  ...\nValueError: no"
        )  # it never started
        ledger.append("export", trial_id="t0", path=str(best), metrics={"best/val/acc": 0.7, "test/acc": 0.6})
        ledger.append("sweep_end", status="finished")
    tracker.close()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
def test_mlflow_holds_what_the_ledger_says(config: SweepConfig, tmp_path: Path) -> None:
    tracker = Tracker(config.tracking, tmp_path, "demo")
    record(tmp_path / "demo", config, tracker)
    assert tracker.error is None
    client = mlflow.MlflowClient(tracking_uri(config.tracking, tmp_path))
    experiment = client.get_experiment_by_name("tailtune")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert {name: run.info.status for name, run in runs.items()} == {
        "demo": "FINISHED",
        "t0": "FINISHED",
        "t1": "FAILED",
        "t2": "KILLED",
        "t4": "FAILED",
    }
    parent, child = runs["demo"], runs["t0"]
    assert parent.data.metrics == {"best/val/acc": 0.7, "test/acc": 0.6}
    assert parent.data.params["space.method.meta_lr.high"] == "0.1"
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert {
        key: child.data.tags[key]
        for key in ("method", "dataset", "imbalance_factor", "variant", "seed", "split_sha256", "status")
    } == {
        "method": "cross_entropy",
        "dataset": "digits",
        "imbalance_factor": "50",
        "variant": "search",
        "seed": "0",
        "split_sha256": "abc",
        "status": "finished",
    }
    assert runs["t1"].data.tags["stop_reason"] == "why"
    assert runs["t4"].data.tags["stop_reason"] == "ValueError: no"
    assert child.data.params["method.name"] == "cross_entropy"
    history = client.get_metric_history(child.info.run_id, "val/acc")
    assert [(point.step, point.value) for point in history] == [(1, 0.6), (2, 0.7)]
    assert history[0].timestamp == child.info.start_time + 1000  # the ledger's clock, in milliseconds
    assert "val/acc_many" not in child.data.metrics  # an empty band is not a number
    assert child.data.metrics["best/val/acc"] == 0.7
    assert [file.path for file in client.list_artifacts(child.info.run_id)] == ["config.yaml"]
    assert [file.path for file in client.list_artifacts(parent.info.run_id, "best")] == ["best/card.md"]
    assert runs["t0"].info.run_id in tracker.compare_path(["t0", "t1"])
    assert tracker.compare_path(["t0", "t3"]) is None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
def test_a_server_that_is_not_there_costs_a_warning_and_nothing_else(config: SweepConfig, tmp_path: Path) -> None:
    dead = TrackingConfig(uri="http://127.0.0.1:9")
    with pytest.warns(UserWarning, match=r"tracking to http://127.0.0.1:9 ended: .*the sweep goes on"):  # noqa: PT031
        tracker = Tracker(dead, tmp_path, "demo")
        record(tmp_path / "demo", config, tracker)
    assert tracker.error is not None
    assert (tmp_path / "demo" / "ledger.jsonl").read_text().count("\n") == 21
