from typing import get_args

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call
from torch.nn import functional as F
from torch.testing import assert_close

from trainables.classifier_config import ClassifierSettings, SmallCNNConfig
from trainables.models.heads import HEADS, MIN_LENGTH, CosineHead, build_head


def cosine_head(scale: float = 30.0, dtype: torch.dtype = torch.float64) -> CosineHead:
    torch.manual_seed(0)
    return CosineHead(SmallCNNConfig(head="cosine", scale=scale), 6, 4).to(dtype)


def some_features(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(5, 6, dtype=dtype).relu().requires_grad_()


def test_the_table_and_the_settings_name_the_same_heads() -> None:
    assert list(HEADS) == list(get_args(ClassifierSettings.model_fields["head"].annotation))


def test_a_scale_of_a_linear_head_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"scale is 16, but head is linear; allowed: head cosine, or leave scale out"):
        SmallCNNConfig(scale=16.0)
    assert SmallCNNConfig.model_validate(SmallCNNConfig().model_dump()) == SmallCNNConfig()  # which holds the default
    assert SmallCNNConfig(head="cosine", scale=16.0).scale == 16


@pytest.mark.parametrize(("head", "num_parameters"), [("linear", 4 * 6 + 4), ("cosine", 4 * 6)])
def test_a_head_has_the_parameters_it_should(head: str, num_parameters: int) -> None:
    built = build_head(SmallCNNConfig(head=head), 6, 4)
    assert sum(parameter.numel() for parameter in built.parameters()) == num_parameters


def test_logits_of_a_cosine_head_are_scaled_cosines() -> None:
    head, features = cosine_head(scale=7.0), some_features()
    assert_close(head(features), 7 * F.cosine_similarity(features[:, None], head.weight[None], dim=2))


def test_lengths_of_features_and_class_vectors_change_nothing() -> None:
    head, features = cosine_head(), some_features()
    expected = head(features)
    with torch.no_grad():
        head.weight.mul_(torch.tensor([[0.1], [1.0], [3.0], [50.0]]))
    assert_close(head(features * 20), expected)


@pytest.mark.parametrize("length", [1.0, MIN_LENGTH / 10])
def test_derivatives_of_a_cosine_head_are_those_of_finite_differences(length: float) -> None:
    """Twice, since the exact meta-gradient differentiates the head twice; for ordinary features and for those almost 0."""
    head, features = cosine_head(scale=1.0), (length * some_features()).detach().requires_grad_()
    weight = head.weight.detach().requires_grad_()

    def logits(features: Tensor, weight: Tensor) -> Tensor:
        return functional_call(head, {"weight": weight}, (features,))

    eps, atol = 1e-6 * length, 1e-5 / length  # derivatives by the features grow as these shrink
    assert gradcheck(logits, (features, weight), eps=eps, atol=atol)
    assert gradgradcheck(logits, (features, weight), eps=eps, atol=atol)


@pytest.mark.parametrize("length", [0.0, 1e-30, 1e-12, MIN_LENGTH, 1e-3])
def test_a_feature_vector_of_zeros_or_almost_has_finite_logits_and_derivatives_in_float32(length: float) -> None:
    head, features = cosine_head(dtype=torch.float32), some_features(torch.float32)
    with torch.no_grad():
        features[1] = length * F.normalize(torch.ones(6), dim=0)
    logits = head(features)
    both = [features, head.weight]
    first = torch.autograd.grad(F.cross_entropy(logits, torch.tensor([0, 1, 2, 3, 0])), both, create_graph=True)
    second = torch.autograd.grad(sum((gradient * torch.randn_like(gradient)).sum() for gradient in first), both)
    for value in (logits, *first, *second):
        assert value.isfinite().all()
    if length == 0:
        assert logits[1].abs().max() == 0
        assert first[0][1].abs().max() > 0


def test_a_head_that_the_table_does_not_hold_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"unknown head 'round'; choose one of \['cosine', 'linear'\]"):
        build_head(SmallCNNConfig().model_copy(update={"head": "round"}), 6, 4)
