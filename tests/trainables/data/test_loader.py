import numpy as np
import pytest
import torch

from trainables.data.loader import meta_order, training_order, training_requests
from trainables.seeds import derive_seed

LABELS = torch.repeat_interleave(torch.arange(4), torch.tensor([400, 100, 20, 4]))


def test_an_epoch_takes_each_image_once_in_an_order_of_its_own() -> None:
    first, second = (torch.cat(training_order(LABELS, 128, seed=0, epoch=epoch)) for epoch in (1, 2))
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(524))
    assert first.tolist() != second.tolist()
    assert [len(positions) for positions in training_order(LABELS, 128, seed=0, epoch=1)] == [128, 128, 128, 128, 12]
    assert torch.equal(first, torch.cat(training_order(LABELS, 128, seed=0, epoch=1)))
    assert not torch.equal(first, torch.cat(training_order(LABELS, 128, seed=1, epoch=1)))


@pytest.mark.parametrize(("sampler", "power"), [("instance", 1.0), ("square_root", 0.5), ("class_balanced", 0.0)])
def test_classes_come_in_proportion_to_a_power_of_their_size(sampler: str, power: float) -> None:
    epochs = [torch.cat(training_order(LABELS, 128, seed=3, epoch=epoch, sampler=sampler)) for epoch in range(1, 201)]
    assert all(len(epoch) == 524 for epoch in epochs)
    found = torch.bincount(LABELS[torch.cat(epochs)]).double()
    expected = torch.tensor([400.0, 100.0, 20.0, 4.0]).pow(power)
    # Five standard deviations of a proportion from 104 800 draws.
    torch.testing.assert_close(found / found.sum(), (expected / expected.sum()).double(), atol=5 * 0.5 / 104_800**0.5, rtol=0)


def test_within_a_class_every_image_is_as_likely() -> None:
    epochs = [torch.cat(training_order(LABELS, 128, seed=3, epoch=epoch, sampler="class_balanced")) for epoch in range(1, 201)]
    found = torch.bincount(torch.cat(epochs), minlength=524)[400:500].double()  # the second class: 26 200 draws for 100 images
    assert found.min() > 262 - 5 * 262**0.5
    assert found.max() < 262 + 5 * 262**0.5


@pytest.mark.parametrize("epoch", [1, 4, 10])
def test_progressive_sampling_moves_from_the_images_to_the_classes(epoch: int) -> None:
    """Kang et al., ICLR 2020, Eq. 2: p_j(t) = (1 - t/T) n_j / N + (t/T) / C, with t from 0 to 9 and T = 10."""
    drawn = [torch.cat(training_order(LABELS, 128, seed, epoch, "progressively_balanced", num_epochs=10)) for seed in range(200)]
    found = np.bincount(LABELS[torch.cat(drawn)]) / 104_800
    t = epoch - 1
    expected = [(1 - t / 10) * size / 524 + t / 10 / 4 for size in (400, 100, 20, 4)]
    np.testing.assert_allclose(found, expected, atol=5 * 0.5 / 104_800**0.5, rtol=0)


def test_a_class_without_a_training_image_takes_no_part_in_progressive_sampling() -> None:
    labels = torch.repeat_interleave(torch.tensor([0, 2]), torch.tensor([300, 100]))  # noise emptied class 1
    drawn = torch.cat([torch.cat(training_order(labels, 32, seed, 2, "progressively_balanced", 2)) for seed in range(100)])
    share = (labels[drawn] == 2).double().mean().item()
    assert share == pytest.approx(0.5 * 0.25 + 0.5 * 0.5, abs=5 * 0.5 / 40_000**0.5)


def test_the_meta_batch_depends_on_the_step() -> None:
    assert meta_order(10, 100, seed=0, step=3).tolist() == list(range(10))
    drawn = meta_order(10, 4, seed=0, step=3)
    assert drawn.untyped_storage().nbytes() == 4 * 8
    assert len(set(drawn.tolist())) == 4
    assert not torch.equal(drawn, meta_order(10, 4, seed=0, step=4))
    assert torch.equal(drawn, meta_order(10, 4, seed=0, step=3))


def test_the_draws_of_a_step_do_not_depend_on_where_a_trial_began() -> None:
    order = training_order(LABELS, 128, seed=0, epoch=1)
    whole = training_requests(order, seed=0, first_step=50, augmented=True)
    rest = training_requests(order[2:], seed=0, first_step=52, augmented=True)
    assert [request.draws for request in rest] == [request.draws for request in whole[2:]]
    assert len({request.draws for request in whole}) == 5
    assert not any(request.draws for request in training_requests(order, seed=0, first_step=50, augmented=False))


def test_views_have_draws_of_their_own_and_the_first_view_those_of_a_batch_without_others() -> None:
    order = training_order(LABELS, 128, seed=0, epoch=1)
    alone = training_requests(order, seed=0, first_step=50, augmented=True)
    three = training_requests(order, seed=0, first_step=50, augmented=True, views=3)
    assert [request.draws[:1] for request in three] == [request.draws for request in alone]
    assert [request.draws[0] for request in alone] == [derive_seed(0, "augment", step) for step in range(50, 55)]
    assert len({draw for request in three for draw in request.draws}) == 15
    assert not any(request.draws for request in training_requests(order, seed=0, first_step=50, augmented=False, views=3))
