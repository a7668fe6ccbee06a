"""The registry of MLflow: what a fresh process loads from it, and which version is the champion."""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from exports import export_of
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from orchestrator.config.search_config import FloatParameter
from orchestrator.config.sweep_config import SearchConfig, SweepConfig, TrackingConfig
from orchestrator.ledger.ledger import Ledger
from orchestrator.tracking.mlflow_runs import connect
from orchestrator.tracking.registry import Merit, Registry, merit_of, why_not, write_pyfunc
from orchestrator.tracking.tracker import Tracker
from trainables.config import TrialConfig
from trainables.data.framing import Framing
from trainables.export_program import write_program
from trainables.inference import load_model
from trainables.method_config import CrossEntropyConfig
from trainables.model_folder import MODEL

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(
        "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning", "ignore:.*Any type hint:UserWarning"
    ),
]
SWEEP = SweepConfig(search=SearchConfig(trials=6), space={"optim.lr": FloatParameter(low=0.01, high=1)}).model_dump()
TRIAL = TrialConfig(method=CrossEntropyConfig()).model_dump()
FRESH = """
import json, sys
sys.modules["trainables"] = sys.modules["orchestrator"] = None  # an import of them fails
import mlflow, numpy
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/flowers@champion")
numpy.save("out.npy", model.predict(numpy.load("images.npy")))
json.dump(model.metadata.metadata["class_names"], open("names.json", "w"))
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of an export that the registry needs."""
    folder = tmp_path_factory.mktemp("export")
    export_of(folder, {"epochs": 1, "classifier": {"name": "small_cnn", "widths": [4, 4]}})
    write_program(folder)
    return folder


def follow(folder: Path, tracker: Tracker, exported: Path, confirmed: dict[str, float]) -> None:
    """A sweep of one trial, confirmed on fresh seeds, with its export."""
    runs = {"t0": (0, 0.9), **{f"t{number}": (seed, value) for number, (seed, value) in enumerate(confirmed.items(), 1)}}
    folder.mkdir()
    with Ledger(folder) as ledger:
        ledger.listen(tracker)
        ledger.append("sweep_start", config=SWEEP, split_sha256="abc", git_commit=None, versions={"torch": "2.14"})
        for trial_id, (seed, value) in runs.items():
            role = {"role": "search"} if trial_id == "t0" else {"role": "confirm", "confirms": "t0"}
            ledger.append("suggest", trial_id=trial_id, variant="", seed=int(seed), config=TRIAL, **role)
            ledger.append("trial_start", trial_id=trial_id, attempt=1)
            ledger.append("epoch", trial_id=trial_id, epoch=1, attempt=1, metrics={"val/acc": value})
            ledger.append("trial_end", trial_id=trial_id, status="finished", stop_reason=None, best_epoch=1, best_value=value)
        ledger.append("export", trial_id="t0", path=str(exported), metrics={"best/val/acc": 0.9, "test/acc": 0.6})
        ledger.append("sweep_end", status="finished")
    tracker.close()


def test_a_fresh_process_without_this_project_loads_the_champion_and_predicts_images(
    exported: Path, mlflow_store: Path, tmp_path: Path
) -> None:
    shutil.copy(mlflow_store, tmp_path / "mlflow.db")
    tracker = Tracker(TrackingConfig(registered_model="flowers"), tmp_path, "demo")
    follow(tmp_path / "demo", tracker, exported, {"1": 0.70, "2": 0.72, "3": 0.74})
    assert tracker.error is None
    assert ("model, version 1", "/#/models/flowers/versions/1") in tracker.pages()
    images = np.random.default_rng(0).integers(0, 17, (256, 1, 8, 8), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    subprocess.run([sys.executable, "-c", FRESH, uri], cwd=tmp_path, check=True)
    model = load_model(exported)
    assert np.abs(np.load(tmp_path / "out.npy") - model.module(torch.from_numpy(images)).numpy()).max() <= 1e-5
    assert tuple(json.loads((tmp_path / "names.json").read_text())) == model.class_names
    client = connect(uri)
    champion = client.get_model_version_by_alias("flowers", "champion")
    merit = merit_of(champion.tags)
    assert merit is not None
    assert merit[1:] == ("t0", "abc", "val/acc", pytest.approx(0.72), 3)  # of the fresh seeds alone, not of the trial's own 0.9
    run = client.get_run(champion.run_id)
    assert run.data.tags["trial_id"] == "t0"
    parent = client.get_run(run.data.tags["mlflow.parentRunId"])
    assert (
        "[version 1](#/models/flowers/versions/1) of the model flowers, the champion." in parent.data.tags["mlflow.note.content"]
    )


def test_a_server_that_takes_no_models_costs_a_note(
    exported: Path, mlflow_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Any, name: str) -> None:
        raise MlflowException("you may not register models", PERMISSION_DENIED)

    monkeypatch.setattr(mlflow.MlflowClient, "create_registered_model", refuse)
    shutil.copy(mlflow_store, tmp_path / "mlflow.db")
    notes: list[str] = []
    tracker = Tracker(TrackingConfig(), tmp_path, "demo", notes.append)
    follow(tmp_path / "demo", tracker, exported, {})
    (note,) = notes
    assert "did not take t0 into its registry: you may not register models; the results folder has it" in note
    client = connect(f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("tailtune").experiment_id], "tags.`tailtune.sweep` LIKE '%'")
    assert (run.info.status, run.data.metrics["test/acc"]) == ("FINISHED", 0.6)


