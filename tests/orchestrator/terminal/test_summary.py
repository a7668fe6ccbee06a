import json
import re
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from recorded import record
from rich.console import Console
from simulation import Simulation

from orchestrator.config.limits_config import BudgetConfig
from orchestrator.config.search_config import ConfirmConfig
from orchestrator.config.sweep_config import SweepConfig, TrackingConfig
from orchestrator.ledger.ledger import Ledger, read_ledger
from orchestrator.outcome.tables import write_tables
from orchestrator.terminal.summary import open_mlflow, print_interrupted, print_outcome, trade_offs
from trainables.config_file import Origin, check, dump_yaml


def test_several_objectives_show_what_there_is_to_choose_from(config: SweepConfig, console: Console, tmp_path: Path) -> None:
    search = config.search.model_copy(update={"sampler": "nsga2", "objectives": ["val/acc", "val/acc_few"]})
    with Ledger(tmp_path) as ledger:
        ledger.append("sweep_start")
        for number, (accuracy, few) in enumerate(((0.9, 0.1), (0.8, 0.5), (0.7, 0.4))):
            trial_id = f"t{number:04d}"
            ledger.append("suggest", trial_id=trial_id, role="search", variant="", seed=0, config=config.trial.model_dump())
            ledger.append("epoch", trial_id=trial_id, epoch=1, attempt=1, metrics={"val/acc": accuracy, "val/acc_few": few})
            ledger.append("trial_end", trial_id=trial_id, status="finished", stop_reason=None)
    print_outcome(console, tmp_path, config.model_copy(update={"search": search}))
    text = console.export_text()
    assert re.search(r"t0000 +│ 0.9000 +│ 0.1000", text)
    assert re.search(r"t0001 +│ 0.8000 +│ 0.5000", text)
    assert "0.4000" not in text


def test_the_outcome_compares_the_best_with_both_references(config: SweepConfig, console: Console, tmp_path: Path) -> None:
    record(tmp_path, config, console, {"cross_entropy": "finished", "paper": "finished", "search1": "finished"})
    tracker = SimpleNamespace(pages=lambda: [("all trials", "/#/x")])
    assert print_outcome(console, tmp_path, config, tracker) == 0
    text = console.export_text()
    assert "best vs cross_entropy: +0.2000 val/acc" in text
    assert "best vs paper: +0.1000 val/acc" in text
    assert f"-m orchestrator.ui {tmp_path}" in text
    assert "-m trainables.train" in text
    assert f"-m trainables.predict {tmp_path / 'best'} IMAGES" in text


def test_a_reference_that_is_best_wins_and_says_so(config: SweepConfig, console: Console, tmp_path: Path) -> None:
    record(tmp_path, config, console, {"search1": "finished", "cross_entropy": "finished"})
    print_outcome(console, tmp_path, config)
    text = console.export_text()
    assert "best: t0001" in text
    assert "no searched configuration beat the references" in text


def test_a_reference_that_failed_has_no_score(config: SweepConfig, console: Console, tmp_path: Path) -> None:
    record(tmp_path, config, console, {"paper": "failed", "search1": "finished"})
    print_outcome(console, tmp_path, config)
    row = next(line for line in console.export_text().splitlines() if "val/acc, best epoch" in line)
    assert "failed" in row
    assert "0.5000" not in row


def test_the_next_command_or_the_pages_of_a_server_of_ones_own_are_printed(config: SweepConfig) -> None:
    def printed(uri: str | None, folder: Path, pages: list[tuple[str, str]]) -> list[str]:
        return open_mlflow(config.model_copy(update={"tracking": TrackingConfig(uri=uri)}), folder, pages)

    at_home, elsewhere = Path("results/demo"), Path("/data/sweeps/demo")
    assert printed("http://host:5000/", at_home, [("all trials", "/#/x")]) == [
        "  http://host:5000/#/x\n      all trials, in MLflow"
    ]
    assert printed("http://host:5000/", at_home, [])[0] == "  http://host:5000"
    assert printed(None, at_home, [])[0].endswith("-m orchestrator.ui results/demo")
    assert printed(None, elsewhere, [])[0].endswith("-m orchestrator.ui /data/sweeps/demo")
    assert printed("sqlite:////data/own.db", at_home, [])[0].endswith("--backend-store-uri sqlite:////data/own.db")


def test_a_sweep_without_a_finished_trial_fails(config: SweepConfig, console: Console, tmp_path: Path) -> None:
    record(tmp_path, config, console, {"search1": "failed", "search2": "diverged"})
    assert print_outcome(console, tmp_path, config) == 1
    assert "No trial finished" in console.export_text()


