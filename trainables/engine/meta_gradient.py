"""d L_meta/dtheta: how the meta loss after one virtual step depends on the method. The only file with gradients of gradients.

phi are the classifier's parameters, theta the method's, alpha the classifier's current step size:

    phi_hat(theta) = phi - alpha * d/dphi L(phi, theta)              virtual step, plain SGD (Difficulty-Net, Eq. 9)
    v              = d/dphi_hat L_meta(phi_hat)
    d L_meta/dtheta = -alpha * d/dtheta <v, d/dphi L(phi, theta)>

A method sees the classifier through its features only, so theta enters behind them. With f the features and h the head,

    <v, d/dphi L> = <f_dot, dL/df> + <v_h, dL/dh>,  f_dot: the derivative of the features along v

so the exact gradient takes one forward-mode pass through the backbone, for f_dot, and then reverse mode in theta through dL/df
and dL/dh: a second derivative of the head, never of the backbone. Batch statistics are differentiated as they are.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from trainables.engine.linearize import Linearization, Linearizer, Parameters
from trainables.methods.base import Method
from trainables.models.classifier import Classifier

Measured = dict[str, Tensor]
"""Quantities (), by metric name, in the order in which they were computed."""


@dataclass(frozen=True)
class Batch:
    """Normalised images (B, C, H, W) with labels (B,). Of several workers each has all labels and its share of the images."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Problem:
    """All that d L_meta/dtheta depends on."""

    classifier: Classifier
    """phi; in train mode."""
    method: Method
    """theta."""
    state: Any
    """method.begin_batch(...) for the training batch, on theta's tape."""
    batch: Batch
    """The training batch."""
    meta_batch: Batch
    """The balanced batch of the meta loss."""
    alpha: Tensor
    """Step size of the virtual step, () in float64."""
    at_phi: Linearization
    """The backbone at phi and the training images."""
    linearizer: Linearizer
    """Runs the backbone elsewhere."""
    autocast: torch.dtype | None = None
    """What torch.autocast uses where the backbone runs outside the linearizer; None computes in the parameters' type."""
    memory: Literal["fast", "lean"] = "fast"
    """`lean` frees the activations at phi as soon as another graph is built."""

    @property
    def theta(self) -> list[Tensor]:
        """The parameters of the method."""
        return list(self.method.parameters())

    def train_loss(self, features: Tensor, head: Parameters | None = None) -> Tensor:
        """L, (), from features (B, D); `head` replaces the head's own parameters."""

        def function(x: Tensor) -> Tensor:
            logits: Tensor = functional_call(self.classifier.head, head or {}, (x,))
            return logits

        return self.method.train_loss(function, features, self.batch.labels, self.state)

    def features_at(self, phi: Parameters, batch: Batch) -> Tensor:
        """Features (B, D) with `phi` for parameters, by plain autograd; no running statistics move."""
        backbone, num_images = self.classifier.backbone, len(batch.labels)
        parameters, buffers = part(phi, "backbone."), cloned_buffers(backbone)
        return self.linearizer.features(backbone, parameters, buffers, batch.images, num_images, self.autocast)

    def release(self) -> None:
        """Frees the activations at phi in the lean profile."""
        if self.memory == "lean":
            self.at_phi.release()


@dataclass(frozen=True)
class Gradients:
    """A loss () and its gradients."""

    loss: Tensor
    at_head: list[Tensor]
    """By the features, (B, D), then by each parameter of the head; on theta's tape if that was kept."""
    phi: list[Tensor]
    """By each parameter of the classifier, the backbone's first; without a tape."""


@dataclass(frozen=True)
class MetaGradient:
    """d L_meta/dtheta, one tensor for each parameter of the method, and what else was computed on the way."""

    theta: list[Tensor]
    measured: Measured
    virtual: Gradients | None = None
    """The gradients of the virtual step, where the mode computes them apart."""


def gradients(
    forward: Linearization, loss_of: Callable[[Tensor], Tensor], head: list[Tensor], keep_tape: bool = False
) -> Gradients:
    """The loss `loss_of(features)` and its gradients: by autograd from the loss to the features, then by the backbone's pullback.

    Args:
        forward: the backbone's forward pass, at phi or at phi_hat.
        loss_of: features (B, D) -> loss ().
        head: the parameters that `loss_of` reads besides.
        keep_tape: whether `at_head` can be differentiated again.
    """
    features = forward.features.detach().requires_grad_()
    loss = loss_of(features)
    at_head = list(torch.autograd.grad(loss, [features, *head], create_graph=keep_tape, materialize_grads=True))
    of_phi = forward.pullback(at_head[0].detach(), [gradient.detach() for gradient in at_head[1:]])
    return Gradients(loss, at_head, of_phi)


def exact(problem: Problem) -> MetaGradient:
    """By one forward-mode pass. 3.1 plain steps with the rest of the iteration, 3.45 when memory is `lean`."""
    virtual, v, measured = _virtual_and_meta_step(problem)
    features_along_v = problem.at_phi.pushforward(_of_backbone(problem, v))
    return MetaGradient(_through_virtual_step(problem, virtual, features_along_v, v), measured, virtual)


RELATIVE_STEP = 1e-3
"""Of finite_difference: eps = RELATIVE_STEP / ||v||, so that phi moves by 0.001, whatever v is. DARTS (Liu et al., 2019) has the
same rule with 0.01, which leaves about three times the error on a ResNet-32; a smaller step gains nothing in float32."""


