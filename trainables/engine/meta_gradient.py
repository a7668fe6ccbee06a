"""d L_meta/dtheta: the gradient of the meta loss after one virtual step, in three ways.

phi are the classifier's trained parameters and alpha their current step sizes, one for each parameter. theta are the method's
parameters, and the perturbation of the batch if the method has one (context.py):

    phi_hat(theta) = phi - alpha * d/dphi L(phi, theta)              virtual step, plain SGD (Difficulty-Net, Eq. 9)
    v              = alpha * d/dphi_hat L_meta(phi_hat)
    d L_meta/dtheta = -d/dtheta <v, d/dphi L(phi, theta)>

A method reads the classifier's features only, so theta acts after the backbone. With f the features and h the head's parameters,

    <v, d/dphi L> = <f_dot, dL/df> + <v_h, dL/dh>,  f_dot: the derivative of the features along v

The exact gradient therefore takes one forward-mode pass (jvp) through the backbone, which gives f_dot, and then reverse mode in
theta through dL/df and dL/dh. This is a second derivative of the head, never of the backbone. BatchNorm's batch statistics are
part of the differentiated function.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from trainables.engine.draws import META, TRAINING, Key
from trainables.engine.linearize import Linearization, Linearizer, Parameters
from trainables.methods.base import Method
from trainables.methods.context import Context
from trainables.models.classifier import Classifier

Measured = dict[str, Tensor]
"""Quantities (), by metric name, in the order in which they were computed."""


@dataclass(frozen=True)
class Batch:
    """Normalised images (B, C, H, W) with labels (B,). With several workers each has its share of the images, and all else."""

    images: Tensor
    labels: Tensor
    ids: Tensor | None = None
    """Positions of the images in their set, (B,)."""
    partners: Tensor | None = None
    """Labels of the images that are mixed into these, (B,); None without mixing."""
    label_weight: Tensor | None = None
    """Weight of each image's own label, (B,); None without mixing."""


@dataclass(frozen=True)
class Problem:
    """The inputs of d L_meta/dtheta."""

    classifier: Classifier
    """Has the parameters phi; in train mode."""
    method: Method
    """Has the parameters theta."""
    state: Any
    """Result of method.begin_batch for the training batch, on theta's tape."""
    context: Context
    """The context of the virtual phase that `state` was made from."""
    batch: Batch
    """The training batch."""
    meta_batch: Batch
    """The balanced batch of the meta loss."""
    step_sizes: list[Tensor]
    """Step size of the virtual step for each trained parameter of the classifier, () in float64."""
    at_phi: Linearization
    """The linearization of the backbone at phi, on the training images."""
    linearizer: Linearizer
    """Runs the backbone at other points than phi."""
    autocast: torch.dtype | None = None
    """torch.autocast's type where the backbone runs without traced programs; None computes in the parameters' type."""
    key: Key | None = None
    """What the backbone's random numbers depend on."""
    memory: Literal["fast", "lean"] = "fast"
    """`lean` frees the activations at phi before another graph is built; they are recomputed later."""

    @property
    def theta(self) -> list[Tensor]:
        """The method's parameters, then the perturbation of the batch, if the method has one."""
        perturbation = self.context.perturbation
        return [*self.method.parameters(), *([] if perturbation is None else [perturbation])]

    def train_loss(self, features: Tensor, head: Parameters | None = None) -> Tensor:
        """Training loss L, (), from features (B, D). `head`, if given, replaces the head's own parameters."""

        def function(x: Tensor) -> Tensor:
            logits: Tensor = functional_call(self.classifier.head, head or {}, (x,))
            return logits

        return self.method.train_loss(function, features, self.context, self.state)

    def meta_loss(self, logits: Tensor) -> Tensor:
        """Meta loss, (), of the meta batch's logits."""
        losses: Tensor = self.method.meta_loss(logits, self.meta_batch.labels, self.context)
        return losses.mean()

    def stepped(self, gradients: list[Tensor]) -> Parameters:
        """phi_hat, the classifier's trained parameters after the virtual step along `gradients`."""
        named = zip(named_trained(self.classifier).items(), gradients, self.step_sizes, strict=True)
        return {name: parameter - alpha * gradient for (name, parameter), gradient, alpha in named}

    def features_at(self, phi: Parameters, batch: Batch, stream: int = TRAINING) -> Tensor:
        """Features (B, D) at parameters `phi`, with an autograd graph. The running statistics stay unchanged."""
        backbone, num_images = self.classifier.backbone, len(batch.labels)
        parameters, buffers = part(phi, "backbone."), cloned_buffers(backbone)
        return self.linearizer.features(backbone, parameters, buffers, batch.images, num_images, self.autocast, self.key, stream)

    def release(self) -> None:
        """Frees the activations at phi if memory is `lean`."""
        if self.memory == "lean":
            self.at_phi.release()