def test_the_end_of_trials_that_failed_on_an_image_names_the_doctor_before_the_resumption(
    config: SweepConfig, console: Console, tmp_path: Path
) -> None:
    (tmp_path / "sweep.yaml").write_text(dump_yaml(config.model_dump()))
    reason = "data.root: pets/[b]cat/1.jpg: not an image that can be read (image file is truncated)"
    with Ledger(tmp_path) as ledger:
        ledger.append("sweep_start")
        for number in range(2):
            trial_id = f"t{number:04d}"
            ledger.append("suggest", trial_id=trial_id, role="search", variant="", seed=0, config=config.trial.model_dump())
            ledger.append("trial_end", trial_id=trial_id, status="failed", stop_reason=reason)
        ledger.append("sweep_end", status="failed", reason="2 trials failed")
    assert print_outcome(console, tmp_path, config) == 1
    text = console.export_text()
    assert f"2 trials failed because of an image: {reason}" in text
    assert f"-m orchestrator.doctor {tmp_path}/sweep.yaml\n" in text
    assert "Not all trials ran to their ends: 2 trials failed.\n" in text
    assert text.index("orchestrator.doctor") < text.index("another --name") < text.index("--resume")


def test_an_interruption_prints_what_to_type_next(config: SweepConfig, console: Console, tmp_path: Path) -> None:
    record(tmp_path, config, console, {"cross_entropy": "finished", "search1": "interrupted"})
    assert print_interrupted(console, tmp_path) == 130
    text = console.export_text()
    assert "Interrupted after 1 of 24 trials" in text
    assert f"-m orchestrator.sweep --name {tmp_path.name} --results {tmp_path.parent} --resume" in text
    assert f"-m orchestrator.export {tmp_path}" in text


def test_of_the_trials_to_choose_from_the_best_in_the_first_objective_comes_first() -> None:
    rows = [
        {"trial_id": name, "status": "finished", "role": "search", "variant": "", "best/a": a, "best/b": b}
        for name, a, b in (("t0", 0.1, 0.9), ("t1", 0.8, 0.2), ("t2", 0.5, 0.5))
    ]
    assert list(trade_offs(rows, ["a", "b"]).columns[0].cells) == ["t1", "t2", "t0"]


