import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter

from benchmarks import methods
from benchmarks.methods import Chosen, Result, best_of_methods, endings, flat, lines_of, markdown, read_sweep_results
from orchestrator.ledger.ledger import Ledger
from trainables.config import TrialConfig
from trainables.config_file import merge
from trainables.data_config import GeneratedConfig
from trainables.method_config import METHOD_SETTINGS, MetaSettings, MethodConfig
from trainables.settings import Settings, flatten
from trainables.stage_config import STAGE_SETTINGS, TrainedHeadSettings

PAGE = Path(__file__).parents[2] / "docs" / "methods.md"


def row(trial_id: str, method: str, val: float, role: str = "search", **fields: Any) -> dict[str, Any]:
    settings = flatten(merge(TrialConfig, TrialConfig().model_dump(), {"method": {"name": method}}))
    config = {f"config/{key}": value for key, value in settings.items()}
    found = {"trial_id": trial_id, "role": role, "variant": "", "status": "finished", "seed": 0, "confirms": None}
    return found | config | {"best/val/acc": val} | fields


def test_each_method_has_its_best_finished_configuration_of_the_search() -> None:
    rows = [
        row("t0", "cross_entropy", 0.5, role="reference", variant="plain"),
        row("t1", "focal", 0.6, **{"config/optim.lr": 0.1}),
        row("t2", "focal", 0.7, **{"config/optim.lr": 0.2}),
        row("t3", "focal", 0.9, status="stopped_early"),
        row("t4", "difficulty_net", 0.4, variant="difficulty_sample"),
        row("t5", "difficulty_net", 0.8, variant="difficulty_net"),
        row("t6", "focal", 0.9, role="confirm", confirms="t1", seed=1, **{"config/seed": 1}),
    ]
    found = {method: runs[0]["trial_id"] for method, runs in best_of_methods(rows).items()}
    assert found == {"plain": "t0", "focal": "t2", "difficulty_sample": "t4", "difficulty_net": "t5"}


CHOSEN = {name: Chosen(TrialConfig(), 0.9) for name in ("cross_entropy", "focal", "mes")}
FOUND = {
    "cross_entropy": {5: Result(0.5, 0.50), 6: Result(0.7, 0.60), 7: Result(0.6, 0.70)},
    "focal": {7: Result(0.6, 0.73), 5: Result(0.6, 0.51), 6: Result(0.6, 0.62)},  # in the order in which they ended
    "mes": {5: Result(0.5, 0.5), 6: Result(math.nan, math.nan, "Diverged: step 3"), 7: Result(0.5, 0.5)},
}


def test_differences_are_paired_by_seed_and_the_best_is_first() -> None:
    focal, plain = lines_of(CHOSEN, FOUND)
    assert (focal.method, plain.method) == ("focal", "cross_entropy")
    assert (plain.val, plain.test, plain.test_sd) == pytest.approx((0.6, 0.6, 0.1))
    assert focal.difference == pytest.approx(0.02)  # 0.01, 0.02 and 0.03
    assert focal.difference_se == pytest.approx(0.01 / 3**0.5)
    assert (plain.difference, plain.difference_se) == (0, 0)
    without = lines_of(CHOSEN, {"focal": FOUND["focal"]})
    assert [line.difference for line in without] == [None]
    assert "focal_minus_cross_entropy_test_mean" not in flat(without, [5, 6, 7])


def test_a_method_that_did_not_come_to_its_end_is_named_and_has_no_line() -> None:
    assert [*endings(FOUND)] == ["mes has no line: with seed 6 the training ended early: Diverged: step 3"]
    assert "mes" not in {line.method for line in lines_of(CHOSEN, FOUND)}


def test_the_rows_are_those_of_the_page() -> None:
    assert markdown(lines_of(CHOSEN, FOUND)).splitlines() == [
        "| method | val of the search | val | test | sd | minus cross-entropy | se |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| `focal` | 0.900 | 0.600 | 0.620 | 0.110 | +0.020 | 0.006 |",
        "| `cross_entropy` | 0.900 | 0.600 | 0.600 | 0.100 | | |",
    ]


