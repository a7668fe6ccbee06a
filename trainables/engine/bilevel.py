"""One training iteration in three steps: the virtual step, the meta step and the actual step.

The virtual and the meta step compute theta's gradient (meta_gradient.py). Then theta and phi are updated:

    theta <- optimiser step with d/dtheta (L_meta + R)               R: the method's regulariser (Difficulty-Net, Eq. 10)
    phi   <- optimiser step with d/dphi L(phi, theta_new)            actual step, on the same batch (Eq. 11)

The virtual and the actual step share one forward pass of the backbone, because features do not depend on theta. Only this
forward pass updates BatchNorm's running statistics, once per iteration.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from trainables.collectives import ALONE, Collectives
from trainables.config import BilevelConfig
from trainables.engine.draws import Key
from trainables.engine.linearize import Linearization, Linearizer
from trainables.engine.meta_gradient import (
    META_GRADIENTS,
    Batch,
    Gradients,
    Measured,
    MetaGradient,
    Problem,
    double_backward,
    gradients,
    norm,
    trained,
)
from trainables.engine.optimizers import step_sizes
from trainables.engine.weights import WeightsByClass
from trainables.methods.base import Method
from trainables.methods.context import Context, Moment
from trainables.models.classifier import Classifier


@dataclass(frozen=True)
class Course:
    """The course of a trial, as far as methods depend on it."""

    moment: Moment
    """The current step; the caller moves it before each step."""
    seed: int = 0
    """Seed of the methods' random draws."""
    first_meta_step: int = 0
    """Earlier steps are without a meta step."""


