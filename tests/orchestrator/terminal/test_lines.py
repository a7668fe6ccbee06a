import sys
from contextlib import suppress

import pytest
from rich.table import Table

from orchestrator.config.sweep_config import SweepConfig
from orchestrator.terminal.lines import describe_values, terminal_console
from trainables.config_file import Origin, check

FOREIGN = "[red]fox :cat: [/x] [link=y]"
"""Text that rich would take for markup, emoji, an error and an address."""


def test_foreign_text_is_shown_as_it_is_also_in_tables(capsys: pytest.CaptureFixture[str]) -> None:
    console = terminal_console()
    console.print(FOREIGN)
    table = Table(FOREIGN, title=FOREIGN)
    table.add_row(FOREIGN)
    console.print(table)
    assert capsys.readouterr().out.count(FOREIGN) == 4


def test_the_console_goes_on_when_its_reader_is_gone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    full = open("/dev/full", "w")  # noqa: SIM115  # closing it raises
    monkeypatch.setattr(sys, "stdout", full)
    console = terminal_console()
    for _ in range(3):
        console.print("a line")
    monkeypatch.undo()
    with suppress(OSError):
        full.close()
    assert capsys.readouterr().err.count("the work goes on without it") == 1


def test_a_trial_is_described_by_the_searched_settings_that_it_has() -> None:
    rate = {"type": "float", "low": 0.01, "high": 1.0}
    methods = {"type": "categorical", "choices": ["focal", "difficulty_net"]}
    tree = {
        "trial": {"stages": [{"name": "representation"}, {"name": "crt", "epochs": 3}]},
        "space": {"method.name": methods, "method.gamma": rate, "optim.lr": rate, "stages.1.optim.lr": rate},
    }
    config = check(SweepConfig, tree, Origin("test"))
    assert describe_values(config, config.trial.model_dump()) == "name=difficulty_net optim.lr=0.05 stages.1.optim.lr=0.1"
    assert describe_values(config, config.trial.model_dump(), "crt") == "crt optim.lr=0.05 stages.1.optim.lr=0.1"
