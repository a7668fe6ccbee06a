"""A blended image and the weights of its labels are computed here again, one by one, with numpy and plain numbers."""

from pathlib import Path
from typing import Any

import miniatures
import numpy as np
import pydantic
import pytest
import torch

from trainables.collectives import Collectives
from trainables.data.loaded import LoadedData, load_data
from trainables.data.loader import ImageBatch, training_order, training_requests
from trainables.data.mix import Mixing, Mixture, mixing, remix_weight
from trainables.data_config import DataConfig, DigitsConfig, GeneratedConfig, ImageFolderConfig

CPU = torch.device("cpu")
AUGMENTED: list[Any] = ["crop_flip", "cutout"]


def small(**settings: Any) -> GeneratedConfig:
    return GeneratedConfig(**{"mix": "mixup", "augment": AUGMENTED, **settings})


def batches(loaded: LoadedData, config: DataConfig, first: int = 0, **settings: Any) -> list[ImageBatch]:
    labels = torch.from_numpy(loaded.data.train.labels)
    order = training_order(labels, 16, 0, 1)[first:]
    mixed = {"mixing": mixing(config, labels), **settings}
    return list(loaded.train.batches(training_requests(order, 0, first, bool(config.augment), **mixed)))


def mixtures(config: DataConfig, number: int, size: int = 16, labels: torch.Tensor | None = None) -> list[Mixture]:
    drawn = mixing(config, torch.arange(size) % 4 if labels is None else labels)
    assert drawn is not None
    return [drawn.draw(torch.arange(size), seed) for seed in range(number)]


def test_without_a_mix_nothing_is_drawn() -> None:
    assert mixing(DigitsConfig(), torch.arange(10)) is None


@pytest.mark.parametrize("augment", [AUGMENTED, []])
@pytest.mark.parametrize("views", [1, 2])
def test_an_image_is_blended_with_its_partner_as_both_would_be_without_mixing(augment: list[Any], views: int) -> None:
    config = small(augment=augment)
    loaded = load_data(config, 0, CPU, 0)
    labels = torch.from_numpy(loaded.data.train.labels)
    mixed, plain = batches(loaded, config, views=views), batches(loaded, config, views=views, mixing=None)
    lams = []
    for step, positions in enumerate(training_order(labels, 16, 0, 1)):
        mixture = training_requests([positions], 0, step, bool(augment), mixing=mixing(config, labels))[0].mixture
        assert mixture is not None
        lams.append(mixture.lam)
        size, images = len(positions), plain[step].images.double().numpy()
        for row in range(views * size):
            partner = row // size * size + int(mixture.partners[row % size])
            expected = mixture.lam * images[row] + (1 - mixture.lam) * images[partner]
            np.testing.assert_allclose(mixed[step].images[row], expected, rtol=1e-5, atol=1e-5)
            assert mixed[step].partners[row] == labels[positions[partner % size]]  # type: ignore[index]
        assert sorted(mixture.partners.tolist()) == list(range(size))
        assert torch.equal(mixed[step].labels, plain[step].labels)
        assert torch.equal(mixed[step].positions, plain[step].positions)
        assert mixed[step].label_weight.tolist() == [np.float32(mixture.lam)] * (views * size)  # type: ignore[union-attr]
        assert plain[step].partners is plain[step].label_weight is None
    assert len(set(lams)) == len(lams) > 3


@pytest.mark.parametrize("views", [1, 2])
def test_the_shares_of_workers_put_together_are_the_mixed_batch_of_one(views: int) -> None:
    config = small(mix="remix")
    loaded = load_data(config, 0, CPU, 0)
    whole = batches(loaded, config, views=views)
    for size in (2, 5):
        shares = [batches(loaded, config, views=views, collectives=Collectives(rank, size)) for rank in range(size)]
        for number, batch in enumerate(whole):
            assert torch.equal(torch.cat([share[number].images for share in shares]), batch.images)
            for name in ("labels", "positions", "partners", "label_weight"):
                assert all(torch.equal(getattr(share[number], name), getattr(batch, name)) for share in shares)


@pytest.mark.slow
def test_streamed_images_are_mixed_as_well(tmp_path: Path) -> None:
    counts = miniatures.own_images(tmp_path, endings=(".png",))
    config = ImageFolderConfig(root=str(tmp_path), image_size=8, mix="mixup", **counts)
    labels = torch.from_numpy(load_data(config, 0, CPU, 0).data.train.labels)
    order = training_order(labels, 6, 0, 1)
    drawn = mixing(config, labels)
    found = {}
    for readers in (0, 1):
        train = load_data(config, 0, CPU, readers).train
        found[readers] = list(train.batches(training_requests(order, 0, 0, True, views=2, mixing=drawn)))
        workers = [list(train.batches(training_requests(order, 0, 0, True, Collectives(rank, 5), 2, drawn))) for rank in range(5)]
        for number, batch in enumerate(found[readers]):
            assert torch.equal(torch.cat([mine[number].images for mine in workers]), batch.images)
        plain = train.batches(training_requests(order, 0, 0, True, views=2))
        for request, unmixed, batch in zip(
            training_requests(order, 0, 0, True, views=2, mixing=drawn), plain, found[readers], strict=True
        ):
            assert request.mixture is not None
            lam, partners = request.mixture.lam, request.mixture.partners
            torch.testing.assert_close(batch.images, lam * unmixed.images + (1 - lam) * unmixed.images[partners])
    assert all(map(torch.equal, (batch.images for batch in found[0]), (batch.images for batch in found[1])))


