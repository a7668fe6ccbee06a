"""The benchmark of whole sweeps on vectors measures what it says."""

import json
from pathlib import Path

import pytest

from benchmarks import fused_sweeps
from benchmarks.fused_sweeps import main, measure, rate


def test_a_rate_counts_epochs_between_the_first_start_and_the_last_end(tmp_path: Path) -> None:
    events = [
        ("suggest", 0),
        ("trial_start", 10),
        *(("epoch", 11 + epoch) for epoch in range(20)),
        ("trial_start", 12),
        *(("epoch", 31 + epoch) for epoch in range(10)),  # a trial that ends after half of its epochs
        ("trial_end", 31),
        ("trial_end", 70),
        ("sweep_end", 200),
    ]
    ledger = tmp_path / "ledger.jsonl"
    ledger.write_text("".join(json.dumps({"time": time, "event": kind}) + "\n" for kind, time in events))
    assert rate(ledger) == pytest.approx(1.5)


def test_rates_are_medians(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {16: iter([10.0, 40.0, 30.0]), 1: iter([9.0, 2.0, 3.0])}
    monkeypatch.setattr(fused_sweeps, "trials_per_minute", lambda vectors, size, trials: next(rates[size]))
    found = measure(3, {"fused": (16, 64), "unfused": (1, 16)})
    assert found == {
        "fused_sweep_trials_per_minute": 30,
        "unfused_sweep_trials_per_minute": 3,
        "fused_over_unfused_sweep": 10,
    }


def test_sizes_that_cannot_be_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--size", "1"])
    assert "--size is 1; allowed: 2 or more" in capsys.readouterr().err
