from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exports import export_of
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.nn import functional as F

from trainables import suspects
from trainables.checkpoint import pack
from trainables.config import TrialConfig
from trainables.data import build_data
from trainables.inference import load_model
from trainables.model_folder import MODEL
from trainables.models import build_classifier
from trainables.suspects import cross_examine, examine, folds, likely_wrong
from trainables.trial_run import TrialRun

DIGITS = {"source": "digits", "imbalance_factor": 5, "n_max": 90, "meta_per_class": 5, "val_per_class": 10, "test_per_class": 5}
NOISE = {"kind": "symmetric", "rate": 0.4}
SMALL = {"name": "small_cnn", "widths": [8, 16]}
OPTIM = {"lr": 0.05, "momentum": 0.9, "batch_size": 32, "schedule": "cosine"}
PLAIN: dict[str, Any] = {
    "epochs": 12,
    "data": DIGITS,
    "classifier": SMALL,
    "method": {"name": "cross_entropy"},
    "optim": OPTIM,
    "bilevel": {"meta_gradient": "none"},
}
NOISY = PLAIN | {"data": DIGITS | {"noise": NOISE}}


def best_of(run: TrialRun) -> bytes:
    assert run.best is not None
    return pack({"epoch": run.best.epoch, "theta": run.best.theta})


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrialRun]:
    """A model that was trained with labels of which a third is wrong."""
    folder = tmp_path_factory.mktemp("noisy")
    run, _ = export_of(folder, NOISY)
    return folder / MODEL, run


@pytest.mark.slow
def test_losses_and_probabilities_are_those_that_torch_computes_from_the_model_s_file(noisy: tuple[Path, TrialRun]) -> None:
    file, run = noisy
    found, data = examine(file), run.loaded.data
    classifier = build_classifier(run.config.classifier, (1, 8, 8), 10, 0)
    classifier.load_state_dict(load_file(file))
    pixels = torch.from_numpy(np.asarray(data.source.images)[data.train.ids]).float()
    mean, std = pixels.mean(), pixels.std(correction=0)
    with torch.no_grad():
        logits = classifier.eval()((pixels - mean) / std)
    labels = torch.from_numpy(data.train.labels)
    losses, probabilities = F.cross_entropy(logits, labels, reduction="none"), logits.softmax(1)
    place = {f"id {image}": row for row, image in enumerate(data.train.ids.tolist())}
    rows = torch.tensor([place[name] for name in found.names])
    assert sorted(rows.tolist()) == list(range(len(data.train)))
    assert torch.equal(torch.from_numpy(found.judged.given), labels[rows])
    assert torch.equal(torch.from_numpy(found.judged.predicted), logits.argmax(1)[rows])
    np.testing.assert_allclose(found.judged.loss, losses[rows], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.judged.confidence, probabilities.amax(1)[rows], rtol=1e-4)
    others = probabilities.scatter(1, labels[:, None], 0).amax(1)
    margin = (others - probabilities[range(len(labels)), labels])[rows]
    np.testing.assert_allclose(found.judged.score, margin, atol=1e-5)
    assert (np.diff(found.judged.score) <= 0).all()
    assert np.isnan(found.judged.weight).all()  # plain cross-entropy weighs nothing


@pytest.mark.slow
def test_the_first_images_have_wrong_labels_far_more_often_than_chance_would_have_it(noisy: tuple[Path, TrialRun]) -> None:
    found, data = examine(noisy[0]), noisy[1].loaded.data
    assert found.flipped is not None
    assert found.flipped.sum() == data.num_flipped
    first, chance = found.flipped[: round(0.05 * len(found.names))], found.flipped.mean()
    assert first.mean() > 0.75 > 2 * chance - 0.05
    assert found.flipped[found.likely].mean() > 1.5 * chance


@pytest.mark.slow
def test_models_that_have_not_seen_an_image_know_its_wrong_label_less_by_heart(noisy: tuple[Path, TrialRun]) -> None:
    file, run = noisy
    seen, unseen = examine(file), cross_examine(run.config, 3, lambda fold, epoch: None)
    assert seen.flipped is not None
    assert unseen.flipped is not None
    assert unseen.flipped[: round(0.05 * len(unseen.names))].mean() > 0.75
    assert unseen.judged.loss[unseen.flipped].mean() > seen.judged.loss[seen.flipped].mean()