def test_a_trial_that_goes_on_in_the_middle_of_an_epoch_mixes_the_same_images() -> None:
    config = small()
    loaded = load_data(config, 0, CPU, 0)
    for whole, rest in zip(batches(loaded, config)[2:], batches(loaded, config, first=2), strict=True):
        assert all(map(torch.equal, whole, rest))


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_lambda_has_the_moments_of_its_distribution(alpha: float) -> None:
    """Beta(alpha, alpha): mean 1/2, variance 1 / (4 (2 alpha + 1))."""
    lams = np.array([mixture.lam for mixture in mixtures(DigitsConfig(mix="mixup", mix_alpha=alpha), 4000)])
    variance = 1 / (4 * (2 * alpha + 1))
    assert lams.mean() == pytest.approx(0.5, abs=5 * (variance / 4000) ** 0.5)
    assert lams.var() == pytest.approx(variance, rel=0.1)


def test_every_image_is_as_likely_a_partner() -> None:
    partners = torch.stack([mixture.partners for mixture in mixtures(DigitsConfig(mix="mixup"), 4000, size=8)])
    for column in partners.unbind(1):
        counts = torch.bincount(column, minlength=8).double()
        assert (counts - 500).abs().max() < 5 * 500**0.5


def label_of_remix(lam: float, own: int, partner: int, kappa: float, tau: float) -> float:
    """lambda_y of Chou et al., 2020, case by case as it is written there."""
    if own / partner >= kappa and lam < tau:
        return 0.0
    if own / partner <= 1 / kappa and 1 - lam < tau:
        return 1.0
    return lam


@pytest.mark.parametrize(("kappa", "tau"), [(3.0, 0.5), (1.0, 0.5), (2.0, 0.9), (3.0, 0.0), (1.0, 1.0)])
def test_remix_gives_the_label_to_the_rarer_class(kappa: float, tau: float) -> None:
    config = DigitsConfig(mix="remix", remix_kappa=kappa, remix_tau=tau)
    sizes = [1, 3, 9, 10, 30, 90]
    pairs = [(own, partner) for own in sizes for partner in sizes]
    own, partners = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    for lam in (0.0, 0.1, 0.5, 0.6, 0.95, 1.0):
        expected = [label_of_remix(lam, *pair, kappa, tau) for pair in pairs]
        assert remix_weight(lam, own, partners, config).tolist() == expected


def test_remix_counts_the_training_images_of_a_class_as_the_trainer_sees_them() -> None:
    labels = torch.tensor([0] * 12 + [1] * 3 + [2])
    config = DigitsConfig(mix="remix")
    counts = {0: 12, 1: 3, 2: 1}
    weights = set()
    for mixture in mixtures(config, 50, labels=labels):
        pairs = [(counts[int(labels[row])], counts[int(labels[partner])]) for row, partner in enumerate(mixture.partners)]
        expected = [np.float32(label_of_remix(mixture.lam, *pair, 3.0, 0.5)) for pair in pairs]
        assert mixture.label_weight.tolist() == expected
        weights |= {weight for weight in expected if weight in (0, 1)}
    assert weights == {0, 1}


def test_the_weight_of_an_image_is_never_changed_by_remix() -> None:
    remix, mixup = (mixtures(DigitsConfig(mix=kind), 5) for kind in ("remix", "mixup"))
    assert [mixture.lam for mixture in remix] == [mixture.lam for mixture in mixup]
    assert all(torch.equal(a.partners, b.partners) for a, b in zip(remix, mixup, strict=True))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mix_alpha": 0.4}, r"mix_alpha is 0.4, but mix is none; allowed: mix mixup or remix, or leave mix_alpha out"),
        ({"remix_kappa": 2.0}, r"remix_kappa is 2, but mix is none; allowed: mix remix, or leave"),
        ({"mix": "mixup", "remix_kappa": 2.0}, r"remix_kappa is 2, but mix is mixup; allowed: mix remix"),
        ({"mix": "mixup", "remix_tau": 0.4}, r"remix_tau is 0.4, but mix is mixup; allowed: mix remix"),
    ],
)
def test_settings_of_a_mix_that_is_not_done_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=message):
        DigitsConfig.model_validate(settings)


def test_records_from_before_there_was_a_mix_still_match() -> None:
    assert not {"mix", "mix_alpha", "remix_kappa", "remix_tau"} & DigitsConfig().model_dump().keys()
    remix = DigitsConfig(mix="remix", mix_alpha=0.3, remix_kappa=2.0)
    assert DigitsConfig.model_validate(remix.model_dump()) == remix


def test_a_mixing_is_of_one_set() -> None:
    drawn = mixing(DigitsConfig(mix="mixup"), torch.tensor([0, 0, 0, 2]))
    assert isinstance(drawn, Mixing)
    assert drawn.class_sizes.tolist() == [3, 3, 3, 1]
