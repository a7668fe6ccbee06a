import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from benchmarks.virtual_folder import write_folder
from orchestrator.config.sweep_config import read_sweep
from orchestrator.ledger.ledger import Ledger
from orchestrator.report.reading import Sweep, class_names, read


def everything(folder: Path) -> Sweep:
    return read(folder, lambda config, rows: [row["trial_id"] for row in rows])


def test_a_sweep_reads_the_same_from_its_ledger_as_from_its_tables(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    ended = everything(folder_of("plain"))
    running = everything(write_folder(tmp_path / "running", read_sweep(folder_of("plain") / "sweep.yaml"), end=None))
    assert (ended.is_over, running.is_over) == (True, False)
    assert running.rows == ended.rows
    for trial_id, curves in ended.curves.items():
        assert all(np.array_equal(curves[name], running.curves[trial_id][name]) for name in curves)
        assert np.array_equal(ended.classes[trial_id].weight, running.classes[trial_id].weight)


def test_tables_of_before_a_resumption_are_not_believed(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folder_of("one_trial"), tmp_path / "resumed")
    (folder / "trials.parquet").write_bytes(b"of before")
    config = everything(folder_of("one_trial")).config.model_dump()
    with Ledger(folder) as ledger:
        ledger.append("sweep_resume", segment=2, config=config, git_commit=None, versions={})  # type: ignore[arg-type]
    assert everything(folder).rows == everything(folder_of("one_trial")).rows


def test_classes_have_the_names_of_the_exported_model(tmp_path: Path) -> None:
    model = tmp_path / "model.safetensors"
    assert class_names(model) == []
    save_file({"w": np.zeros(1, np.float32)}, model, {"class_names": json.dumps(["cat", "<i>dog"])})
    assert class_names(model) == ["cat", "<i>dog"]
    save_file({"w": np.zeros(1, np.float32)}, model)
    assert class_names(model) == []