@pytest.mark.slow
def test_a_model_judges_no_image_that_it_was_trained_on_and_the_test_set_stays_sealed(monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[set[int]] = []
    start = TrialRun.start

    def noting(run: TrialRun, config: TrialConfig, loaded: Any = None) -> None:
        start(run, config, loaded)
        data = run.loaded.data
        trained.append(set(data.train.ids.tolist()))
        assert len(run.loaded.train) == len(data.train) == data.class_counts.sum()
        assert not config.read_test

    monkeypatch.setattr(TrialRun, "start", noting)
    config = TrialConfig.model_validate(PLAIN | {"epochs": 1, "read_test": True})
    epochs: list[tuple[int, int]] = []
    found = cross_examine(config, 3, lambda fold, epoch: epochs.append((fold, epoch)))
    assert epochs == [(0, 1), (1, 1), (2, 1)]
    assert found.fold is not None
    every = set(build_data(config.data, config.seed).train.ids.tolist())
    for name, fold in zip(found.names, found.fold, strict=True):
        assert int(name.removeprefix("id ")) not in trained[fold]
    assert all(len(part) < len(every) for part in trained)
    assert set.union(*trained) == every == {int(name.removeprefix("id ")) for name in found.names}
    again = cross_examine(config, 3, lambda fold, epoch: None)
    assert again.names == found.names
    assert np.array_equal(again.judged.loss, found.judged.loss)


@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=60), number=st.integers(2, 7), seed=st.integers(0, 9))
@settings(max_examples=60)
def test_every_class_is_spread_evenly_over_the_folds_and_never_left_out_of_the_training(
    labels: list[int], number: int, seed: int
) -> None:
    given_labels = np.array(labels)
    fold_of = folds(given_labels, number, np.random.default_rng(seed))
    assert np.array_equal(fold_of, folds(given_labels, number, np.random.default_rng(seed)))
    for c in set(labels):
        mine = fold_of[given_labels == c]
        if len(mine) == 1:
            assert mine.tolist() == [-1]
            continue
        counts = np.bincount(mine, minlength=number)
        assert counts.max() - counts.min() <= 1
        assert all((mine != fold).any() for fold in range(number))


def test_the_only_image_of_a_class_is_not_judged_and_a_note_says_so() -> None:
    data = DIGITS | {"n_max": 12, "imbalance_factor": 12}
    found = cross_examine(TrialConfig.model_validate(PLAIN | {"epochs": 1, "data": data}), 2, lambda fold, epoch: None)
    assert len(found.names) == found.num_images - 3
    assert found.notes == ("not judged, because a model without the only image of a class cannot know the class: 7, 8, 9",)


def test_confident_learning_counts_what_the_thresholds_of_the_classes_say() -> None:
    """Worked by hand: the mean probability of their labels is 0.8 for class 0 and 0.5 for class 1."""
    labels, predicted = np.array([0, 0, 1, 1]), np.array([0, 0, 1, 0])
    of_label = np.array([0.9, 0.7, 0.8, 0.2])
    for confidence, wrong in ((0.8, True), (0.79, False)):
        found = likely_wrong(labels, (predicted, np.array([0.9, 0.7, 0.8, confidence]), of_label), 2)
        assert found.tolist() == [False, False, False, wrong]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "of_class"),
    [
        ({"name": "class_balanced", "beta": 0.99}, True),
        ({"name": "difficulty_net"}, True),
        ({"name": "difficulty_net", "difficulty": "sample"}, False),
        ({"name": "meta_weight_net"}, False),
        ({"name": "meta_sampler"}, True),
        ({"name": "l2rw"}, None),
    ],
)
def test_the_weight_is_the_method_s_in_the_model_s_epoch(method: dict[str, Any], of_class: bool | None, tmp_path: Path) -> None:
    bilevel = {"meta_gradient": "none" if method["name"] == "class_balanced" else "exact", "meta_batch_size": 50}
    run, _ = export_of(tmp_path, PLAIN | {"epochs": 2, "method": method, "bilevel": bilevel})
    judged = examine(tmp_path / MODEL, best_of(run)).judged
    assert run.best is not None
    if of_class is None:
        assert np.isnan(judged.weight).all()  # the weights of L2RW come from the meta loss of a step, and from nothing else
        return
    by_class = [{*judged.weight[judged.given == c].round(6)} for c in range(10)]
    if of_class:
        assert all(len(weights) == 1 for weights in by_class)
    else:
        assert all(len(weights) > 1 for weights in by_class)
    if method["name"] == "class_balanced":
        counts = run.loaded.data.class_counts
        expected = 0.01 / (1 - 0.99**counts)
        np.testing.assert_allclose([next(iter(w)) for w in by_class], expected / expected.mean(), atol=1e-5)
    if method["name"] == "meta_weight_net":
        assert run.best.theta is not None
        theta = run.best.theta
        hidden = F.relu(F.linear(torch.tensor(judged.loss)[:, None].float(), theta["network.0.weight"], theta["network.0.bias"]))
        weights = torch.sigmoid(F.linear(hidden, theta["network.2.weight"], theta["network.2.bias"]))[:, 0]
        np.testing.assert_allclose(judged.weight, weights, atol=1e-5)
    assert np.isnan(examine(tmp_path / MODEL).judged.weight).all()  # without theta there are no weights


