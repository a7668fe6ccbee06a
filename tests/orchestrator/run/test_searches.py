"""The loop over whole searches: what is run, what is left alone, and how the ablation ends. No trial is trained."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.sweep_config import SweepConfig
from orchestrator.decide.virtual_sweep import run
from orchestrator.ledger.events import Kind, Status
from orchestrator.ledger.ledger import Ledger, last, read_ledger
from orchestrator.run.interrupts import Interrupts
from orchestrator.run.prepare import SweepRequest, prepare
from orchestrator.run.searches import run_searches
from trainables.config_file import ConfigError, Origin, check


def plan(seeds: int = 3, **changed: Any) -> SweepConfig:
    tree = {
        "trial": {"epochs": 1},
        "scheduler": {"name": "none"},
        "space": {"optim.lr": {"type": "float", "low": 0.1, "high": 0.5}},
        "search": {"trials": 2, "references": {"cross_entropy": {"method.name": "cross_entropy", "tuned": True}}},
        "tracking": {"mlflow": False},
        "ablation": {"kind": "searches", "reference": "cross_entropy", "seeds": seeds, "metric": "val/acc"},
    }
    return check(SweepConfig, tree | changed, Origin("PLAN"))


class Searches:
    """Stands for a person's searches: writes the ledger of each; `ends` gives the ends other than finished, by number."""

    def __init__(self, **ends: Status) -> None:
        self.ends, self.ran = ends, list[tuple[str, bool]]()

    def __call__(self, search: SweepRequest) -> None:
        name = search.folder.name
        self.ran.append((name, search.resume))
        status = self.ends.get(name, Status.FINISHED)
        search.folder.mkdir(parents=True, exist_ok=True)
        (search.folder / "sweep.yaml").touch()
        with Ledger(search.folder) as ledger:
            if not ledger.past:
                begin = {"split_sha256": "", "split": {}, "class_counts": [], "git_commit": None, "versions": {}}
                ledger.append(Kind.SWEEP_START, config=search.config.model_dump(), **begin)
                if status != Status.INTERRUPTED:
                    self._train(search.config, ledger, diverges=status == Status.FAILED)
            complete = status != Status.INTERRUPTED
            ledger.append(Kind.SWEEP_END, status=status, reason=None, complete=complete, decisions_sha256="")

    def _train(self, config: SweepConfig, ledger: Ledger, diverges: bool) -> None:
        done = run(config, lambda settings, epoch: None if diverges else settings["optim.lr"], slots=1)
        for event in (event for event in done.events if event["event"] != Kind.CHECKPOINT):
            ledger.append(event["event"], **{key: value for key, value in event.items() if key not in ("event", "n", "time")})


def go(folder: Path, searches: Callable[[SweepRequest], None], config: SweepConfig, resume: bool = False) -> Status | None:
    prepared = prepare(SweepRequest(config, Origin("PLAN"), folder, resume), print)
    if prepared is None:
        return None
    with Interrupts() as interrupts:
        return run_searches(prepared, searches, print, interrupts).status


def test_all_searches_run_once_one_after_another(tmp_path: Path) -> None:
    first, again = Searches(), Searches()
    assert go(tmp_path / "a", first, plan()) == Status.FINISHED
    assert first.ran == [("search_0", False), ("search_1", False), ("search_2", False)]
    assert go(tmp_path / "a", again, plan()) is None
    assert go(tmp_path / "a", again, plan(seeds=4), resume=True) == Status.FINISHED
    assert again.ran == [("search_3", False)]
    comparison = last(read_ledger(tmp_path / "a"), Kind.COMPARE)
    assert [(row["name"], row["num_seeds"]) for row in comparison["rows"]] == [("difficulty_net", 4), ("cross_entropy", 4)]


def test_an_interrupt_ends_the_loop_and_a_resumption_goes_on_with_the_same_search(tmp_path: Path) -> None:
    cut, rest = Searches(search_1=Status.INTERRUPTED), Searches()
    assert go(tmp_path / "a", cut, plan()) == Status.INTERRUPTED
    assert [name for name, _ in cut.ran] == ["search_0", "search_1"]
    with pytest.raises(ConfigError, match="unfinished; nothing was changed; go on with --resume"):
        go(tmp_path / "a", rest, plan())
    assert go(tmp_path / "a", rest, plan(), resume=True) == Status.FINISHED
    assert rest.ran == [("search_1", True), ("search_2", False)]


def test_ctrl_c_before_the_first_event_of_a_search_is_an_interrupt(tmp_path: Path) -> None:
    def pressed(search: SweepRequest) -> None:
        raise KeyboardInterrupt

    assert go(tmp_path / "a", pressed, plan()) == Status.INTERRUPTED
    assert last(read_ledger(tmp_path / "a"), Kind.SWEEP_END)["complete"] is False


def test_a_search_that_fails_is_noted_and_the_others_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    searches = Searches(search_1=Status.FAILED)
    assert go(tmp_path / "a", searches, plan()) == Status.FINISHED
    assert len(searches.ran) == 3
    assert "search 1 failed: no trial finished whose model could be exported" in capsys.readouterr().out
    assert go(tmp_path / "b", Searches(**{f"search_{k}": Status.FAILED for k in range(3)}), plan()) == Status.FAILED


def test_a_confirmation_that_is_added_goes_on_with_all_searches(tmp_path: Path) -> None:
    go(tmp_path / "a", Searches(), plan())
    confirmed = {**plan().model_dump()["search"], "confirm": {"top": 1, "seeds": 2}}
    again = Searches()
    go(tmp_path / "a", again, plan(search=confirmed), resume=True)
    assert again.ran == [("search_0", True), ("search_1", True), ("search_2", True)]


def test_another_plan_is_refused_in_the_same_folder(tmp_path: Path) -> None:
    go(tmp_path / "a", Searches(), plan())
    changed = {**plan().model_dump()["ablation"], "margin": 0.01}
    with pytest.raises(ConfigError, match=r"ablation\.margin: 0\.005 there, 0\.01 here"):
        go(tmp_path / "a", Searches(), plan(ablation=changed), resume=True)
    with pytest.raises(ConfigError, match=r"was begun with the seeds \[0, 1, 2\], now they are \[0, 1\]"):
        go(tmp_path / "a", Searches(), plan(seeds=2), resume=True)
