import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.worker_agreement import largest_difference


def epochs(folder: Path, **columns: list[object]) -> Path:
    folder.mkdir()
    rows = {"trial_id": ["t1", "t0"], "epoch": [1, 1], "time/epoch_s": [1.0, 2.0]} | columns
    pq.write_table(pa.table(rows), folder / "epochs.parquet")
    return folder


def test_the_largest_difference_is_over_all_metrics_but_times_whatever_the_order_of_the_rows(tmp_path: Path) -> None:
    one = epochs(tmp_path / "one", **{"val/acc": [0.5, 0.25], "train/loss": [1.0, None]})
    other = {"trial_id": ["t0", "t1"], "time/epoch_s": [9.0, 9.0], "val/acc": [0.25, 0.5], "train/loss": [None, 1.5]}
    assert largest_difference(one, epochs(tmp_path / "several", **other)) == (0.5, 3)


def test_a_number_that_only_one_of_them_has_is_a_difference_without_limit(tmp_path: Path) -> None:
    one = epochs(tmp_path / "one", **{"val/acc": [0.5, None]})
    assert largest_difference(one, epochs(tmp_path / "several", **{"val/acc": [0.5, 0.5]}))[0] == math.inf


def test_other_trials_are_not_compared(tmp_path: Path) -> None:
    one = epochs(tmp_path / "one")
    with pytest.raises(ValueError, match="other trials or epochs"):
        largest_difference(one, epochs(tmp_path / "several", epoch=[1, 2]))