@pytest.mark.slow
def test_theta_is_that_of_the_best_epoch_and_not_of_the_last_one() -> None:
    method = {"name": "meta_weight_net", "meta_lr": 0.1}
    run = TrialRun()
    run.start(TrialConfig.model_validate(PLAIN | {"epochs": 2, "method": method, "bilevel": {"meta_batch_size": 50}}))
    run.run_epoch()
    assert run.best is not None
    run.best.metrics["val/acc"] = 2.0  # no later epoch is better
    first = {name: value.clone() for name, value in run.method.state_dict().items()}
    run.run_epoch()
    kept = run.state()["best"]["theta"]
    assert all(torch.equal(kept[name], value) for name, value in first.items())
    assert not all(torch.equal(value, first[name]) for name, value in run.method.state_dict().items())


@pytest.mark.slow
def test_stages_and_adjusted_logits_are_judged_as_the_model_predicts(tmp_path: Path) -> None:
    """The logit adjustment is a part of the model; the head of a later stage is another one."""
    stages = [{"name": "representation"}, {"name": "crt", "epochs": 1}]
    adjusted = {"name": "logit_adjustment", "where": "prediction"}
    for name, changes in {"adjusted": {"method": adjusted}, "staged": {"stages": stages}}.items():
        run, _ = export_of(tmp_path / name, PLAIN | {"epochs": 3} | changes)
        model, data = load_model(tmp_path / name), run.loaded.data
        found = examine(tmp_path / name / MODEL, best_of(run))
        ids = [int(image.removeprefix("id ")) for image in found.names]
        probabilities = model.module(torch.from_numpy(np.asarray(data.source.images)[ids]))
        np.testing.assert_allclose(found.judged.confidence, probabilities.amax(1), rtol=1e-4)
        assert np.array_equal(found.judged.predicted, probabilities.argmax(1))


def test_many_images_are_thinned_out_evenly(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    every = examine(small)
    monkeypatch.setattr(suspects, "MOST", 100)
    some = examine(small)
    assert (len(some.names), some.num_images) == (100, len(every.names))
    assert some.notes == (f"100 of {len(every.names)} training images were judged, evenly spread over the classes",)
    share = np.bincount(some.judged.given, minlength=10) / np.bincount(every.judged.given, minlength=10)
    assert (share > 0).all()
    assert share.max() / share.min() < 1.5
    loss = dict(zip(every.names, every.judged.loss, strict=True))
    np.testing.assert_allclose(some.judged.loss, [loss[name] for name in some.names], rtol=1e-5, atol=1e-6)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    export_of(tmp_path, PLAIN | {"epochs": 1})
    return tmp_path / MODEL


def test_other_images_are_refused(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainables.suspects.build_data", lambda config, seed: build_data(config, seed + 1))
    with pytest.raises(ValueError, match="the images or labels are not those of"):
        examine(small)