def test_the_best_epoch_stands_above_the_last(config: SweepConfig, console: Console, tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        ledger.append("sweep_start")
        ledger.append("suggest", trial_id="t0000", role="search", variant="", seed=0, config=config.trial.model_dump())
        for epoch, value in enumerate((0.75, 0.5), 1):
            ledger.append("epoch", trial_id="t0000", epoch=epoch, attempt=1, metrics={"val/acc": value})
        ledger.append("trial_end", trial_id="t0000", status="finished", stop_reason=None)
    print_outcome(console, tmp_path, config)
    text = console.export_text()
    assert re.search(r"best epoch +│ 0.7500", text)
    assert re.search(r"last epoch +│ 0.5000", text)


@pytest.mark.parametrize(("status", "code"), [("finished", 0), ("failed", 1)])
def test_a_sweep_that_was_given_up_says_why_and_how_to_go_on(
    config: SweepConfig, console: Console, tmp_path: Path, status: str, code: int
) -> None:
    record(tmp_path, config, console, {"search1": "finished"})
    with Ledger(tmp_path) as ledger:
        ledger.append("sweep_end", status=status, reason="budget.cost of 5 is used up")
    assert print_outcome(console, tmp_path, config) == code
    text = console.export_text()
    assert "Not all trials ran to their ends: budget.cost of 5 is used up. To go on: " in text
    assert f"--name {tmp_path.name} --results {tmp_path.parent} --resume" in text


def test_the_reading_of_the_test_set_is_shown(config: SweepConfig, console: Console, tmp_path: Path) -> None:
    record(tmp_path, config, console, {"search1": "finished"})
    (tmp_path / "best").mkdir()
    seeds = {"num_seeds": 3, "mean": 0.625, "sd": 0.25}
    (tmp_path / "best" / "metrics.json").write_text(json.dumps({"test": {"test/acc": 0.75}, "test_over_seeds": seeds}))
    print_outcome(console, tmp_path, config)
    text = console.export_text()
    assert "test/acc of the exported model, read once: 0.7500" in text
    assert "test/acc over 3 seeds: 0.6250 (sd 0.2500)" in text


def test_the_outcome_tells_how_busy_the_slots_were_and_what_they_cost(
    config: SweepConfig, console: Console, tmp_path: Path
) -> None:
    priced = config.model_copy(update={"budget": BudgetConfig(cost_per_gpu_hour=3600.0)})
    record(tmp_path, priced, console, {"cross_entropy": "finished", "search1": "finished"})
    print_outcome(console, tmp_path, priced)
    text = console.export_text()
    # Each trial is suggested, starts, reports an epoch and ends. From the first start to the last end are 6 s, of which each
    # trial is busy for one. The two slots have a GPU in all, and a second of it costs a unit of money.
    assert "2 trials in 10 s, start and export included: 2 finished" in text
    assert "2 slots, 83% of the time waiting" in text
    assert "cost 6.00, 3.00 for a trial" in text


def test_a_grid_that_constraints_have_left_fewer_points_says_so(config: SweepConfig, console: Console, tmp_path: Path) -> None:
    record(tmp_path, config, console, {"cross_entropy": "finished", "search1": "finished", "search2": "stopped_early"})
    for trials, shown in ((2, False), (4, True)):
        search = config.search.model_copy(update={"sampler": "grid", "trials": trials})
        print_outcome(console, tmp_path, config.model_copy(update={"search": search}))
        text = console.export_text()
        assert ("search.constraints leave the grid fewer points: 2 trials instead of 4" in text) == shown
        assert ("leave the grid fewer points" in text) == shown


def test_a_confirmed_winner_is_shown_with_its_spread(config: SweepConfig, console: Console, tmp_path: Path) -> None:
    search = config.search.model_copy(update={"confirm": ConfirmConfig(top=2, seeds=2)})
    confirmed = config.model_copy(update={"search": search})
    (tmp_path / "sweep.yaml").write_text(dump_yaml(confirmed.model_dump()))
    with Ledger(tmp_path) as ledger:
        ledger.append("sweep_start")
        runs = [(None, 0, 0.9), (None, 0, 0.8), ("t0000", 1, 0.6), ("t0001", 1, 0.7), ("t0000", 2, 0.62), ("t0001", 2, 0.72)]
        for number, (confirms, seed, value) in enumerate(runs):
            trial = config.trial.model_copy(update={"seed": seed})
            role, trial_id = "confirm" if confirms else "search", f"t{number:04d}"
            fields = {"role": role, "variant": "", "seed": seed, "config": trial.model_dump(), "confirms": confirms}
            ledger.append("suggest", trial_id=trial_id, **fields)
            ledger.append("epoch", trial_id=trial_id, epoch=1, attempt=1, metrics={"val/acc": value})
            ledger.append("trial_end", trial_id=trial_id, status="finished", stop_reason=None)
        ledger.append("sweep_end", status="finished")
    assert print_outcome(console, tmp_path, confirmed) == 0
    text = console.export_text()
    assert "best: t0001" in text  # the better configuration on the fresh seeds, not the luckiest trial of the search
    assert re.search(r"mean of 2 fresh seeds +│ 0.7100 ", text)
    assert "over 2 fresh seeds" in text
    assert re.search(r"t0001 +│ 0.7100 +│ 0.0141 ", text)
    assert "t0001 is better than all the others" in text


def test_a_configuration_without_all_its_seeds_is_out_of_the_running_and_where_all_are_the_search_decides(
    config: SweepConfig, console: Console, tmp_path: Path
) -> None:
    def tell(*runs: tuple[str | None, int, float | None]) -> str:
        folder = tmp_path / str(len(runs))
        folder.mkdir()
        with Ledger(folder) as ledger:
            ledger.append("sweep_start")
            for number, (confirms, seed, value) in enumerate(runs):
                fields = {"role": "confirm" if confirms else "search", "variant": "", "seed": seed, "confirms": confirms}
                trial_id, status = f"t{number:04d}", "diverged" if value is None else "finished"
                ledger.append("suggest", trial_id=trial_id, config=config.trial.model_dump(), **fields)
                ledger.append("epoch", trial_id=trial_id, epoch=1, attempt=1, metrics={"val/acc": value})
                ledger.append("trial_end", trial_id=trial_id, status=status, stop_reason=None)
        print_outcome(console, folder, config)
        return console.export_text()

    search: list[tuple[str | None, int, float | None]] = [(None, 0, 0.9), (None, 0, 0.8), (None, 0, 0.7)]
    first = [("t0000", 1, 0.6), ("t0000", 2, None)]
    text = tell(*search, *first)
    assert "out of the running: t0000" in text
    assert "the best trial is the search's, unconfirmed" in text
    others = [("t0001", 1, 0.7), ("t0001", 2, 0.72), ("t0002", 1, 0.7), ("t0002", 2, 0.71)]
    text = tell(*search, *first, *others)
    assert "out of the running: t0000" in text
    # Differences of 0 and 0.01: t = 1 with one degree of freedom, of which the two-sided p is 1/2.
    assert re.search(r"t0001 +│ 0.7100 +│ 0.0141 ", text)
    assert re.search(r"t0002 +│ 0.7050 +│ 0.0071 .*│ 0.500 ", text)


METHODS = ["cross_entropy", "label_aware_smoothing", "difficulty_net"]


def comparison(folder: Path, confirm: dict[str, int] | None) -> SweepConfig:
    """A comparison of three methods and a tuned reference that has run, with its ledger in `folder`."""
    lr = {"type": "float", "low": 0.001, "high": 0.5, "log": True}
    crt = {"tuned": True, "stages": [{"name": "representation"}, {"name": "crt", "epochs": 2}]}
    tree = {
        "trial": {"epochs": 9, "method": {"name": "cross_entropy"}},
        "space": {"method.name": {"type": "categorical", "choices": METHODS}, "optim.lr": lr},
        "search": {"sampler": "random", "per_method": 3, "references": {"crt": crt, "fixed": {}}, "confirm": confirm},
        "scheduler": {"name": "none"},
    }
    config = check(SweepConfig, tree, Origin("test"))
    with Ledger(folder) as ledger:
        ledger.append("sweep_start", config=config.model_dump())
        for event in Simulation(config).run():
            ledger.append(**{key: value for key, value in event.items() if key not in ("event", "time")}, event=event["event"])
        ledger.append("sweep_end", status="finished")
    return config


def test_a_comparison_ends_with_a_row_for_each_arm_whose_numbers_follow_from_the_table_of_trials(tmp_path: Path) -> None:
    config, narrow = comparison(tmp_path, {"top": 2, "seeds": 4}), Console(width=80, record=True, force_terminal=False)
    assert print_outcome(narrow, tmp_path, config) == 0
    lines = narrow.export_text().splitlines()
    assert all(len(line) <= 80 for line in lines if "│" in line)
    write_tables(tmp_path, read_ledger(tmp_path))
    trials = pd.read_parquet(tmp_path / "trials.parquet")
    runs = trials[(trials.role == "confirm") & (trials.variant != "fixed")]
    means = runs.groupby(["variant", "confirms"])["best/val/acc"].mean()
    chosen = {arm: means[arm].idxmax() for arm in means.index.levels[0]}
    scores = {arm: runs[runs.confirms == name].set_index("seed")["best/val/acc"] for arm, name in chosen.items()}
    expected = []
    for arm in sorted(scores, key=lambda arm: -scores[arm].mean()):
        best = trials[(trials.role == "search") & (trials.variant == arm)]["best/val/acc"].max()
        numbers = [f"{best:.4f}", f"{scores[arm].mean():.4f}", f"{scores[arm].std():.4f}"]
        if arm != "cross_entropy":
            gains = scores[arm] - scores["cross_entropy"]
            numbers += [f"{gains.mean():+.4f}", f"±{3.182446 * gains.std() / 2:.4f}"]
        expected.append([arm, *numbers])
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]
    arms = [[cell for cell in row if cell] for row in rows if row[0] in scores]
    assert arms == expected
    assert len(expected) == 4
    assert any("4 arms, each tuned with 3 trials" in " ".join(lines[i : i + 2]) for i in range(len(lines)))
    assert f"({expected[0][0]}) has the highest mean" in " ".join(lines) or f"({expected[0][0]}) is better" in " ".join(lines)


def test_an_arm_with_one_confirmed_configuration_stands_for_it_in_the_verdict(console: Console, tmp_path: Path) -> None:
    config = comparison(tmp_path, {"top": 1, "seeds": 3})
    assert print_outcome(console, tmp_path, config) == 0
    text = " ".join(console.export_text().split())
    assert re.search(rf" ({'|'.join([*METHODS, 'crt'])}) (is better than all the others|has the highest mean)", text)


def test_a_comparison_without_a_confirmation_says_that_its_numbers_are_of_one_seed(console: Console, tmp_path: Path) -> None:
    config = comparison(tmp_path, None)
    assert print_outcome(console, tmp_path, config) == 0
    text = console.export_text()
    assert "note: one seed each, and the luckiest of its trials" in text
    assert all(re.search(rf"│ {arm} +│ 0\.\d{{4}} │", text) for arm in [*METHODS, "crt"])