def record(folder: Path) -> None:
    """A sweep with two methods, whose trials had the seeds 0 and 3."""
    data = GeneratedConfig(imbalance_factor=2, n_max=8, meta_per_class=2, val_per_class=3, test_per_class=3)
    tree = TrialConfig(epochs=1, data=data).model_dump()
    with Ledger(folder, clock=lambda: 0.0) as ledger:
        ledger.append("sweep_start")
        for trial_id, method, seed in (("t0000", "cross_entropy", 0), ("t0001", "difficulty_net", 0), ("t0002", "focal", 3)):
            config = merge(TrialConfig, tree, {"method": {"name": method}, "seed": seed})
            ledger.append("suggest", trial_id=trial_id, role="search", variant="", seed=seed, config=config)
            ledger.append("trial_start", trial_id=trial_id, attempt=1)
            ledger.append("epoch", trial_id=trial_id, epoch=1, attempt=1, metrics={"val/acc": 0.5})
            ledger.append("trial_end", trial_id=trial_id, status="finished", stop_reason=None)


def test_the_seeds_are_those_that_no_trial_has_had(tmp_path: Path) -> None:
    record(tmp_path)
    chosen, seeds = read_sweep_results(tmp_path, num_seeds=2)
    assert seeds == [4, 5]
    assert {name: (one.config.method.name, one.search_val) for name, one in chosen.items()} == {
        name: (name, 0.5) for name in ("cross_entropy", "difficulty_net", "focal")
    }


def test_a_folder_without_a_sweep_is_an_error_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert methods.main([str(tmp_path)]) == 2
    assert "holds no sweep" in capsys.readouterr().err.strip().splitlines()[0]


def test_a_sweep_without_a_finished_trial_is_refused(tmp_path: Path) -> None:
    with Ledger(tmp_path, clock=lambda: 0.0) as ledger:
        ledger.append("sweep_start")
    with pytest.raises(ValueError, match="no trial has finished"):
        read_sweep_results(tmp_path, num_seeds=2)


@pytest.mark.slow
def test_a_sweep_is_trained_again_and_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(tmp_path)
    assert methods.main([str(tmp_path), "--seeds", "2", "--json"]) == 0
    output = capsys.readouterr()
    assert len(output.err.splitlines()) == 6
    found = json.loads(output.out)
    assert (found["num_seeds"], found["first_seed"]) == (2, 4)
    assert 0 <= found["focal_test_mean"] <= 1
    difference = found["difficulty_net_test_mean"] - found["cross_entropy_test_mean"]
    assert found["difficulty_net_minus_cross_entropy_test_mean"] == pytest.approx(difference)


def words(value: Any) -> str:
    """A default as the page writes it."""
    if isinstance(value, Settings):
        return str(value.model_dump()["name"])
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


OURS: list[tuple[str, type[Settings], type[Settings]]]
OURS = [(name, model, MetaSettings) for name, model in METHOD_SETTINGS.items() if model.__module__.startswith("trainables.")]
OURS += [(name, model, TrainedHeadSettings) for name, model in STAGE_SETTINGS.items()]


@pytest.mark.parametrize(("name", "model", "shared"), OURS)
def test_the_page_lists_every_method_and_stage_with_its_own_settings(
    name: str, model: type[Settings], shared: type[Settings]
) -> None:
    found = re.findall(rf"^\| `{name}` \|.*\|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert found, "docs/methods.md has no row for it"
    for field, info in model.model_fields.items():
        known = shared.model_fields.get(field)
        if field not in ("name", "optim") and (known is None or words(known.default) != words(info.default)):
            assert f"`{field}: {words(info.default)}`" in found[0]


TABLE_4 = re.findall(r"^\| `(\w+)` \| `(\{.*?\})` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize(("arm", "settings"), TABLE_4, ids=[arm for arm, _ in TABLE_4])
def test_the_settings_of_table_4_are_valid_and_differ(arm: str, settings: str) -> None:
    built = {name: TypeAdapter(MethodConfig).validate_python(yaml.safe_load(text)) for name, text in TABLE_4}
    assert len(TABLE_4) == 9
    assert [name for name, config in built.items() if config == built[arm]] == [arm]