@dataclass(frozen=True)
class Gradients:
    """A loss () and its gradients."""

    loss: Tensor
    at_head: list[Tensor]
    """Gradients with respect to the features, (B, D), and each trained parameter of the head; on theta's tape if the tape was
    kept."""
    phi: list[Tensor]
    """Gradients with respect to each trained parameter of the classifier, first the backbone, then the head; without a tape."""


@dataclass(frozen=True)
class MetaGradient:
    """d L_meta/dtheta and intermediate results."""

    theta: list[Tensor]
    """The gradient for each tensor of Problem.theta."""
    measured: Measured
    virtual: Gradients | None = None
    """The gradients of the virtual step; None if the mode does not compute them separately."""


def gradients(
    forward: Linearization, loss_of: Callable[[Tensor], Tensor], head: list[Tensor], keep_tape: bool = False
) -> Gradients:
    """The loss `loss_of(features)` and its gradients: autograd from the loss to the features, then the backbone's pullback.

    Args:
        forward: the backbone's forward pass, at phi or at phi_hat.
        loss_of: features (B, D) -> loss ().
        head: the head's trained parameters, which `loss_of` also depends on.
        keep_tape: whether `at_head` can be differentiated again.
    """
    # A leaf, so that autograd stops at the features. The backbone's part of the gradient is the pullback.
    features = forward.features.detach().requires_grad_()
    loss = loss_of(features)
    at_head = list(torch.autograd.grad(loss, [features, *head], create_graph=keep_tape, materialize_grads=True))
    of_phi = forward.pullback(at_head[0].detach(), [gradient.detach() for gradient in at_head[1:]])
    return Gradients(loss, at_head, of_phi)


def exact(problem: Problem) -> MetaGradient:
    """d L_meta/dtheta by one forward-mode pass.

    Cost of the whole iteration: 3.1 plain steps, or 3.45 if memory is `lean`, in floating-point operations
    (docs/performance.md).
    """
    virtual, v, measured = _virtual_and_meta_step(problem)
    features_along_v = problem.at_phi.pushforward(_of_backbone(problem, v))
    return MetaGradient(_through_virtual_step(problem, virtual, features_along_v, v), measured, virtual)


RELATIVE_STEP = 1e-3
"""Step of finite_difference: eps = RELATIVE_STEP / ||v||, so that phi moves by 0.001 for every v. DARTS (Liu et al., 2019) uses
the same rule with 0.01, which has about three times the error on a ResNet-32. A smaller step gains nothing in float32."""


def finite_difference(problem: Problem) -> MetaGradient:
    """d L_meta/dtheta with the features' derivative along v approximated by (f(phi + eps v) - f(phi)) / eps.

    Cost of the whole iteration: 2.8 plain steps. f(phi + eps v) and f(phi) are both computed in the parameters' type, because
    bf16 is too coarse for their difference.
    """
    virtual, v, measured = _virtual_and_meta_step(problem)
    eps = RELATIVE_STEP / norm(v).clamp_min(1e-30)
    phi = named_trained(problem.classifier)
    moved = {name: p.detach() + eps * along for (name, p), along in zip(phi.items(), v, strict=True)}
    with torch.no_grad():
        features, batch, precise = problem.at_phi.features, problem.batch, replace(problem, autocast=None)
        # Without autocast the first forward pass has already computed f(phi) in the parameters' type.
        if problem.autocast is not None:
            features = precise.features_at(phi, batch)
        features_along_v = (precise.features_at(moved, batch) - features) / eps
    return MetaGradient(_through_virtual_step(problem, virtual, features_along_v, v), measured, virtual)


def double_backward(problem: Problem) -> MetaGradient:
    """d L_meta/dtheta by reverse mode through the virtual step's gradients: the textbook method, and the reference in checks.

    Cost of the whole iteration: 4.1 plain steps. Frees theta's tape: nothing else can be differentiated through `problem.state`
    afterwards.

    Raises:
        ValueError: when torch cannot differentiate an operator of the backbone twice.
    """
    problem.release()
    try:
        return _twice(problem)
    except RuntimeError as reason:
        if "is not implemented" not in str(reason):
            raise
        raise ValueError(
            f"the classifier's backbone cannot be differentiated twice: {str(reason).splitlines()[0]}; allowed: "
            "bilevel.meta_gradient=exact, finite_difference or none, and bilevel.check_interval=0"
        ) from reason


