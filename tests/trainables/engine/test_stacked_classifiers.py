"""The stacked classifiers against torch.func on each alone, and the formulas of linear heads against the general ones."""

from typing import cast

import pytest
import torch
from fused_trials import ALONE, CLASSIFIERS, members_of
from torch import Tensor
from torch.func import functional_call, jacrev, vjp
from torch.nn import functional as F
from torch.testing import assert_close

from trainables.engine.meta_gradient import named_trained
from trainables.engine.stacked_classifiers import StackedClassifiers, StackedLinear, stack_classifiers
from trainables.loss_config import CrossEntropyConfig
from trainables.models import Classifier, build_classifier
from trainables.stacks import part

TRIALS, CLASSES, PIXELS = 3, 4, 6
LEARNING = slice(1, 3)


def classifiers_of(kind: str) -> list[Classifier]:
    """Classifiers with random parameters; adapters have bottlenecks of different widths."""
    base = ALONE.model_copy(update={"classifier": CLASSIFIERS[kind]})
    configs = [trial.classifier for trial in members_of(base, [CrossEntropyConfig()] * TRIALS)]
    torch.manual_seed(0)
    found = [build_classifier(config, (1, 1, PIXELS), CLASSES, seed).double() for seed, config in enumerate(configs)]
    for classifier in found:
        for parameter in classifier.parameters():
            torch.nn.init.normal_(parameter)
    return found


def phi_of(classifier: Classifier) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in named_trained(classifier).items()}


def cross_entropies(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The losses of each image and their gradients, for logits (N, J, C)."""
    losses = torch.stack([F.cross_entropy(logits[:, j], labels, reduction="none") for j in range(logits.shape[1])], 1)
    return losses, logits.softmax(2) - F.one_hot(labels, CLASSES)[:, None]


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_logits_and_gradients_are_those_of_each_classifier(kind: str) -> None:
    classifiers = classifiers_of(kind)
    alone = [phi_of(classifier) for classifier in classifiers]
    images, cotangent = torch.randn(5, PIXELS).double(), torch.randn(5, TRIALS, CLASSES).double()
    stacked = stack_classifiers(classifiers, LEARNING)
    logits, gradients = stacked.forward(images), stacked.pullback(cotangent)
    for number, phi in enumerate(alone):
        classifier = classifiers[number]
        expected, pull = vjp(lambda given, of=classifier: functional_call(of, given, (images,)), phi)
        assert_close(logits[:, number], expected)
        assert_close(stacked.logits(images, stacked.phi)[:, number], expected)
        [of_phi] = pull(cotangent[:, number].contiguous())
        for gradient, wanted in zip(gradients, cast(dict[str, Tensor], of_phi).values(), strict=True):
            assert_close(part(gradient, number, wanted.shape), wanted)
            assert_close(gradient[number].norm(), wanted.norm())  # the padding has the gradient 0


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_looking_ahead_is_a_step_of_gradient_descent_and_a_derivative_along_the_gradient_after_it(kind: str) -> None:
    classifiers = classifiers_of(kind)
    alone = [phi_of(classifier) for classifier in classifiers]
    images, of_logits = torch.randn(5, PIXELS).double(), torch.randn(5, 2, CLASSES).double()
    meta_images, meta_labels = torch.randn(4, PIXELS).double(), torch.tensor([0, 3, 1, 3])
    stacked = stack_classifiers(classifiers, LEARNING)
    stacked.forward(images)
    # A step size of the backbone and one of the head, both of each trial.
    of_part = {"backbone": [0.02, 0.05], "head": [0.03, 0.01]}
    step_sizes = {name: torch.tensor(of_part[name.split(".")[0]]).double() for name in alone[0]}
    alphas = [step_sizes[name].view(2, *[1] * value.dim()) for name, value in alone[0].items()]
    ahead = stacked.look_ahead(of_logits, alphas, meta_images, lambda logits: cross_entropies(logits, meta_labels))
    for number in (0, 1):
        classifier, phi = classifiers[1 + number], alone[1 + number]

        def logits_at(given: dict[str, Tensor], where: Tensor, of: Classifier = classifier) -> Tensor:
            found: Tensor = functional_call(of, given, (where,))
            return found

        [gradient] = vjp(lambda given, at=logits_at: at(given, images), phi)[1](of_logits[:, number].contiguous())
        phi_hat = {name: phi[name] - step_sizes[name][number] * gradient[name] for name in phi}
        meta_loss, pull = vjp(lambda given, at=logits_at: F.cross_entropy(at(given, meta_images), meta_labels), phi_hat)
        [of_phi_hat] = pull(torch.tensor(1.0).double())
        v = {name: step_sizes[name][number] * of_phi_hat[name] for name in phi}
        assert_close(ahead.meta_loss[number], meta_loss)
        assert_close(ahead.v_norm[number], torch.cat([one.flatten() for one in of_phi_hat.values()]).norm())
        jacobian = jacrev(lambda given, at=logits_at: at(given, images))(phi)
        along_v = sum((jacobian[name].flatten(2) @ v[name].flatten() for name in phi), torch.zeros(5, CLASSES).double())
        assert_close(ahead.logits_along_v[:, number], along_v)


def test_linear_heads_have_formulas_of_their_own_with_the_same_results() -> None:
    images, of_logits, meta_images = (torch.randn(n, *shape).double() for n, shape in ((5, [6]), (5, [2, 4]), (7, [6])))
    labels = torch.tensor([0, 1, 2, 3, 0, 1, 1])
    found = []
    for kind in (StackedLinear, StackedClassifiers):
        stacked = kind(classifiers_of("linear"), LEARNING)
        alphas = [torch.tensor([0.3, 0.1]).double().view(2, *[1] * (whole.dim() - 1)) for whole in stacked.phi]
        logits = stacked.forward(images)
        ahead = stacked.look_ahead(of_logits, alphas, meta_images, lambda given: cross_entropies(given, labels))
        found.append([logits, *ahead, *stacked.pullback(logits)])
    assert isinstance(stack_classifiers(classifiers_of("linear"), LEARNING), StackedLinear)
    for ours, general in zip(*found, strict=True):
        assert_close(ours, general)


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_without_trials_that_learn_or_with_these_alone_logits_and_gradients_are_the_same(kind: str) -> None:
    images, cotangent = torch.randn(5, PIXELS).double(), torch.randn(5, TRIALS, CLASSES).double()
    found = []
    for learning in (LEARNING, slice(0, 3), slice(3, 3)):
        stacked = stack_classifiers(classifiers_of(kind), learning)
        found.append([stacked.forward(images), *stacked.pullback(cotangent)])
    for other in found[1:]:
        assert_close(found[0], other)
