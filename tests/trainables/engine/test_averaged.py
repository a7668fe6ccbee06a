"""The average of phi over the steps: the closed form, what is made of it, and what it leaves as it was."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from trainables.checkpoint import pack, unpack
from trainables.config import TrialConfig
from trainables.data.loader import LoadedSet, Request
from trainables.engine.averaged import Averaged
from trainables.evaluate import class_accuracies
from trainables.export_model import read_model, read_test, write_model
from trainables.models import Classifier
from trainables.trial_run import TrialRun

DECAY = 0.8


def trial(ema: float | None = DECAY, **changed: Any) -> TrialConfig:
    """Two epochs of Difficulty-Net on a classifier with BatchNorm."""
    method = {"name": "difficulty_net", "hidden_width": 8, "refresh_interval": 0.5}
    optim = {"ema": ema, "lr": 0.2, "batch_size": 64, "weight_decay": 1e-3}
    return TrialConfig.model_validate({"epochs": 2, "method": method, "optim": optim, **changed})


def started(config: TrialConfig) -> TrialRun:
    run = TrialRun()
    run.start(config)
    return run


def after(config: TrialConfig, epochs: int) -> TrialRun:
    run = started(config)
    for _ in range(epochs):
        run.run_epoch()
    return run


def numbers(metrics: dict[str, float]) -> dict[str, str]:
    return {name: str(value) for name, value in metrics.items() if not name.startswith("time/")}


def parameters_of(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def watched(run: TrialRun, epochs: int) -> list[dict[str, Tensor]]:
    """phi before the first step and after each step of some epochs."""
    seen = [parameters_of(run.classifier)]
    for _ in range(epochs):
        run.run_epoch(lambda _: seen.append(parameters_of(run.classifier)))
    return seen


def average_of(run: TrialRun) -> Classifier:
    assert run.stage.average is not None
    return run.stage.average.classifier


def predicted_by_hand(classifier: Classifier, loaded: LoadedSet) -> Tensor:
    images = next(loaded.batches([Request(torch.arange(len(loaded)))])).images
    with torch.no_grad():
        return copy.deepcopy(classifier).eval()(images.to(next(classifier.parameters()).dtype)).argmax(1)


def test_the_average_is_the_closed_form_over_the_steps_of_a_trial() -> None:
    run = started(trial(compute={"precision": "float64"}))
    seen, d = watched(run, 2), DECAY
    last = len(seen) - 1
    assert last == 2 * run.steps_per_epoch > 4
    for name, average in average_of(run).named_parameters():
        shares = [d**last, *((1 - d) * d ** (last - step) for step in range(1, last + 1))]
        expected = sum(share * phi[name] for share, phi in zip(shares, seen, strict=True))
        assert_close(average.detach(), expected, rtol=0, atol=1e-14)
        assert not torch.equal(average, seen[-1][name])


def test_the_parameters_and_what_the_method_learns_are_those_of_a_trial_without_average() -> None:
    run, plain = after(trial(), 2), after(trial(None), 2)
    for ours, theirs in ((run.classifier, plain.classifier), (run.method, plain.method)):
        assert all(map(torch.equal, ours.state_dict().values(), theirs.state_dict().values()))
    assert run.class_table()["meta_accuracy"] == plain.class_table()["meta_accuracy"]
    assert run.report is not None
    assert plain.report is not None
    same = {name for name in plain.report["metrics"] if not name.startswith(("val/", "time/"))}
    assert "meta/acc" in same
    for name in same:
        assert run.report["metrics"][name] == plain.report["metrics"][name], name


def test_where_val_is_the_meta_set_the_method_still_gets_the_accuracies_of_the_parameters() -> None:
    config = trial(0.99, data={"source": "digits", "val": "meta"})
    run = after(config, 1)
    meta = run.loaded.meta
    assert meta is run.loaded.val
    assert run.report is not None
    by_phi, by_average = (
        class_accuracies(predicted_by_hand(classifier, meta), meta.labels, 10).mean().item()
        for classifier in (run.classifier, average_of(run))
    )
    assert by_phi != pytest.approx(by_average)
    assert run.report["metrics"]["meta/acc"] == pytest.approx(by_phi)
    assert run.report["metrics"]["val/acc"] == pytest.approx(by_average)


def test_what_is_exported_and_read_on_the_test_set_is_the_average(tmp_path: Path) -> None:
    run = after(trial(0.6, read_test=True), 2)
    assert run.best is not None
    assert run.best.epoch == 2
    file = tmp_path / "model.safetensors"
    write_model(file, run.best.phi, run.config, run.loaded.data, run.loaded.format, run.best.epoch)
    model, average = read_model(file)[0], average_of(run)
    for name, exported in model.state_dict().items():
        assert torch.equal(exported, average.state_dict()[name]), name
    weight = model.get_parameter("head.weight")
    assert not torch.equal(weight, run.classifier.get_parameter("head.weight"))
    assert run.report is not None
    found = run.report["metrics"]
    assert read_test(file)["test/acc"] == found["test/acc"] == found["test_last/acc"]
    images = next(run.loaded.val.batches([Request(torch.arange(len(run.loaded.val)))])).images
    accuracy = class_accuracies(model(images).argmax(1), run.loaded.val.labels, 10).mean().item()
    assert found["val/acc"] == pytest.approx(accuracy)


def test_a_resumed_trial_equals_an_unbroken_one_bit_for_bit_and_a_fork_goes_on_from_the_average() -> None:
    config = trial()
    run = after(config, 1)
    state = pack(run.state())
    resumed, fork = TrialRun(), TrialRun()
    resumed.resume(unpack(state), config, "the state")
    other = config.model_copy(update={"method": config.method.model_copy(update={"meta_lr": 0.5})})
    fork.resume(unpack(state), other, "the state")
    for one in (resumed, fork):
        assert all(map(torch.equal, average_of(one).state_dict().values(), average_of(run).state_dict().values()))
    assert numbers(run.run_epoch()) == numbers(resumed.run_epoch())
    assert all(map(torch.equal, average_of(resumed).state_dict().values(), average_of(run).state_dict().values()))
    assert run.best is not None
    assert resumed.best is not None
    assert all(torch.equal(value, resumed.best.phi[name]) for name, value in run.best.phi.items())


def test_a_later_stage_starts_from_the_average_and_may_have_one_of_its_own() -> None:
    crt = {"name": "crt", "epochs": 2, "optim": {"ema": 0.5}}
    config = trial(epochs=4, stages=[{"name": "representation"}, crt])
    run = after(config, 2)
    backbone = parameters_of(average_of(run).backbone)
    heads: list[Tensor] = []
    assert run.run_epoch(lambda _: heads.append(run.classifier.get_parameter("head.weight").detach().clone()))["stage"] == 1
    now = parameters_of(run.classifier.backbone)
    assert all(torch.equal(value, now[name]) for name, value in backbone.items())
    average = average_of(run).get_parameter("head.weight").detach()
    # The share of the new head's unknown initial weights is 0.5^n.
    known = sum(0.5 ** (len(heads) - step) * head for step, head in enumerate(heads))
    assert (average - known).norm() < 0.5 ** len(heads) * 2 * average.norm()
    assert torch.equal(run._evaluated_phi()["head.weight"], average)
    resumed = TrialRun()
    resumed.resume(unpack(pack(run.state())), config, "the state")
    assert numbers(run.run_epoch()) == numbers(resumed.run_epoch())


def test_buffers_and_frozen_parameters_are_shared_and_the_rest_is_not() -> None:
    classifier = started(trial()).classifier
    frozen = next(classifier.backbone.parameters()).requires_grad_(False)
    average = Averaged(classifier, 0.9).classifier
    assert next(average.backbone.parameters()) is frozen
    for ours, theirs in zip(average.buffers(), classifier.buffers(), strict=True):
        assert ours is theirs
    assert average.head.weight.data_ptr() != classifier.head.weight.data_ptr()


@pytest.mark.parametrize("ema", [0.0, 1.0, -0.5, 1.5])
def test_a_decay_outside_of_the_open_interval_is_refused_by_name(ema: float) -> None:
    with pytest.raises(ValueError, match=r"optim\.ema"):
        trial(ema)


def test_a_state_of_a_version_without_averages_can_be_resumed() -> None:
    config = trial(None)
    run, resumed = after(config, 1), TrialRun()
    state = unpack(pack(run.state()))
    del state["average"]
    resumed.resume(state, config, "the state")
    assert numbers(resumed.run_epoch()) == numbers(run.run_epoch())