class BilevelStep:
    """The iterations of one classifier and one method.

    Args:
        classifier: has the parameters phi; in train mode.
        method: has the parameters theta.
        optimizer: updates phi; its current learning rates are alpha.
        meta_optimizer: updates theta; None when the method has no parameters.
        config: how theta's gradient is computed.
        linearizer: runs the backbone; all classifiers of one architecture may share it.
        collectives: the workers of the trial. Each worker runs this step with its share of the images.
        course: where in the training a step is.
    """

    def __init__(
        self,
        classifier: Classifier,
        method: Method,
        optimizer: Optimizer,
        meta_optimizer: Optimizer | None,
        config: BilevelConfig,
        linearizer: Linearizer,
        collectives: Collectives = ALONE,
        course: Course | None = None,
    ) -> None:
        self.classifier, self.method = classifier, method
        self.optimizer, self.meta_optimizer = optimizer, meta_optimizer
        self.config, self._linearizer, self._collectives = config, linearizer, collectives
        self._phi, self._theta = trained(classifier), list(method.parameters())
        self._head = trained(classifier.head)
        self._buffers = list(classifier.backbone.buffers())
        self.find_backbone()
        self._has_meta_step = meta_optimizer is not None or method.perturbation_shape(1) is not None
        # A method without a meta step pays for none: forward mode is not even traced.
        self._pushforward = self._has_meta_step and config.meta_gradient == "exact"
        self.course = course or Course(Moment.zero())
        self._key = Key(self.course.moment.step, torch.tensor(self.course.seed, device=self.course.moment.step.device))
        self.weights = WeightsByClass(method.num_classes, self._phi[0].device)

    def find_backbone(self) -> None:
        """Takes the memory that the backbone's parameters have; called again by whoever gives them other memory."""
        # Detached tensors share memory with the parameters: their values stay current, and the traced programs record no graph.
        self._backbone = [parameter.detach() for parameter in trained(self.classifier.backbone)]

    def updates_theta(self, step: int) -> bool:
        """Whether `step`, counted from 0 over the whole trial, updates theta or differentiates by the batch's perturbation."""
        return self._has_meta_step and step >= self.course.first_meta_step and step % self.config.meta_interval == 0

    def needs_meta_batch(self, step: int) -> bool:
        """Whether `step` computes a meta loss."""
        return self.updates_theta(step) and self.config.meta_gradient != "none"

    def compares(self, step: int) -> bool:
        """Whether `step` compares its meta-gradient with the reference."""
        every = self.config.check_interval * self.config.meta_interval
        return self.needs_meta_batch(step) and every > 0 and step % every == 0 and self.config.meta_gradient != "double_backward"

    def __call__(self, batch: Batch, meta_batch: Batch | None, step: int) -> Measured:
        """One iteration: updates theta if `step` is due, then phi, both on the same batch.

        Args:
            batch: the training batch.
            meta_batch: the balanced batch of the meta loss, if `step` needs one.
            step: counted from 0 over the whole trial.

        Returns: the measured quantities, each (), in the order of computation; finite unless the trial diverges. `train/loss` and
            `train/grad_norm` belong to the actual step, `virtual/...` to the virtual step. `meta/grad_norm` is
            ||d L_meta/dtheta|| / alpha without the regulariser, `meta/v_norm` the norm of the meta loss's gradient by phi_hat,
            `theta/grad_norm` includes the regulariser. `meta/grad_cosine` compares d L_meta/dtheta with double backward.
            Quantities that were not computed are absent.
        """
        stale = self.config.actual_step == "stale"
        images, number = batch.images, len(batch.labels)
        at_phi = self._linearizer(
            self.classifier.backbone, self._backbone, self._buffers, images, number, self._pushforward, self._key
        )
        context = self._context(batch, at_phi.features)
        measured: Measured = {}
        actual: Gradients | None = None
        state = None
        if self.updates_theta(step):
            context = context.virtual()
            state = self.method.begin_batch(context)
            meta, of_perturbation = self._update_theta(at_phi, batch, meta_batch, context, state, step)
            measured = meta.measured
            actual = meta.virtual if stale else None
            context = context.actual(of_perturbation)
        if actual is None:
            # `stale` keeps the state from before theta's update; otherwise the state comes from the current theta.
            if state is None or not stale:
                with torch.no_grad():  # the actual step differentiates with respect to phi only; theta is a constant in it
                    state = self.method.begin_batch(context)
            actual = gradients(at_phi, lambda x: self.method.train_loss(self.classifier.head, x, context, state), self._head)
        self.weights.add(batch.labels, self.method.sample_weights(context, state))
        measured |= {"train/loss": actual.loss.detach(), "train/grad_norm": norm(actual.phi)}
        for parameter, gradient in zip(self._phi, actual.phi, strict=True):
            # Fused optimisers need the gradient in the parameter's memory layout. The strides can differ when a parameter has one
            # channel, because kernels then cannot tell channels-first from channels-last.
            alike = gradient.stride() == parameter.stride()
            parameter.grad = gradient if alike else torch.empty_like(parameter).copy_(gradient)
        self.optimizer.step()
        return measured

    def _context(self, batch: Batch, features: Tensor) -> Context:
        ids = torch.arange(len(batch.labels), device=batch.labels.device) if batch.ids is None else batch.ids
        return Context(
            self.method,
            self.classifier.head,
            features,
            batch.labels,
            ids,
            self.course.moment,
            self.course.seed,
            partners=batch.partners,
            label_weight=batch.label_weight,
        )

    def _update_theta(
        self, at_phi: Linearization, batch: Batch, meta_batch: Batch | None, context: Context, state: Any, step: int
    ) -> tuple[MetaGradient, Tensor | None]:
        """One optimiser step of theta along d L_meta/dtheta + d R/dtheta; also returns d L_meta / d perturbation."""
        if meta_batch is None:
            nothing = [torch.zeros_like(parameter) for parameter in self._theta]
            meta = MetaGradient(nothing, {"meta/grad_norm": at_phi.features.new_zeros(())})
            of_regularizer = self._regularizer_gradient(state)
        else:
            of_regularizer = self._regularizer_gradient(state)
            meta = self._meta_gradient(at_phi, batch, meta_batch, context, state, step)
        of_meta, of_perturbation = meta.theta[: len(self._theta)], meta.theta[len(self._theta) :]
        total = [from_meta + from_regularizer for from_meta, from_regularizer in zip(of_meta, of_regularizer, strict=True)]
        # Every worker has computed the whole gradient, but rounding may differ. The mean keeps workers identical.
        averaged = self._collectives.mean([*total, *of_perturbation])
        if self.meta_optimizer is not None:
            for parameter, gradient in zip(self._theta, averaged[: len(self._theta)], strict=True):
                parameter.grad = gradient
            meta.measured["theta/grad_norm"] = norm(p.grad for p in self._theta if p.grad is not None)
            self.meta_optimizer.step()
        return meta, averaged[-1] if of_perturbation else None

    def _regularizer_gradient(self, state: Any) -> list[Tensor]:
        regularizer = self.method.meta_regularizer(state)
        if not self._theta or not regularizer.requires_grad:
            return [torch.zeros_like(parameter) for parameter in self._theta]
        return list(torch.autograd.grad(regularizer, self._theta, retain_graph=True, materialize_grads=True))

    def _meta_gradient(
        self, at_phi: Linearization, batch: Batch, meta_batch: Batch, context: Context, state: Any, step: int
    ) -> MetaGradient:
        """d L_meta/dtheta in the configured mode, with its norm; when `step` is due, also compared with double backward."""
        config = self.config
        problem = Problem(
            self.classifier,
            self.method,
            state,
            context,
            batch,
            meta_batch,
            step_sizes(self.optimizer, self.classifier),
            at_phi,
            self._linearizer,
            self._linearizer.autocast,
            self._key,
            config.memory,
        )
        meta = META_GRADIENTS[config.meta_gradient](problem)
        # With a cosine schedule alpha can reach 0 in the last step. Then phi_hat = phi and the gradient is 0 too: 0 / tiny is 0.
        alpha = torch.stack(problem.step_sizes).max().clamp_min(torch.finfo(torch.float64).tiny)
        meta.measured["meta/grad_norm"] = norm(meta.theta) / alpha
        if self.compares(step):
            reference = double_backward(replace(problem, autocast=None))
            meta.measured["meta/grad_cosine"] = cosine(meta.theta, reference.theta)
        return meta


def cosine(a: list[Tensor], b: list[Tensor]) -> Tensor:
    """The cosine of the angle between two lists of tensors, each flattened to one vector; () in float64, 0 if one is 0."""
    flat_a, flat_b = (torch.cat([tensor.flatten() for tensor in tensors]).double() for tensors in (a, b))
    norms = torch.linalg.vector_norm(flat_a) * torch.linalg.vector_norm(flat_b)
    found: Tensor = torch.dot(flat_a, flat_b) / norms.clamp_min(torch.finfo(torch.float64).tiny)
    return found
