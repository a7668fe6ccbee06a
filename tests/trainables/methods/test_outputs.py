import math

import numpy as np
import pytest
import torch
from tasks import built, context, task
from torch import Tensor

from trainables.classifier_config import SmallCNNConfig
from trainables.config import BilevelConfig, TrialConfig
from trainables.method_config import CDBConfig, CrossEntropyConfig, MESConfig, MethodConfig, MFRWConfig, MFRWMESConfig
from trainables.methods import Context
from trainables.methods.advisor import to_unit
from trainables.methods.outputs import Outputs
from trainables.trial_run import TrialRun


def at(step: int) -> Context:
    return context(
        built(CrossEntropyConfig(), task([2, 2])), torch.zeros(2, 2, dtype=torch.float64), torch.tensor([0, 1]), step=step
    )


def table(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def test_moments_are_those_of_all_entries_of_an_epoch() -> None:
    outputs = Outputs()
    outputs.add(table([0.1, 0.9], [0.2, 0.8]), at(0))
    outputs.add(table([0.3, 0.7]), at(1))
    entries = [0.1, 0.9, 0.2, 0.8, 0.3, 0.7]
    assert outputs.moments() == pytest.approx((0.5, np.std(entries), 0.5))
    means = outputs.means()
    assert means is not None
    assert means.tolist() == pytest.approx([0.2, 0.8])


def test_of_several_calls_in_a_step_the_last_one_counts() -> None:
    """The virtual and the actual phase, and the repetitions before a capture."""
    outputs = Outputs()
    for value in (0.9, 0.8, 0.25):
        outputs.add(table([value]), at(0))
    outputs.add(table([0.75]), at(1))
    assert outputs.moments() == pytest.approx((0.5, 0.25, 0.5))


def test_an_epoch_begins_anew_also_with_the_step_of_the_one_before() -> None:
    outputs = Outputs()
    assert outputs.moments() is outputs.means() is outputs.extremes() is None
    outputs.add(table([0.9], [0.2]), at(3))
    outputs.clear()
    assert outputs.moments() is outputs.means() is outputs.extremes() is None
    outputs.add(table([0.4], [0.4]), at(3))
    assert outputs.moments() == pytest.approx((0.4, 0.0, 1.0), abs=1e-7)
    assert outputs.extremes() == pytest.approx((0.4, 0.0))


def test_extremes_are_over_all_batches() -> None:
    outputs = Outputs()
    outputs.add(table([0.001, 0.5], [0.002, 0.5]), at(0))
    outputs.add(table([0.999, 0.9], [0.999, 0.65]), at(1))
    assert outputs.extremes() == pytest.approx((0.5, 0.25))


def test_a_single_image_tells_nothing_about_differences() -> None:
    outputs = Outputs()
    outputs.add(table([0.3, 0.6]), at(0))
    assert outputs.extremes() == (0.4, None)


def test_outputs_are_no_part_of_the_state() -> None:
    method = built(MFRWMESConfig(hidden_width=3), task([4, 2]))
    before = set(method.state_dict())
    method.begin_batch(
        context(method, torch.ones(2, 4, dtype=torch.float64), torch.tensor([0, 1]), torch.nn.Linear(4, 2).double())
    )
    assert set(method.state_dict()) == before


# Analyses of the advisor networks, against the same numbers in numpy


def sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-values))


