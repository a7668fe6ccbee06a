import pytest
import torch

from trainables.data.loader import meta_order, training_order, training_requests

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


def test_the_meta_batch_depends_on_the_step() -> None:
    assert meta_order(10, 100, seed=0, step=3).tolist() == list(range(10))
    drawn = meta_order(10, 4, seed=0, step=3)
    assert len(set(drawn.tolist())) == 4
    assert not torch.equal(drawn, meta_order(10, 4, seed=0, step=4))
    assert torch.equal(drawn, meta_order(10, 4, seed=0, step=3))


def test_the_draws_of_a_step_do_not_depend_on_where_a_trial_began() -> None:
    order = training_order(LABELS, 128, seed=0, epoch=1)
    whole = training_requests(order, seed=0, first_step=50, augmented=True)
    rest = training_requests(order[2:], seed=0, first_step=52, augmented=True)
    assert [request.draw for request in rest] == [request.draw for request in whole[2:]]
    assert len({request.draw for request in whole}) == 5
    assert all(request.draw is None for request in training_requests(order, seed=0, first_step=50, augmented=False))
