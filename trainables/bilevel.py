"""One training iteration in three steps: virtual, meta, actual. The only file with gradients of gradients.

phi are the classifier's parameters, theta the method's, alpha the classifier's current step size:

    phi_hat(theta) = phi - alpha * d/dphi L(phi, theta)              virtual step, plain SGD (Eq. 9)
    v              = d/dphi_hat L_meta(phi_hat)
    d L_meta/dtheta = -alpha * d/dtheta <v, d/dphi L(phi, theta)>    exact: <v, d/dphi L> is the derivative of L along v, taken
                                                                     by one forward-mode pass, then reverse mode in theta
    theta <- optimiser step with d/dtheta (L_meta + R)               R: the method's regulariser (Eq. 10)
    phi   <- optimiser step with d/dphi L(phi, theta_new)            actual step on the same batch (Eq. 11)

No second backward pass through the network is ever built. Batch statistics are differentiated as they are; running statistics
of BatchNorm move once in an iteration, with the one forward pass that serves both the virtual and the actual step.
"""

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn import functional as F
from torch.optim import Optimizer

from trainables.methods.base import Method
from trainables.models.classifier import Classifier

Parameters = dict[str, Tensor]


@dataclass(frozen=True)
class Batch:
    """Normalised images (B, C, H, W) with labels (B,)."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class StepLosses:
    """What one iteration measured, each (). `meta_grad_norm` is ||d L_meta/dtheta|| / alpha without the regulariser.

    The meta quantities are None where no meta loss was computed.
    """

    train_loss: Tensor
    meta_loss: Tensor | None = None
    meta_grad_norm: Tensor | None = None


@dataclass(frozen=True)
class MetaGradient:
    """d L_meta/dtheta, one tensor for each parameter of the method, with the meta loss () that it belongs to."""

    theta_gradient: list[Tensor]
    meta_loss: Tensor | None


def training_step(
    classifier: Classifier,
    method: Method,
    optimizer: Optimizer,
    meta_optimizer: Optimizer | None,
    batch: Batch,
    meta_batch: Batch | None,
    meta_gradient: str,
) -> StepLosses:
    """One iteration: theta is updated first (when the method has one), then phi, both on the same batch.

    Args:
        classifier: phi; in train mode.
        method: theta.
        optimizer: of phi; its current learning rate is alpha.
        meta_optimizer: of theta; None when the method has no parameters.
        batch: the training batch.
        meta_batch: the balanced batch of the meta loss; needed with `exact`.
        meta_gradient: `exact` or `none`.
    """
    features = classifier.backbone(batch.images)
    with torch.no_grad():
        losses = F.cross_entropy(classifier.head(features), batch.labels, reduction="none")
    meta: MetaGradient | None = None
    alpha = float(optimizer.param_groups[0]["lr"])
    if meta_optimizer is not None:
        state = method.begin_batch(batch.labels, losses)
        if meta_gradient == "exact":
            assert meta_batch is not None
            meta = exact_meta_gradient(classifier, method, batch, features, state, meta_batch, alpha)
        _update_theta(method, meta_optimizer, method.meta_regularizer(state), meta)
    with torch.no_grad():  # the actual step takes what theta says as given (Eq. 11)
        state = method.begin_batch(batch.labels, losses)
    train_loss = method.train_loss(classifier.head, features, batch.labels, state)
    optimizer.zero_grad()
    train_loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    if meta_optimizer is None:
        return StepLosses(train_loss.detach())
    if meta is None:
        return StepLosses(train_loss.detach(), None, torch.zeros((), device=train_loss.device))
    norm = torch.linalg.vector_norm(torch.cat([g.flatten() for g in meta.theta_gradient]))
    # At the cosine's last step alpha can reach 0; then there is no virtual step and no gradient.
    return StepLosses(train_loss.detach(), meta.meta_loss, norm / alpha if alpha > 0 else norm)


def exact_meta_gradient(
    classifier: Classifier, method: Method, batch: Batch, features: Tensor, state: Any, meta_batch: Batch, alpha: float
) -> MetaGradient:
    """d L_meta(phi_hat(theta))/dtheta without double backward; equal to it up to rounding.

    Args:
        classifier: phi, in train mode.
        method: theta.
        batch: the training batch.
        features: classifier.backbone(batch.images), (B, D), with its graph, which stays alive for the actual step.
        state: method.begin_batch(...) with its graph to theta.
        meta_batch: the balanced batch.
        alpha: step size of the virtual step.
    """
    phi = dict(classifier.named_parameters())
    loss = method.train_loss(classifier.head, features, batch.labels, state)
    gradients = torch.autograd.grad(loss, list(phi.values()), retain_graph=True)
    phi_hat = {
        name: (parameter - alpha * gradient).detach().requires_grad_()
        for (name, parameter), gradient in zip(phi.items(), gradients, strict=True)
    }
    # The meta pass normalises with its own batch statistics; what it does to the running ones is thrown away.
    meta_logits = functional_call(classifier, (phi_hat, _cloned_buffers(classifier)), (meta_batch.images,))
    meta_loss = F.cross_entropy(meta_logits, meta_batch.labels)
    v = dict(zip(phi_hat, torch.autograd.grad(meta_loss, list(phi_hat.values())), strict=True))
    derivative = _loss_derivative_along(v, classifier, method, batch, state)
    theta = list(method.parameters())
    gradients_in_theta = torch.autograd.grad(derivative, theta, retain_graph=True, allow_unused=True)
    return MetaGradient(
        [torch.zeros_like(p) if g is None else -alpha * g for p, g in zip(theta, gradients_in_theta, strict=True)],
        meta_loss.detach(),
    )


def _loss_derivative_along(v: Parameters, classifier: Classifier, method: Method, batch: Batch, state: Any) -> Tensor:
    """<v, d/dphi L(phi, theta)>, (), differentiable in theta. The backbone needs no tape: theta enters behind it."""

    def backbone(parameters: Parameters) -> Tensor:
        # BatchNorm counts batches in place, which a transform refuses on captured buffers: hence clones, made inside.
        buffers = _cloned_buffers(classifier.backbone)
        return functional_call(classifier.backbone, (parameters, buffers), (batch.images,))  # type: ignore[no-any-return]

    def loss(head_parameters: Parameters, features: Tensor) -> Tensor:
        def head(x: Tensor) -> Tensor:
            return functional_call(classifier.head, head_parameters, (x,))  # type: ignore[no-any-return]

        return method.train_loss(head, features, batch.labels, state)

    features, features_along_v = _forward_mode(backbone, (_detached(classifier.backbone),), (_part(v, "backbone."),))
    primals = (_detached(classifier.head), features)
    _, derivative = _forward_mode(loss, primals, (_part(v, "head."), features_along_v))
    return derivative


def _forward_mode(function: Callable[..., Tensor], primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
    """The value of `function` and its derivative along `tangents`, in one pass."""
    _load_rules()
    result = jvp(function, primals, tangents)
    return result[0], result[1]


@functools.cache
def _load_rules() -> None:
    """Loads torch's rules for forward mode once: they are written in TorchScript, whose deprecation is not our user's affair."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
        jvp(torch.sin, (torch.zeros(()),), (torch.ones(()),))


def _update_theta(method: Method, optimizer: Optimizer, regularizer: Tensor, meta: MetaGradient | None) -> None:
    """One optimiser step of theta along d L_meta/dtheta + d R/dtheta."""
    theta = list(method.parameters())
    of_regularizer: tuple[Tensor | None, ...] = (None,) * len(theta)
    if regularizer.requires_grad:
        of_regularizer = torch.autograd.grad(regularizer, theta, allow_unused=True)
    of_meta_loss = meta.theta_gradient if meta else [torch.zeros_like(p) for p in theta]
    for parameter, from_meta, from_regularizer in zip(theta, of_meta_loss, of_regularizer, strict=True):
        parameter.grad = from_meta if from_regularizer is None else from_meta + from_regularizer
    optimizer.step()


def _cloned_buffers(module: nn.Module) -> Parameters:
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


def _detached(module: nn.Module) -> Parameters:
    return {name: parameter.detach() for name, parameter in module.named_parameters()}


def _part(parameters: Parameters, prefix: str) -> Parameters:
    """The entries below `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in parameters.items() if name.startswith(prefix)}
