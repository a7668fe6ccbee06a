import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from scipy import stats

from orchestrator.config.sweep_config import SweepConfig
from orchestrator.ledger.class_arrays import SCHEMA
from orchestrator.ledger.ledger import Ledger, read_ledger
from orchestrator.outcome.card import MOST_CLASSES, Exported, card, wilson
from trainables.config import TrialConfig
from trainables.data.framing import Framing
from trainables.files import file_sha256

COUNTS = [90, 30, 5]
IN_BF16 = "measured with the backbone under torch.autocast in bfloat16"


class Story:
    """A sweep of one trial on three classes, and what its card says."""

    def __init__(self, folder: Path, config: SweepConfig, counts: list[int] = COUNTS) -> None:
        self.folder, self.counts = folder, counts
        accuracy = [(c * 0.5) % 1.5 if c < 3 else 0.5 for c in range(len(counts))]  # 0, 0.5, 1, then all the same
        rows = [
            {
                "trial_id": "t0000",
                "epoch": epoch,
                "class": c,
                "accuracy": accuracy[c] if epoch == 2 else 0.25,
                "train_count": count,
            }
            for epoch in (1, 2, 3)
            for c, count in enumerate(counts)
        ]
        (folder / "parts").mkdir()
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), folder / "parts" / "t0000.parquet")
        with Ledger(folder) as ledger:
            ledger.append("sweep_start", config=config.model_dump(), split_sha256="ab12", class_counts=counts)
            ledger.append("suggest", trial_id="t0000", role="search", variant="", seed=0, config=config.trial.model_dump())
            arrays = {"class_arrays": "parts/t0000.parquet"}
            sha = {"class_arrays_sha256": file_sha256(folder / "parts" / "t0000.parquet")}
            ledger.append("trial_end", trial_id="t0000", status="finished", stop_reason=None, **arrays, **sha)

    def text(
        self, test: dict[str, float] | None = None, trial: TrialConfig | None = None, framing: str = "", **metrics: Any
    ) -> str:
        known = {"test/acc": 0.8, "test/plain_acc": 0.8} if test is None else test or None
        names = ["cat | dog", "<script>", "fish", *(f"class {c}" for c in range(3, len(self.counts)))]
        found = {
            "trial_id": "t0000",
            "selected_by": "val/acc",
            "best": {"epoch": 2, "val/acc": 0.5},
            "last": {"val/acc": 0.4},
            "references": {},
            "test": known,
        }
        exported = Exported(
            self.folder,
            Path("results/demo/best"),
            trial or TrialConfig(),
            "It is the best.",
            found | metrics,
            names,
            [10] * len(names),
            50,
            (1, 8, 8),
            {"model.pt2": {"num_images": 256, "max_difference": 3e-7}},
            framing,
        )
        return card(exported, read_ledger(self.folder), {"t0000": known} if known else {})


@pytest.fixture
def story(tmp_path: Path, config: SweepConfig) -> Story:
    return Story(tmp_path, config)


def test_the_head_is_yaml_with_the_numbers_of_the_test_set(story: Story) -> None:
    _, head, text = story.text().split("---\n", 2)
    found = yaml.safe_load(head)
    assert {"license", "tags", "metrics", "model-index"} <= found.keys()
    ((result,),) = [entry["results"] for entry in found["model-index"]]
    assert result["task"]["type"] == "image-classification"
    assert {metric["name"]: metric["value"] for metric in result["metrics"]} == {
        "accuracy, mean over classes": 0.8,
        "accuracy, share of all images": 0.8,
    }
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == [
        "Model description",
        "Intended use and limits",
        "Data",
        "Training",
        "Evaluation",
        "How to load",
    ]


def test_a_model_whose_test_set_was_not_read_has_no_result_in_the_head(story: Story) -> None:
    text = story.text(test={})
    assert "model-index" not in yaml.safe_load(text.split("---\n", 2)[1])
    assert "| **this model** (epoch 2) | 0.5000 | 0.4000 | not read |" in text
    assert "The test set has not been read in this sweep." in text


