"""The classifiers of K trials as one: logits, gradients and the look ahead of the meta step, on stacks of their parameters.

Any classifier serves that neither draws random numbers nor normalises by the batch: torch.vmap maps the classifier's own forward
pass over the stacks. The pullback, which takes gradients of the logits to gradients of phi, is linear in its argument, so its own
derivative is the pushforward, which takes a direction of phi to the derivative of the logits along it.

A head alone has formulas of its own (StackedLinear).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from trainables.engine.meta_gradient import named_trained, trained
from trainables.models.classifier import Classifier
from trainables.stacks import norms, stack_parameters

LossOf = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Logits (N, J, C) -> the loss of each image, (N, J), and its gradient by the image's logits, (N, J, C)."""


class LookAhead(NamedTuple):
    """What the meta batch says about a virtual step of J trials. v = alpha * d L_meta/d phi_hat."""

    logits_along_v: Tensor
    """The derivative of the training batch's logits along v at phi, (B, J, C)."""
    meta_loss: Tensor
    """(J,), at phi_hat."""
    v_norm: Tensor
    """The norm of d L_meta/d phi_hat, (J,)."""


class StackedClassifiers:
    """K classifiers of one architecture.

    Args:
        classifiers: of each trial. Their parameters become views of `phi`.
        learning: the trials at the end that take meta steps, J of them.
    """

    def __init__(self, classifiers: Sequence[Classifier], learning: slice) -> None:
        self.phi = stack_parameters([trained(classifier) for classifier in classifiers])
        """Stacks (K, ...) of the classifiers' parameters."""
        # Trials without a meta step stand apart, so that they take no part in looking ahead.
        parts = [slice(0, learning.start), learning]
        self._parts = [rows for rows in parts if rows.start < rows.stop]
        first, names = classifiers[0], list(named_trained(classifiers[0]))

        def of_one(phi: Sequence[Tensor], images: Tensor) -> Tensor:
            logits: Tensor = functional_call(first, dict(zip(names, phi, strict=True)), (images,))
            return logits

        self._of_all = torch.vmap(of_one, in_dims=(0, None), out_dims=1)

    def logits(self, images: Tensor, phi: Sequence[Tensor]) -> Tensor:
        """Logits (N, J, C) of images (N, D), at parameters (J, ...)."""
        found: Tensor = self._of_all(list(phi), images)
        return found

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K, C) of a training batch (B, D) at phi, which the methods below refer to until phi changes."""
        self._at_phi = []
        for rows in self._parts:
            phi = [whole[rows].requires_grad_() for whole in self.phi]
            self._at_phi.append((rows, phi, self.logits(images, phi)))
        return torch.cat([logits.detach() for _, _, logits in self._at_phi], 1)

    def pullback(self, of_logits: Tensor) -> list[Tensor]:
        """The gradients (K, ...) of phi from gradients of the logits, (B, K, C)."""
        by_part = [torch.autograd.grad(logits, phi, of_logits[:, rows], retain_graph=True) for rows, phi, logits in self._at_phi]
        return [torch.cat(of) for of in zip(*by_part, strict=True)]

    def look_ahead(self, of_logits: Tensor, alphas: Sequence[Tensor], meta_images: Tensor, meta_loss: LossOf) -> LookAhead:
        """A virtual step and a meta step of the trials that learn.

        Args:
            of_logits: the gradients of the training loss by the logits, (B, J, C).
            alphas: step sizes for each stack, (J, 1, ...).
            meta_images: (M, D).
            meta_loss: of the meta batch.
        """
        _, phi, logits = self._at_phi[-1]
        cotangent = of_logits.detach().requires_grad_()
        pulled = torch.autograd.grad(logits, phi, cotangent, create_graph=True)
        with torch.no_grad():
            stepped = [one - alpha * gradient for one, alpha, gradient in zip(phi, alphas, pulled, strict=True)]
        phi_hat = [one.requires_grad_() for one in stepped]
        meta_logits = self.logits(meta_images, phi_hat)
        losses, of_meta_logits = meta_loss(meta_logits.detach())
        of_phi_hat = torch.autograd.grad(meta_logits, phi_hat, of_meta_logits / len(meta_images))
        v = [alpha * gradient for alpha, gradient in zip(alphas, of_phi_hat, strict=True)]
        [along_v] = torch.autograd.grad(pulled, cotangent, v)
        return LookAhead(along_v, losses.mean(0), norms(of_phi_hat))


class StackedLinear(StackedClassifiers):
    """K linear heads without a backbone: one matrix product with the images serves all of them, and phi_hat is never formed.

    With logits W_k x + b_k, every product with a gradient of phi is a product of images with each other, which the trials share.
    With training images x_i, the given gradients c_i of their logits, and M meta images x'_j whose meta losses have the
    gradients p_j:

        z'_j(phi_hat) = z'_j(phi) - alpha sum_i (<x'_j, x_i> + 1) c_i
        derivative of z_i along v = alpha/M sum_j (<x_i, x'_j> + 1) p_j
        ||d L_meta/d phi_hat||^2 = 1/M^2 sum_jl (<x'_j, x'_l> + 1) <p_j, p_l>
    """

    def __init__(self, classifiers: Sequence[Classifier], learning: slice) -> None:
        super().__init__(classifiers, learning)
        self._learning = learning

    def logits(self, images: Tensor, phi: Sequence[Tensor]) -> Tensor:
        """As StackedClassifiers."""
        weight, bias = phi
        return F.linear(images, weight.flatten(0, 1), bias.flatten()).view(len(images), *bias.shape)

    def forward(self, images: Tensor) -> Tensor:
        """As StackedClassifiers."""
        self._images = images
        return self.logits(images, self.phi)

    def pullback(self, of_logits: Tensor) -> list[Tensor]:
        """As StackedClassifiers."""
        of_weight = of_logits.flatten(1).T @ self._images
        return [of_weight.view_as(self.phi[0]), of_logits.sum(0)]

    @torch.no_grad()
    def look_ahead(self, of_logits: Tensor, alphas: Sequence[Tensor], meta_images: Tensor, meta_loss: LossOf) -> LookAhead:
        """As StackedClassifiers; weight and bias have equal step sizes."""
        alpha, one = alphas[1], torch.ones((), dtype=meta_images.dtype, device=meta_images.device)
        products = torch.addmm(one, meta_images, self._images.T)  # (M, B)
        logits = self.logits(meta_images, [whole[self._learning] for whole in self.phi])
        logits -= (products @ of_logits.flatten(1)).view_as(logits) * alpha
        losses, of_meta_logits = meta_loss(logits)
        of_meta_logits /= len(meta_images)
        along_v = (products.T @ of_meta_logits.flatten(1)).view_as(of_logits) * alpha
        among = torch.addmm(one, meta_images, meta_images.T)
        squares = ((among @ of_meta_logits.flatten(1)).view_as(of_meta_logits) * of_meta_logits).sum((0, 2))
        # Rounding may leave a square of 0 below 0; clamp_min keeps NaN.
        return LookAhead(along_v, losses.mean(0), squares.clamp_min(0).sqrt())


def stack_classifiers(classifiers: Sequence[Classifier], learning: slice) -> StackedClassifiers:
    """The classifiers of K trials as one; arguments as StackedClassifiers."""
    is_linear = type(classifiers[0].backbone) is nn.Flatten and type(classifiers[0].head) is nn.Linear
    return (StackedLinear if is_linear else StackedClassifiers)(classifiers, learning)
