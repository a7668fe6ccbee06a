import errno
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from orchestrator.config.sweep_config import SweepConfig, read_sweep
from orchestrator.export import main
from orchestrator.ledger.ledger import Ledger, read_ledger
from orchestrator.outcome.best import export_best, lineage_of
from orchestrator.outcome.bundle import check_bundle
from orchestrator.outcome.choice import NothingToExport
from trainables.checkpoint import STATE, DamagedCheckpoint, pack, unpack, write_checkpoint
from trainables.config_file import dump_yaml
from trainables.data import build_data
from trainables.export_program import Checked, ProgramRefused, has_onnx
from trainables.inference import load_model
from trainables.method_config import CrossEntropyConfig
from trainables.trial_run import TrialRun


@pytest.fixture(scope="module")
def run() -> TrialRun:
    """An epoch of training, whose model stands for those of all trials."""
    run = TrialRun()
    config = read_sweep(Path(__file__).parents[3] / "search_spaces" / "digits_lt.yaml").trial
    run.start(config.model_copy(update={"method": CrossEntropyConfig(), "epochs": 2}))
    run.run_epoch()
    return run


@pytest.fixture(autouse=True)
def without_programs(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Leaves the programs to the tests that are about them: each takes half a second."""
    if not request.node.get_closest_marker("slow"):
        monkeypatch.setattr("trainables.export_program.write_program", lambda folder: Checked(256, 0.0))


class Sweep:
    """A sweep as its folder has it, with written-out accuracies."""

    def __init__(self, folder: Path, config: SweepConfig, run: TrialRun) -> None:
        self.folder, self.run = folder, run
        (folder / "sweep.yaml").write_text(dump_yaml(config.model_dump()))
        data = build_data(config.trial.data, config.trial.seed)
        self.start = {"config": config.model_dump(), "git_commit": "first", "versions": {}}
        facts = {"split_sha256": data.sha256, "class_counts": data.class_counts.tolist()}
        with Ledger(folder) as ledger:
            ledger.append("sweep_start", **self.start, **facts)

    def config_with_lr(self, lr: float) -> dict[str, Any]:
        config = self.run.config
        return config.model_copy(update={"optim": config.optim.model_copy(update={"lr": lr})}).model_dump()

    def trial(
        self,
        trial_id: str,
        *accuracies: float,
        status: str = "finished",
        variant: str = "",
        more: dict[str, float] | None = None,
        **fields: Any,
    ) -> None:
        config = self.run.config.model_copy(update={"seed": fields.get("seed", 0)})
        with Ledger(self.folder) as ledger:
            role = "reference" if variant else "search"
            given = {"seed": 0, "config": config.model_dump(), "role": role} | fields
            ledger.append("suggest", trial_id=trial_id, variant=variant, **given)
            ledger.append("trial_start", trial_id=trial_id, attempt=1)
            for epoch, accuracy in enumerate(accuracies, 1):
                state = self.run.state()
                best = accuracies.index(max(accuracies[:epoch])) + 1
                packed = pack(state | {"best": state["best"] | {"epoch": best}})
                place = f"checkpoints/{trial_id}/{epoch:04d}-1"
                digest = write_checkpoint(self.folder / place, packed)
                ledger.append("checkpoint", trial_id=trial_id, epoch=epoch, path=place, sha256=digest)
                ledger.append("epoch", trial_id=trial_id, epoch=epoch, attempt=1, metrics={"val/acc": accuracy} | (more or {}))
            ledger.append("trial_end", trial_id=trial_id, status=status, stop_reason=None)

    def flip(self, trial_id: str, epoch: int) -> None:
        path = self.folder / f"checkpoints/{trial_id}/{epoch:04d}-1" / STATE
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    def export(self, out: Path | None = None) -> dict[str, Any]:
        """What metrics.json says."""
        with Ledger(self.folder) as ledger:
            metrics: dict[str, Any] = json.loads((export_best(self.folder, ledger, out) / "metrics.json").read_text())
        return metrics

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in read_ledger(self.folder) if event["event"] == kind]


@pytest.fixture
def sweep(tmp_path: Path, config: SweepConfig, run: TrialRun) -> Sweep:
    return Sweep(tmp_path, config, run)


def test_exported_is_the_best_epoch_of_the_best_finished_trial_beside_the_references(sweep: Sweep) -> None:
    sweep.trial("t0000", 0.5, 0.6, variant="plain")
    sweep.trial("t0001", 0.9, status="stopped_early")
    sweep.trial("t0002", 0.8, 0.7)
    sweep.trial("t0003", 0.1, status="failed", variant="broken")
    metrics = sweep.export()
    assert (metrics["trial_id"], metrics["selected_by"]) == ("t0002", "val/acc")
    assert (metrics["best"], metrics["last"]) == ({"epoch": 1, "val/acc": 0.8}, {"val/acc": 0.7})
    assert {name: (row["status"], row["best"]["val/acc"]) for name, row in metrics["references"].items()} == {
        "plain": ("finished", 0.6),
        "broken": ("failed", 0.1),
    }
    weights = load_file(sweep.folder / "best" / "model.safetensors")
    assert all(torch.equal(weights[name], tensor) for name, tensor in sweep.run.state()["best"]["phi"].items())
    card = (sweep.folder / "best" / "card.md").read_text()
    assert "| plain | 0.6000 | 0.6000 | |" in card
    assert "| broken | failed | | |" in card


def test_the_provenance_holds_what_the_export_was_made_of(sweep: Sweep) -> None:
    sweep.trial("t0000", 0.5, 0.6)
    sweep.trial("t0001", 0.7, 0.8)
    with Ledger(sweep.folder) as ledger:
        for trial_id in ("t0000", "t0001"):
            ledger.append("group_lost", trial_id=trial_id, epoch=1, reason="gone")
        ledger.append("sweep_resume", **sweep.start | {"git_commit": "second"})
    sweep.export()
    found = json.loads((sweep.folder / "best" / "provenance.json").read_text())
    assert (found["trial_id"], found["git_commit"], found["resumed"], found["workers_lost"]) == ("t0001", "second", 1, 1)
    assert found["checkpoint_sha256"] == sweep.of("checkpoint")[-1]["sha256"]
    for name, digest in found["files"].items():
        assert hashlib.sha256((sweep.folder / "best" / name).read_bytes()).hexdigest() == digest
    assert set(found["files"]) == {path.name for path in (sweep.folder / "best").iterdir()} - {"provenance.json"}


def test_the_test_set_is_read_once_however_often_a_model_is_exported(sweep: Sweep, tmp_path: Path) -> None:
    sweep.trial("t0000", 0.5)
    assert sweep.export() == sweep.export(tmp_path / "again")
    (reading,) = sweep.of("test_read")
    assert json.loads((tmp_path / "again" / "metrics.json").read_text())["test"] == reading["metrics"]
    assert "was read once, for this model alone" in (tmp_path / "again" / "card.md").read_text()
    sweep.trial("t0001", 0.6)  # the sweep went on, and another one is the best now
    sweep.export(tmp_path / "another")
    assert [event["trial_id"] for event in sweep.of("test_read")] == ["t0000", "t0001"]
    assert "was read 2 times in this sweep" in (tmp_path / "another" / "card.md").read_text()


def test_what_lies_in_the_place_of_an_export_stays(sweep: Sweep) -> None:
    sweep.trial("t0000", 0.5)
    (sweep.folder / "best").mkdir()
    with pytest.raises(FileExistsError, match="exists already; nothing was changed; choose another --out"):
        sweep.export()
    assert (list((sweep.folder / "best").iterdir()), sweep.of("test_read")) == ([], [])


def test_what_an_export_that_was_cut_off_left_is_no_part_of_the_next(sweep: Sweep) -> None:
    sweep.trial("t0000", 0.5)
    (sweep.folder / "best.partial").mkdir()
    (sweep.folder / "best.partial" / "half").touch()
    sweep.export()
    assert not (sweep.folder / "best" / "half").exists()
    assert not (sweep.folder / "best.partial").exists()


def test_a_folder_of_somebody_else_is_never_removed(sweep: Sweep, tmp_path: Path) -> None:
    sweep.trial("t0000", 0.5)
    (tmp_path / "elsewhere" / "mine.partial").mkdir(parents=True)
    with (
        Ledger(sweep.folder) as ledger,
        pytest.raises(FileExistsError, match=r"mine.partial exists already, .* remove it, or choose another --out"),
    ):
        export_best(sweep.folder, ledger, tmp_path / "elsewhere" / "mine")
    assert (tmp_path / "elsewhere" / "mine.partial").is_dir()


def listing(folder: Path, best: bytes | None, results: Path, trial_id: str) -> dict[str, Any]:
    assert (folder / "model.safetensors").is_file()
    (folder / "suspects.csv").write_text("rank,image\n")
    state = unpack(best or b"")
    return {"epoch": state["epoch"], "theta": list(state["theta"]), "results": results.name, "trial_id": trial_id}


def test_an_export_lists_suspicious_labels_with_theta_of_the_best_epoch_and_has_their_digest(sweep: Sweep) -> None:
    sweep.trial("t0000", 0.5, 0.4)
    with Ledger(sweep.folder) as ledger:
        export_best(sweep.folder, ledger, list_suspects=listing)
    found = json.loads((sweep.folder / "best" / "provenance.json").read_text())
    assert found["suspects"] == {"epoch": 1, "theta": [], "results": sweep.folder.name, "trial_id": "t0000"}
    assert found["files"]["suspects.csv"] == hashlib.sha256(b"rank,image\n").hexdigest()


def test_an_export_is_complete_without_the_list_where_that_fails(sweep: Sweep) -> None:
    def failing(folder: Path, *rest: Any) -> dict[str, Any]:
        (folder / "suspects.csv").write_text("half a")
        raise ValueError("an image is\ngone")

    sweep.trial("t0000", 0.5)
    notes: list[str] = []
    with Ledger(sweep.folder) as ledger:
        out = export_best(sweep.folder, ledger, note=notes.append, list_suspects=failing)
    assert notes == ["the list of suspicious labels was not written: an image is gone"]
    assert not (out / "suspects.csv").exists()
    check_bundle(out)


def test_an_export_waits_as_a_whole_where_the_disk_is_too_full_for_the_list(sweep: Sweep) -> None:
    def full(*_: Any) -> dict[str, Any]:
        raise OSError(errno.ENOSPC, "no space left")

    sweep.trial("t0000", 0.5)
    with Ledger(sweep.folder) as ledger, pytest.raises(OSError, match="no space left"):
        export_best(sweep.folder, ledger, list_suspects=full)
    assert not (sweep.folder / "best").exists()
    assert not (sweep.folder / "best.partial").exists()


def test_where_the_last_state_is_damaged_an_earlier_one_with_the_same_best_epoch_will_do(sweep: Sweep) -> None:
    sweep.trial("t0000", 0.8, 0.7)
    sweep.flip("t0000", 2)
    assert sweep.export()["best"]["epoch"] == 1


def test_a_state_that_is_whole_but_not_what_the_ledger_holds_is_passed_over(sweep: Sweep) -> None:
    sweep.trial("t0000", 0.7, 0.8)
    state = sweep.run.state()
    write_checkpoint(sweep.folder / "checkpoints/t0000/0002-1", pack(state | {"best": state["best"] | {"epoch": 2}, "x": 1}))
    with pytest.raises(DamagedCheckpoint, match="is older than its best epoch, 2"):
        sweep.export()


@pytest.mark.parametrize(("flipped", "message"), [([2], "is older than its best epoch, 2"), ([1, 2], "is not what was written")])
def test_without_an_intact_state_of_the_best_epoch_nothing_is_exported(sweep: Sweep, flipped: list[int], message: str) -> None:
    sweep.trial("t0000", 0.7, 0.8)
    for epoch in flipped:
        sweep.flip("t0000", epoch)
    with pytest.raises(DamagedCheckpoint, match=message):
        sweep.export()
    assert not (sweep.folder / "best").exists()
    assert sweep.of("test_read") == sweep.of("export") == []
    assert main([str(sweep.folder)]) == 1


def test_of_a_confirmed_winner_all_seeds_are_tested_and_those_of_no_other(sweep: Sweep) -> None:
    sweep.trial("t0000", 0.9)
    sweep.trial("t0001", 0.8)
    confirming = [("t0000", 1, 0.6), ("t0001", 1, 0.7), ("t0000", 2, 0.62), ("t0001", 2, 0.72)]
    for number, (confirms, seed, accuracy) in enumerate(confirming, 2):
        sweep.trial(f"t{number:04d}", accuracy, role="confirm", variant="", confirms=confirms, seed=seed)
    metrics = sweep.export()
    assert (metrics["trial_id"], metrics["configuration_of"], metrics["references"]) == ("t0005", "t0001", {})
    assert sorted(event["trial_id"] for event in sweep.of("test_read")) == ["t0003", "t0005"]
    assert metrics["test_over_seeds"]["num_seeds"] == 2
    assert metrics["test_over_seeds"]["test/acc"] == [
        event["metrics"]["test/acc"] for event in sorted(sweep.of("test_read"), key=lambda event: event["trial_id"])
    ]
    assert not list((sweep.folder / "best").glob("of_another_seed*"))


def test_the_lineage_of_an_offspring_goes_back_to_the_first_trial() -> None:
    parents = [("t0", None, None), ("t1", "t0", 2), ("t2", "t1", 4)]
    rows = [{"trial_id": trial_id, "parent_trial": parent, "parent_epoch": epoch} for trial_id, parent, epoch in parents]
    assert lineage_of(rows[2], rows) == ["t1 at epoch 4", "t0 at epoch 2"]
    assert lineage_of(rows[0], rows) == []


def test_where_no_trial_has_finished_there_is_nothing_to_export(
    sweep: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep.trial("t0000", 0.9, status="stopped_early")
    with pytest.raises(NothingToExport):
        sweep.export()
    assert main([str(sweep.folder)]) == 1
    assert main([str(tmp_path / "nowhere")]) == 2
    assert "holds no sweep" in capsys.readouterr().err


def test_of_a_configuration_whose_first_run_has_no_state_any_more_another_run_is_exported(sweep: Sweep) -> None:
    sweep.trial("t0000", 0.5, 0.6)
    sweep.trial("t0001", 0.7, 0.8, seed=1)
    sweep.trial("t0002", 0.4, 0.5, variant="plain")
    assert sweep.export()["trial_id"] == "t0000"  # the first run, not the luckiest
    shutil.rmtree(sweep.folder / "checkpoints" / "t0000")
    shutil.rmtree(sweep.folder / "best")
    assert sweep.export()["trial_id"] == "t0001"


def exported(sweep: Sweep, *arguments: str) -> int:
    return main([str(sweep.folder), *arguments])


def test_the_first_of_the_ranking_are_exported_and_the_test_set_is_read_for_the_best_alone(
    sweep: Sweep, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, accuracy in enumerate((0.5, 0.8, 0.7, 0.6)):
        sweep.trial(f"t{number:04d}", accuracy, config=sweep.config_with_lr(0.01 * (number + 1)))
    assert exported(sweep, "--top", "3") == 0
    found = [json.loads((sweep.folder / f"best_{rank}" / "metrics.json").read_text()) for rank in (1, 2, 3)]
    assert [metrics["trial_id"] for metrics in found] == ["t0001", "t0002", "t0003"]
    assert [metrics["test"] is None for metrics in found] == [False, True, True]
    assert [event["trial_id"] for event in sweep.of("test_read")] == ["t0001"]
    assert [event["trial_id"] for event in sweep.of("export")] == ["t0001"]
    assert [event["trial_id"] for event in sweep.of("export_other")] == ["t0002", "t0003"]
    assert "the test set was not read for t0002; --read-test reads it" in capsys.readouterr().err
    card = (sweep.folder / "best_2" / "card.md").read_text()
    assert "number 2 of 4 by val/acc" in card
    assert "The sealed test set was not read for this model" in card
    assert "model-index" not in card


def test_with_read_test_each_reading_is_an_event(sweep: Sweep, tmp_path: Path) -> None:
    sweep.trial("t0000", 0.5, config=sweep.config_with_lr(0.1))
    sweep.trial("t0001", 0.6, config=sweep.config_with_lr(0.2))
    assert exported(sweep, "--top", "2", "--read-test", "--out", str(tmp_path / "out")) == 0
    assert [event["trial_id"] for event in sweep.of("test_read")] == ["t0001", "t0000"]
    assert "was read 2 times in this sweep" in (tmp_path / "out" / "2" / "card.md").read_text()
    assert exported(sweep, "--trial", "t0000") == 0  # the value is known, and is repeated
    assert len(sweep.of("test_read")) == 2
    again = [json.loads((path / "metrics.json").read_text()) for path in (sweep.folder / "export_t0000", tmp_path / "out" / "2")]
    assert again[0] == again[1]


def test_all_of_the_ranking_or_none_is_exported(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    sweep.trial("t0000", 0.5, config=sweep.config_with_lr(0.1))
    sweep.trial("t0001", 0.6, config=sweep.config_with_lr(0.2))
    assert exported(sweep, "--top", "3") == 2
    assert "--top is 3; allowed: 1 to 2" in capsys.readouterr().err
    (sweep.folder / "best_2").mkdir()
    assert exported(sweep, "--top", "2") == 2
    assert "best_2 exists already; nothing was changed" in capsys.readouterr().err
    (sweep.folder / "best_2").rmdir()
    sweep.flip("t0000", 1)
    assert exported(sweep, "--top", "2") == 1
    assert not list(sweep.folder.glob("best*"))
    assert sweep.of("export") == []


def test_a_certain_trial_is_exported_also_one_that_was_stopped_early(sweep: Sweep) -> None:
    sweep.trial("t0000", 0.9)
    sweep.trial("t0001", 0.5, 0.4, status="stopped_early")
    assert exported(sweep, "--trial", "t0001") == 0
    assert json.loads((sweep.folder / "export_t0001" / "metrics.json").read_text())["trial_id"] == "t0001"
    assert "Somebody asked for this trial, which ended as stopped early" in (sweep.folder / "export_t0001/card.md").read_text()
    assert sweep.of("test_read") == sweep.of("export") == []


def test_for_a_trial_without_a_checkpoint_the_command_that_makes_one_is_named(
    sweep: Sweep, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep.trial("t0000", 0.9)
    shutil.rmtree(sweep.folder / "checkpoints" / "t0000")
    assert exported(sweep, "--trial", "t0000") == 1
    assert f"python -m orchestrator.rerun {sweep.folder} t0000 --export" in capsys.readouterr().err
    assert exported(sweep) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--trial", "t0009"], "'t0009' is no trial of"),
        (["--trial", "t0001"], "--trial is t0001, which has no result; allowed: a trial with an accuracy"),
        (["--top", "0"], "--top is 0; allowed: 1 to 1"),
        (["--pareto"], "--pareto, but search.objectives is None; allowed: --top K"),
        (["--out", "{folder}/sweep.yaml/x/y"], "/x/y cannot be a folder, because {folder}/sweep.yaml is a file"),
    ],
)
def test_a_wrong_choice_changes_nothing(
    sweep: Sweep, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    sweep.trial("t0000", 0.9)
    sweep.trial("t0001", status="failed")
    before = len(read_ledger(sweep.folder))
    assert exported(sweep, *(argument.format(folder=sweep.folder) for argument in arguments)) == 2
    assert message.format(folder=sweep.folder) in capsys.readouterr().err
    assert len(read_ledger(sweep.folder)) == before


@pytest.mark.parametrize(
    ("fault", "code", "message"),
    [
        (ValueError("data.root: the images are gone"), 1, "data.root: the images are gone"),
        (OSError(28, "No space left on device", "x"), 1, "No space left on device"),
        (KeyboardInterrupt(), 130, "interrupted; nothing was exported"),
    ],
)
def test_an_export_that_cannot_be_finished_leaves_nothing_and_says_why(
    sweep: Sweep,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    fault: BaseException,
    code: int,
    message: str,
) -> None:
    def fail(*_: object) -> None:
        raise fault

    sweep.trial("t0000", 0.9)
    before = {path: path.read_bytes() for path in sweep.folder.rglob("*") if path.is_file()}
    monkeypatch.setattr("trainables.data.build_data", fail)
    assert exported(sweep, "--json") == code
    out, err = capsys.readouterr()
    answer = json.loads(out)
    assert (answer["exit_code"], answer["exported"]) == (code, [])
    assert message in answer["error"]
    assert message in err
    assert {path: path.read_bytes() for path in sweep.folder.rglob("*") if path.is_file()} == before


def test_with_several_objectives_the_pareto_front_is_exported(
    tmp_path: Path, config: SweepConfig, run: TrialRun, capsys: pytest.CaptureFixture[str]
) -> None:
    search = config.search.model_copy(update={"sampler": "nsga2", "objectives": ["val/acc", "val/acc_few"]})
    sweep = Sweep(tmp_path, config.model_copy(update={"search": search}), run)
    for number, (accuracy, few) in enumerate(((0.9, 0.1), (0.8, 0.5), (0.7, 0.4))):
        sweep.trial(f"t{number:04d}", accuracy, more={"val/acc_few": few})
    assert exported(sweep, "--pareto", "--json") == 0
    assert json.loads(capsys.readouterr().out)["exported"] == [str(tmp_path / f"pareto_t000{number}") for number in (0, 1)]
    assert sorted(path.name for path in tmp_path.glob("pareto_*")) == ["pareto_t0000", "pareto_t0001"]
    assert "It is on the Pareto front of val/acc, val/acc_few" in (tmp_path / "pareto_t0001" / "card.md").read_text()
    assert sweep.of("test_read") == []


def test_what_the_program_differed_in_from_its_commit_goes_with_the_export(sweep: Sweep) -> None:
    sweep.trial("t0000", 0.5)
    (sweep.folder / "changes-0123456789ab.diff").write_text("+ a line")
    sweep.export()
    assert (sweep.folder / "best" / "changes-0123456789ab.diff").read_text() == "+ a line"
    assert "changes-0123456789ab.diff" in json.loads((sweep.folder / "best" / "provenance.json").read_text())["files"]


def test_a_model_that_has_no_program_is_exported_without_one(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(folder: Path) -> Checked:
        raise ProgramRefused("model.pt2 is left out: it is far away")

    monkeypatch.setattr("trainables.export_program.write_program", refused)
    sweep.trial("t0000", 0.5)
    assert exported(sweep) == 0
    assert "note: model.pt2 is left out: it is far away" in capsys.readouterr().err
    assert "model.pt2 is left out: it is far away." in (sweep.folder / "best" / "card.md").read_text()
    found = json.loads((sweep.folder / "best" / "provenance.json").read_text())
    assert found["programs"] == {"model.pt2": {"left_out": "model.pt2 is left out: it is far away"}}


@pytest.mark.slow
def test_the_exported_folder_is_a_model_that_can_be_used(sweep: Sweep) -> None:
    sweep.trial("t0000", 0.5)
    assert exported(sweep, *(["--onnx"] if has_onnx() else [])) == 0
    best = sweep.folder / "best"
    model = load_model(best)
    assert json.loads((best / "classes.json").read_text()) == list(model.class_names)
    data = sweep.run.loaded.data
    images = torch.from_numpy(data.source.images[data.val.ids])
    assert torch.allclose(torch.export.load(best / "model.pt2").module()(images), model.module(images), rtol=0, atol=1e-5)
    provenance = json.loads((best / "provenance.json").read_text())
    assert set(provenance["programs"]) == {name for name in ("model.pt2", "model.onnx") if (best / name).is_file()}
    assert all(found["max_difference"] <= 1e-5 for found in provenance["programs"].values())


def test_without_its_packages_no_file_for_onnx_is_promised(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep.trial("t0000", 0.5)
    monkeypatch.setattr("trainables.export_program.find_spec", lambda name: None)
    assert exported(sweep, "--onnx") == 2
    assert "--onnx needs the packages onnx, onnxscript, onnxruntime" in capsys.readouterr().err
    assert not (sweep.folder / "best").exists()