def batches(method: MethodConfig) -> tuple[dict[str, float], list[np.ndarray], list[np.ndarray]]:
    """Two batches: the metrics, and all masks and suppressions, by hand."""
    advisor, head = built(method, task([8, 4, 2])), torch.nn.Linear(4, 3).double()
    parameters = {name: value.detach().numpy() for name, value in advisor.named_parameters()}

    def linear(name: str, values: np.ndarray) -> np.ndarray:
        return values @ parameters[f"{name}.weight"].T + parameters[f"{name}.bias"]

    masks, suppressions = [], []
    for step, number in enumerate((4, 2)):
        features = torch.randn(number, 4, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        seen = context(advisor, features, torch.arange(number) % 3, head, step=step)
        advisor.begin_batch(seen)
        inputs = [linear("embed_features", features.numpy()), linear("embed_loss", seen.losses.numpy()[:, None])]
        embedded = np.maximum(np.concatenate(inputs, 1), 0)
        masks.append(sigmoid(linear("to_mask", embedded)) if "to_mask.weight" in parameters else np.zeros((0, 1)))
        suppressions.append(sigmoid(linear("to_softmax", embedded)) if "to_softmax.weight" in parameters else np.zeros((0, 1)))
    return advisor.metrics(), masks, suppressions


@pytest.mark.parametrize("method", [MFRWConfig(hidden_width=5), MFRWMESConfig(hidden_width=5)])
def test_masks_are_described_by_mean_deviation_and_share_below_a_half(method: MethodConfig) -> None:
    metrics, masks, _ = batches(method)
    entries = np.concatenate([mask.ravel() for mask in masks])
    assert len(entries) == 24
    assert metrics["mask/mean"] == pytest.approx(entries.mean())
    assert metrics["mask/std"] == pytest.approx(entries.std())
    assert metrics["mask/below_half"] == pytest.approx((entries < 0.5).mean())
    assert 0 < metrics["mask/below_half"] < 1


@pytest.mark.parametrize("method", [MESConfig(hidden_width=5), MFRWMESConfig(hidden_width=5)])
def test_suppressions_are_compared_with_class_sizes(method: MethodConfig) -> None:
    metrics, _, suppressions = batches(method)
    mean = np.concatenate(suppressions).mean(0)
    scaled, sizes = (mean - mean.min()) / (mean.max() - mean.min()), np.array([1, 1 / 3, 0])
    assert metrics["suppression/size_error"] == pytest.approx(np.abs(scaled - sizes).mean())


def test_each_advisor_describes_what_it_has() -> None:
    masks = {"mask/mean", "mask/std", "mask/below_half"}
    assert set(batches(MFRWConfig())[0]) == masks
    assert set(batches(MESConfig())[0]) == {"suppression/size_error"}
    assert set(batches(MFRWMESConfig())[0]) == masks | {"suppression/size_error"}
    assert built(MFRWMESConfig(), task([2, 2])).metrics() == {}  # before the first step


def test_equal_values_are_scaled_to_zero() -> None:
    assert to_unit(torch.tensor([3.0, 3.0])).tolist() == [0, 0]
    assert to_unit(torch.tensor([1.0, 3.0, 2.0])).tolist() == [0, 1, 0.5]


@pytest.mark.slow
@pytest.mark.parametrize("actual_step", ["fresh", "stale"])
def test_an_epoch_is_described_by_the_masks_of_its_actual_steps(actual_step: str) -> None:
    """One mask for each step and not one for each phase; in the second epoch, none of the first."""
    run = TrialRun()
    bilevel = BilevelConfig.model_validate({"actual_step": actual_step})
    method = MFRWMESConfig(hidden_width=5, meta_lr=0.05)
    run.start(TrialConfig(epochs=2, method=method, classifier=SmallCNNConfig(widths=[2, 2]), bilevel=bilevel))
    begin, seen, suppressed = run.method.begin_batch, dict[int, Tensor](), dict[int, Tensor]()

    def watched(context: Context) -> Tensor:
        state: Tensor = begin(context)
        with torch.no_grad():
            embedded, step = run.method._embedded(context.features, state), int(context.moment.step)
            seen[step] = torch.sigmoid(run.method.to_mask(embedded))
            suppressed[step] = torch.sigmoid(run.method.to_softmax(embedded))
        return state

    run.method.begin_batch = watched  # type: ignore[method-assign]
    for _ in range(2):
        seen.clear()
        suppressed.clear()
        metrics = run.run_epoch()
        entries = torch.cat([mask.double().flatten() for mask in seen.values()])
        assert len(seen) == run.steps_per_epoch == 8
        assert metrics["mask/mean"] == pytest.approx(entries.mean().item())
        assert metrics["mask/std"] == pytest.approx(entries.std(correction=0).item())
        mean = torch.cat([some.double() for some in suppressed.values()]).mean(0)
        difference = (to_unit(mean) - to_unit(run.class_counts.double())).abs().mean().item()
        assert metrics["suppression/size_error"] == pytest.approx(difference)


# Difficulties of CDB-CE


def test_cdb_reports_how_far_its_difficulties_are_from_uniform() -> None:
    method = built(CDBConfig(), task([4, 2]))
    method.refresh(torch.tensor([0.7, 0.9], dtype=torch.float64))  # difficulties 0.3 and 0.1: shares 3/4 and 1/4
    expected = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert method.metrics() == {"difficulty/kl_uniform": pytest.approx(expected)}
    method.refresh(torch.tensor([0.7, 1.0], dtype=torch.float64))
    assert method.metrics() == {}  # infinite
    method.refresh(torch.ones(2, dtype=torch.float64))
    assert method.metrics() == {}  # 0 / 0
