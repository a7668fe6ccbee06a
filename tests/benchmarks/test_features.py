"""The benchmark of trials on vectors measures what it says."""

import io
import json
import sys

import pytest

from benchmarks import features
from benchmarks.features import main


@pytest.mark.slow
@pytest.mark.parametrize("classifier", features.CLASSIFIERS)
def test_a_process_is_ready_before_it_is_timed_and_tells_its_seconds(
    classifier: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(features, "EPOCHS", 1)
    monkeypatch.setattr(sys, "stdin", io.StringIO("go\n"))
    assert main(["--classifier", classifier, "--process", "2,2"]) == 0
    ready, seconds = capsys.readouterr().out.splitlines()
    assert ready == "ready"
    assert float(json.loads(seconds)) > 0


def test_the_best_size_counts_and_rates_are_medians(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {1: iter([10.0, 12.0, 8.0]), 4: iter([30.0, 50.0, 40.0]), 8: iter([20.0, 90.0, 30.0])}
    monkeypatch.setattr(features, "trials_per_minute", lambda classifier, size: next(rates[size]))
    found = features.measure("linear", 3, [4, 8])
    assert found["fused_trials_per_minute"] == found["fused_4_trials_per_minute"] == 40
    assert found["unfused_trials_per_minute"] == 10
    assert found["fused_over_unfused"] == 4
    assert found["fused_size"] == 4


def test_sizes_that_cannot_be_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--sizes", "1"])
    assert "--sizes is 1, --rounds is 3; allowed: whole numbers from 2 on" in capsys.readouterr().err