def finite_difference(problem: Problem) -> MetaGradient:
    """By (f(phi + eps v) - f(phi)) / eps for the features' derivative along v: 2.8 plain steps, but an approximation.

    Both features are computed in the parameters' type: bf16 cannot tell them apart.
    """
    virtual, v, measured = _virtual_and_meta_step(problem)
    eps = RELATIVE_STEP / measured["meta/v_norm"].clamp_min(1e-12)
    names = [name for name, _ in problem.classifier.named_parameters()]
    moved = {name: p.detach() + eps * along for name, p, along in zip(names, problem.classifier.parameters(), v, strict=True)}
    with torch.no_grad():
        features, batch, precise = problem.at_phi.features, problem.batch, replace(problem, autocast=None)
        if problem.autocast is not None:
            features = precise.features_at(dict(problem.classifier.named_parameters()), batch)
        features_along_v = (precise.features_at(moved, batch) - features) / eps
    return MetaGradient(_through_virtual_step(problem, virtual, features_along_v, v), measured, virtual)


def double_backward(problem: Problem) -> MetaGradient:
    """By reverse mode through the virtual step's own gradients: the textbook's way, and our reference. 4.1 plain steps.

    It frees theta's tape: nothing else can be differentiated through `problem.state` afterwards.
    """
    problem.release()
    phi: Parameters = dict(problem.classifier.named_parameters())
    loss = problem.train_loss(problem.features_at(phi, problem.batch), part(phi, "head."))
    gradient = torch.autograd.grad(loss, list(phi.values()), create_graph=True, materialize_grads=True)
    phi_hat = {name: p - problem.alpha * g for (name, p), g in zip(phi.items(), gradient, strict=True)}
    features = problem.features_at(phi_hat, problem.meta_batch)
    logits = functional_call(problem.classifier.head, part(phi_hat, "head."), (features,))
    meta_loss = F.cross_entropy(logits, problem.meta_batch.labels)
    theta = torch.autograd.grad(meta_loss, problem.theta, materialize_grads=True)
    return MetaGradient(list(theta), {"virtual/loss": loss.detach(), "meta/loss": meta_loss.detach()})


META_GRADIENTS: dict[str, Callable[[Problem], MetaGradient]] = {
    "exact": exact,
    "finite_difference": finite_difference,
    "double_backward": double_backward,
}
"""The modes that look at a meta batch; `none` does not."""


def _virtual_and_meta_step(problem: Problem) -> tuple[Gradients, list[Tensor], Measured]:
    """The virtual step's gradients, on theta's tape at the head; v, by each parameter of the classifier; what was measured."""
    head: list[Tensor] = list(problem.classifier.head.parameters())
    virtual = gradients(problem.at_phi, problem.train_loss, head, keep_tape=True)
    problem.release()
    phi_hat = {
        name: p.detach() - problem.alpha * g
        for (name, p), g in zip(problem.classifier.named_parameters(), virtual.phi, strict=True)
    }
    # The meta batch is normalised with its own statistics; what it does to the running ones is thrown away.
    buffers = list(cloned_buffers(problem.classifier.backbone).values())
    backbone = list(part(phi_hat, "backbone.").values())
    meta_batch = problem.meta_batch
    at_phi_hat = problem.linearizer(problem.classifier.backbone, backbone, buffers, meta_batch.images, len(meta_batch.labels))
    head_hat = {name: p.requires_grad_() for name, p in part(phi_hat, "head.").items()}

    def meta_loss(features: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(problem.classifier.head, head_hat, (features,)), meta_batch.labels)

    meta = gradients(at_phi_hat, meta_loss, list(head_hat.values()))
    measured = {
        "virtual/loss": virtual.loss.detach(),
        "virtual/grad_norm": norm(virtual.phi),
        "meta/loss": meta.loss.detach(),
        "meta/v_norm": norm(meta.phi),
    }
    return virtual, meta.phi, measured


def _through_virtual_step(problem: Problem, virtual: Gradients, features_along_v: Tensor, v: list[Tensor]) -> list[Tensor]:
    """-alpha * d/dtheta (<f_dot, dL/df> + <v_h, dL/dh>), zeros where theta has no part in it; theta's tape stays."""
    cotangents = [features_along_v, *v[len(_of_backbone(problem, v)) :]]
    pairs = [(g, cotangent) for g, cotangent in zip(virtual.at_head, cotangents, strict=True) if g.requires_grad]
    if not pairs:
        return [torch.zeros_like(parameter) for parameter in problem.theta]
    outputs, cotangents = ([pair[i] for pair in pairs] for i in (0, 1))
    found = torch.autograd.grad(outputs, problem.theta, cotangents, retain_graph=True, materialize_grads=True)
    return [-problem.alpha * gradient for gradient in found]


def _of_backbone(problem: Problem, of_phi: list[Tensor]) -> list[Tensor]:
    """The leading entries, those of the backbone's parameters."""
    return of_phi[: len(list(problem.classifier.backbone.parameters()))]


def norm(tensors: Iterable[Tensor]) -> Tensor:
    """The Euclidean norm of all entries together, ()."""
    return torch.nn.utils.get_total_norm(list(tensors))


def part(parameters: Parameters, prefix: str) -> Parameters:
    """The entries below `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in parameters.items() if name.startswith(prefix)}


def cloned_buffers(module: nn.Module) -> Parameters:
    """The module's buffers by name, safe to be changed."""
    return {name: buffer.clone() for name, buffer in module.named_buffers()}