class Contest:
    """Sweeps that share a registered model, in a database of MLflow."""

    def __init__(self, folder: Path, export: Path) -> None:
        self.client, self.export = connect(f"sqlite:///{folder}/mlflow.db"), export
        self.experiment = self.client.create_experiment("contest", artifact_location=(folder / "files").as_uri())
        self.registry = Registry(self.client, "flowers")

    def enter(self, merit: Merit) -> str:
        """Registers a version; returns the sweep of the champion."""
        run_id = self.client.create_run(self.experiment).info.run_id

        def send(folder: Path) -> bool:
            self.client.log_artifacts(run_id, str(folder), "model")
            return True

        self.registry.register(merit, run_id, self.export, send)
        return str(self.client.get_model_version_by_alias("flowers", "champion").tags["tailtune.sweep"])

    def why_not(self, merit: Merit) -> str:
        """What the registry says of a version."""
        found = self.registry.find(merit.sweep, merit.trial_id)
        assert found is not None
        return found.why_not


def merit(sweep: str, value: float, seeds: int = 5, split: str = "abc", trial_id: str = "t0") -> Merit:
    return Merit(sweep, trial_id, split, "val/acc", value, seeds)


@pytest.fixture
def contest(exported: Path, mlflow_store: Path, tmp_path: Path) -> Contest:
    shutil.copy(mlflow_store, tmp_path / "mlflow.db")
    return Contest(tmp_path, exported)


def test_a_worse_version_never_takes_the_place_of_a_confirmed_champion(contest: Contest) -> None:
    assert contest.enter(merit("first", 0.70)) == "first"
    assert contest.enter(worse := merit("second", 0.69)) == "first"
    assert contest.why_not(worse) == "the champion is at least as good: val/acc 0.7000, mean over 5 fresh seeds"
    assert contest.enter(equal := merit("third", 0.70)) == "first"
    assert contest.why_not(equal).startswith("the champion is at least as good")
    assert contest.enter(lucky := merit("fourth", 0.95, seeds=0)) == "first"
    assert contest.why_not(lucky) == "the champion was confirmed on 5 fresh seeds, and this version was not"
    assert contest.enter(other := merit("fifth", 0.95, split="xyz")) == "first"
    assert "cannot be compared" in contest.why_not(other)
    assert contest.enter(better := merit("sixth", 0.71)) == "sixth"
    assert contest.why_not(better) == ""
    assert contest.why_not(merit("first", 0.70)).startswith("the champion is at least as good: val/acc 0.7100")
    assert len(contest.client.search_model_versions("name = 'flowers'")) == 6


def test_a_sweep_that_goes_on_has_decided_itself_and_a_trial_has_one_version(contest: Contest) -> None:
    assert contest.enter(merit("first", 0.80, seeds=0)) == "first"
    assert contest.enter(merit("first", 0.72, seeds=3)) == "first"
    (version,) = contest.client.search_model_versions("name = 'flowers'")
    assert (version.tags["tailtune.value"], version.tags["tailtune.seeds"]) == ("0.72", "3")
    assert version.description == "val/acc 0.7200, mean over 3 fresh seeds"
    contest.enter(merit("first", 0.71, trial_id="t9"))  # more seeds spoke for another trial
    assert contest.client.get_model_version_by_alias("flowers", "champion").tags["tailtune.trial_id"] == "t9"


def test_the_champion_that_a_person_chose_stays(contest: Contest) -> None:
    contest.enter(merit("first", 0.70))
    run = contest.client.create_run(contest.experiment)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "MLmodel").write_text("{}")
        contest.client.log_artifacts(run.info.run_id, folder, "own")
    own = contest.client.create_model_version("flowers", f"{run.info.artifact_uri}/own", run.info.run_id)
    contest.client.set_registered_model_alias("flowers", "champion", own.version)
    contest.registry.register(merit("second", 0.99), run.info.run_id, contest.export, lambda folder: True)
    assert contest.client.get_registered_model("flowers").aliases["champion"] == own.version
    assert contest.why_not(merit("second", 0.99)) == "no sweep has registered the champion, so its value is not known"
    contest.client.delete_registered_model_alias("flowers", "champion")
    assert contest.why_not(merit("first", 0.70)) == "somebody took the alias away"


@pytest.mark.parametrize(
    ("new", "champion", "takes_over"),
    [
        (merit("b", 0.6, seeds=3), merit("a", 0.9, seeds=0), True),  # the 0.9 is of the seed that the search chose it for
        (merit("b", 0.9, seeds=0), merit("a", 0.6, seeds=0), True),
        (merit("b", 0.6, seeds=0), merit("a", 0.9, seeds=0), False),
        (merit("b", 0.9), merit("a", 0.6)._replace(metric="val/acc_few"), False),
    ],
)
def test_what_was_confirmed_goes_before_what_was_not(new: Merit, champion: Merit, takes_over: bool) -> None:
    assert (why_not(new, champion) == "") == takes_over
    assert why_not(new, None) != ""


def test_the_model_says_which_part_of_an_image_its_weights_expect(exported: Path, tmp_path: Path) -> None:
    framing, other = Framing(0.9, "bicubic")._asdict(), shutil.copytree(exported, tmp_path / "other")
    with safe_open(exported / MODEL, "pt") as file:
        metadata = file.metadata() | {"framing": json.dumps(framing)}
    save_file(load_file(exported / MODEL), other / MODEL, metadata)
    said, before = (
        Model.load(str(write_pyfunc(folder, tmp_path / folder.name / "mlflow"))).metadata for folder in (other, exported)
    )
    assert said["framing"] == framing | {"colour": list(framing["colour"])}
    assert "framing" not in before