def test_the_card_says_how_accuracies_were_measured_if_the_model_computes_otherwise(story: Story) -> None:
    text = story.text(trial=TrialConfig.model_validate({"compute": {"precision": "bf16"}}))
    assert IN_BF16 in text
    assert "float32, so it may decide otherwise" in text
    assert IN_BF16 not in story.text()


def test_the_card_says_that_weights_are_an_average(story: Story) -> None:
    averaged = "moving average over the training steps (`optim.ema: 0.99`)"
    assert averaged in story.text(trial=TrialConfig.model_validate({"optim": {"ema": 0.99}}))
    assert averaged not in story.text()


def test_each_class_has_its_accuracy_in_the_best_epoch_with_an_interval(story: Story) -> None:
    rows = re.findall(r"^\| (.*) \| (\d+) \| (\d\.\d{4}) \| (.*) to (.*) \|$", story.text(), re.MULTILINE)
    assert [(name, count, accuracy) for name, count, accuracy, *_ in rows] == [
        ("cat \\| dog", "90", "0.0000"),
        ("<script>", "30", "0.5000"),
        ("fish", "5", "1.0000"),
    ]
    for _, _, accuracy, low, high in rows:
        known = stats.binomtest(round(float(accuracy) * 10), 10).proportion_ci(method="wilson")
        assert (float(low), float(high)) == pytest.approx((known.low, known.high), abs=1e-4)


def test_of_very_many_classes_the_largest_and_the_smallest_are_shown(tmp_path: Path, config: SweepConfig) -> None:
    counts = [1000 - c for c in range(MOST_CLASSES + 7)]
    text = Story(tmp_path, config, counts).text()
    assert "| ... 7 more, in classes.parquet | | | |" in text
    assert len(re.findall(r"^\| .* \| \d+ \| \d\.\d{4} \| .* to .* \|$", text, re.MULTILINE)) == MOST_CLASSES
    assert "| class 206 |" in text


def test_the_interval_of_the_test_accuracy_is_wilsons(story: Story) -> None:
    known = stats.binomtest(40, 50).proportion_ci(method="wilson")
    assert re.search(rf"95 % interval {known.low:.4f} to\s+{known.high:.4f} \(Wilson\)", story.text())
    assert wilson(0.0, 3)[0] == pytest.approx(0.0, abs=1e-12)
    assert wilson(1.0, 3)[1] == pytest.approx(1.0, abs=1e-12)


def test_the_interval_over_seeds_is_that_of_students_t(story: Story) -> None:
    scores = [0.7, 0.8, 0.75]
    summary = {"name": "t0000", "mean": 0.75, "sd": 0.05, "shrunken": 0.75, "p_value": 1.0}
    text = story.text(
        configuration_of="t0000",
        confirmation=[summary],
        verdict="t0000 is best",
        left_out=[],
        num_seeds=3,
        test_over_seeds={"num_seeds": 3, "mean": 0.75, "sd": 0.05, "test/acc": scores},
    )
    low, high = stats.t.interval(0.95, 2, loc=0.75, scale=stats.sem(scores))
    assert f"0.7500 (sd 0.0500; 95 % interval of the mean {low:.4f} to {high:.4f}" in text


def test_the_lines_that_load_the_model_are_five(story: Story) -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", story.text(), re.DOTALL)
    assert len([line for line in snippet.splitlines() if line]) == 5
    assert 'load_model("results/demo/best")' in snippet
    assert json.dumps("model.pt2") in story.text()


def test_the_card_says_what_pre_trained_weights_expect_of_an_image_file(story: Story) -> None:
    seen = "Of an image file it sees the middle square, 90.0% of the short side, bicubic, as the pre-trained weights expect it."
    assert seen in story.text(framing=Framing(0.9, "bicubic").words())
    assert "Of an image file" not in story.text()