def _twice(problem: Problem) -> MetaGradient:
    phi = named_trained(problem.classifier)
    loss = problem.train_loss(problem.features_at(phi, problem.batch), part(phi, "head."))
    # With a graph, because phi_hat must depend on theta through this gradient.
    gradient = torch.autograd.grad(loss, list(phi.values()), create_graph=True, materialize_grads=True)
    phi_hat = problem.stepped(list(gradient))
    features = problem.features_at(phi_hat, problem.meta_batch, META)
    logits = functional_call(problem.classifier.head, part(phi_hat, "head."), (features,))
    meta_loss = problem.meta_loss(logits)
    theta = torch.autograd.grad(meta_loss, problem.theta, materialize_grads=True)
    return MetaGradient(list(theta), {"virtual/loss": loss.detach(), "meta/loss": meta_loss.detach()})


META_GRADIENTS: dict[str, Callable[[Problem], MetaGradient]] = {
    "exact": exact,
    "finite_difference": finite_difference,
    "double_backward": double_backward,
}
"""The modes that use a meta batch; the mode `none` does not."""


def _virtual_and_meta_step(problem: Problem) -> tuple[Gradients, list[Tensor], Measured]:
    """The virtual step's gradients, with those at the head on theta's tape; v for each trained parameter; the measurements."""
    virtual = gradients(problem.at_phi, problem.train_loss, trained(problem.classifier.head), keep_tape=True)
    # Before the meta batch's forward pass, so that the activations of both batches are never held at the same time.
    problem.release()
    with torch.no_grad():
        phi_hat = problem.stepped(virtual.phi)
    # The meta batch is normalised with its own batch statistics. Its update of the running statistics goes into copies, which
    # are discarded.
    buffers = list(cloned_buffers(problem.classifier.backbone).values())
    backbone = list(part(phi_hat, "backbone.").values())
    meta_batch = problem.meta_batch
    at_phi_hat = problem.linearizer(
        problem.classifier.backbone,
        backbone,
        buffers,
        meta_batch.images,
        len(meta_batch.labels),
        pushforward=False,
        key=problem.key,
        stream=META,
    )
    head_hat = {name: p.requires_grad_() for name, p in part(phi_hat, "head.").items()}

    def meta_loss(features: Tensor) -> Tensor:
        return problem.meta_loss(functional_call(problem.classifier.head, head_hat, (features,)))

    meta = gradients(at_phi_hat, meta_loss, list(head_hat.values()))
    measured = {
        "virtual/loss": virtual.loss.detach(),
        "virtual/grad_norm": norm(virtual.phi),
        "meta/loss": meta.loss.detach(),
        "meta/v_norm": norm(meta.phi),
    }
    v = [alpha * gradient for alpha, gradient in zip(problem.step_sizes, meta.phi, strict=True)]
    return virtual, v, measured


def _through_virtual_step(problem: Problem, virtual: Gradients, features_along_v: Tensor, v: list[Tensor]) -> list[Tensor]:
    """-d/dtheta (<f_dot, dL/df> + <v_h, dL/dh>); zeros for parameters that it does not depend on. Keeps theta's tape."""
    cotangents = [features_along_v, *v[len(_of_backbone(problem, v)) :]]
    # dL/df and dL/dh that do not depend on theta have no tape, and autograd refuses outputs without one.
    pairs = [(g, cotangent) for g, cotangent in zip(virtual.at_head, cotangents, strict=True) if g.requires_grad]
    if not pairs:
        return [torch.zeros_like(parameter) for parameter in problem.theta]
    outputs, cotangents = ([pair[i] for pair in pairs] for i in (0, 1))
    # The tape is kept, because double_backward may differentiate through the same state when it checks this gradient.
    found = torch.autograd.grad(outputs, problem.theta, cotangents, retain_graph=True, materialize_grads=True)
    return [-gradient for gradient in found]


def _of_backbone(problem: Problem, of_phi: list[Tensor]) -> list[Tensor]:
    """The entries of the backbone's trained parameters, which come first in `of_phi`."""
    return of_phi[: len(trained(problem.classifier.backbone))]


def named_trained(module: nn.Module) -> Parameters:
    """The module's trained parameters, by name."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def trained(module: nn.Module) -> list[Tensor]:
    """The module's trained parameters: those that require a gradient."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def norm(tensors: Iterable[Tensor]) -> Tensor:
    """The Euclidean norm over all entries of all tensors, ()."""
    return torch.nn.utils.get_total_norm(list(tensors))


def part(parameters: Parameters, prefix: str) -> Parameters:
    """The entries whose names start with `prefix`, with the prefix removed."""
    return {name.removeprefix(prefix): value for name, value in parameters.items() if name.startswith(prefix)}


def cloned_buffers(module: nn.Module) -> Parameters:
    """Copies of the module's buffers, by name."""
    return {name: buffer.clone() for name, buffer in module.named_buffers()}
