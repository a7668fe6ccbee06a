"""The model of a sweep's best trial in MLflow's registry: a version for each exported trial, and the alias `champion`.

A version has the form of MLflow's own `pyfunc` models and needs mlflow, torch and numpy alone. The champion is the best version:
no worse one takes its place. Sweeps with the same `tracking.registered_model` share a champion.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import safe_open

from trainables.model_folder import MODEL

CHAMPION = "champion"
"""The alias of the best version."""
PROGRAM = "model.pt2"
"""The file of an export that runs without this project."""
PLACE = "model"
"""Where a trial's run has its model."""
LOADER = "trainables.tailtune_model"
"""The module that goes along with a version."""
PACKAGES = ("mlflow", "torch", "numpy")
"""What a process needs that loads a version."""


class Merit(NamedTuple):
    """What a version is judged by; kept as tags of the version."""

    sweep: str
    """The key of the sweep."""
    trial_id: str
    split_sha256: str
    """The images and the split of the sweep."""
    metric: str
    value: float
    """Of `metric`: the mean over fresh seeds, or what the trial reached on its own seed, for which the search chose it."""
    seeds: int
    """Fresh seeds that the configuration ran on; 0 when it was not confirmed."""

    def tags(self) -> dict[str, str]:
        """As MLflow keeps it."""
        texts = {name: f"{value:.9g}" if name == "value" else str(value) for name, value in self._asdict().items()}
        return {f"tailtune.{name}": text for name, text in texts.items()}

    def in_words(self) -> str:
        """The value and where it is from."""
        where = f"mean over {self.seeds} fresh seeds" if self.seeds else "not confirmed on fresh seeds"
        return f"{self.metric} {self.value:.4f}, {where}"


def merit_of(tags: Mapping[str, str]) -> Merit | None:
    """What a version is judged by; None for one that no sweep has registered."""
    try:
        sweep, trial_id, split, metric, value, seeds = (tags[f"tailtune.{name}"] for name in Merit._fields)
        return Merit(sweep, trial_id, split, metric, float(value), int(seeds))
    except (KeyError, ValueError):
        return None


def why_not(new: Merit, champion: Merit | None) -> str:
    """Why a version does not take the champion's place; empty when it does.

    What was confirmed on fresh seeds goes before what was not: the search chose a trial for the value on its own seed, which is
    therefore too high. Within a sweep, the sweep has decided already.
    """
    if champion is None:
        return "no sweep has registered the champion, so its value is not known"
    if new.sweep == champion.sweep:
        return ""
    if (new.split_sha256, new.metric) != (champion.split_sha256, champion.metric):
        return "the champion was chosen on other images or by another metric, so the two cannot be compared"
    if champion.seeds and not new.seeds:
        return f"the champion was confirmed on {champion.seeds} fresh seeds, and this version was not"
    if (new.seeds and not champion.seeds) or new.value > champion.value:
        return ""
    return f"the champion is at least as good: {champion.in_words()}"


class Registered(NamedTuple):
    """A version in the registry."""

    name: str
    version: str
    why_not: str
    """Why it is not the champion; empty when it is."""

    @property
    def address(self) -> str:
        """Its page in the web interface, below the server's address."""
        return f"/#/models/{self.name}/versions/{self.version}"


class Registry:
    """A registered model in MLflow. All methods raise what MLflow raises."""

    def __init__(self, client: Any, name: str) -> None:
        """Takes an MlflowClient and the name of the model; asks for nothing yet."""
        self._client, self._name = client, name

    def register(self, merit: Merit, run_id: str, export: Path, send: Callable[[Path], bool]) -> None:
        """Makes a version of an exported model, or brings that of the trial up to date. The best version becomes the champion.

        Args:
            merit: of the version.
            run_id: of the trial's run.
            export: the exported folder.
            send: sends a folder to PLACE in that run; returns whether the server took it.
        """
        found = self._version_of(merit.sweep, merit.trial_id)
        if found is None:
            with tempfile.TemporaryDirectory(prefix="tailtune_model_") as made:
                if not send(write_pyfunc(export, Path(made) / PLACE)):
                    return
            self._make_model()
            source = f"{self._client.get_run(run_id).info.artifact_uri}/{PLACE}"
            found = self._client.create_model_version(self._name, source, run_id, tags=merit.tags(), description=merit.in_words())
        elif merit_of(found.tags) != merit_of(merit.tags()):  # the configuration ran on more seeds since
            for key, value in merit.tags().items():
                self._client.set_model_version_tag(self._name, found.version, key, value)
            self._client.update_model_version(self._name, found.version, description=merit.in_words())
        champion = self._champion()
        if champion is None or (champion.version != found.version and not why_not(merit, merit_of(champion.tags))):
            self._client.set_registered_model_alias(self._name, CHAMPION, found.version)

    def find(self, sweep: str, trial_id: str) -> Registered | None:
        """The version of a trial; None when there is none."""
        found = self._version_of(sweep, trial_id)
        merit = merit_of(found.tags) if found else None
        if found is None or merit is None:
            return None
        champion = self._champion()
        if champion is None:
            reason = "somebody took the alias away"
        elif champion.version == found.version:
            reason = ""
        else:
            reason = why_not(merit, merit_of(champion.tags)) or "somebody gave the alias to another version"
        return Registered(self._name, str(found.version), reason)

    def _version_of(self, sweep: str, trial_id: str) -> Any:
        found = self._client.search_model_versions(f"name = '{self._name}' and tags.`tailtune.sweep` = '{sweep}'")
        return next((one for one in found if one.tags.get("tailtune.trial_id") == trial_id), None)

    def _champion(self) -> Any:
        """The version that has the alias; None without one."""
        aliases = self._client.get_registered_model(self._name).aliases
        return self._client.get_model_version(self._name, aliases[CHAMPION]) if CHAMPION in aliases else None

    def _make_model(self) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(self._name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise


def write_pyfunc(export: Path, out: Path) -> Path:
    """Writes an exported model in the form that `mlflow.pyfunc.load_model` reads; returns `out`.

    Args:
        export: an exported folder with a program.
        out: the new folder.
    """
    import mlflow.pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    loader = find_spec(LOADER)
    assert loader is not None
    with safe_open(export / MODEL, "numpy") as file:
        metadata = file.metadata()
    names, shape = json.loads(metadata["class_names"]), json.loads(metadata["image_shape"])
    images, probabilities = TensorSpec(np.dtype("uint8"), (-1, *shape)), TensorSpec(np.dtype("float32"), (-1, len(names)))
    model = Model(
        signature=ModelSignature(Schema([images]), Schema([probabilities])),
        metadata={"class_names": names, "split_sha256": metadata["split_sha256"], **_framing(metadata)},
    )
    with tempfile.TemporaryDirectory(prefix="tailtune_program_") as data:
        shutil.copy(export / PROGRAM, data)
        mlflow.pyfunc.save_model(
            str(out),
            loader_module=LOADER.rpartition(".")[2],
            data_path=data,
            code_paths=[str(loader.origin)],
            mlflow_model=model,
            # Without the local part of a version, as +cpu, which package indexes do not have.
            pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in PACKAGES],
        )
    return out


def _framing(metadata: dict[str, str]) -> dict[str, Any]:
    """How image files become the model's images, if the weights that training began with expect something of it."""
    return {"framing": json.loads(metadata["framing"])} if "framing" in metadata else {}
