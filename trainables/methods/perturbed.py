"""Methods that differentiate the meta loss by a perturbation of each batch: L2RW, CB-DA and GDW.

The perturbation is 0, so it changes no value. Its gradient says how each weight would help the meta set in one virtual step.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from trainables.method_config import CBDAConfig, GDWConfig, L2RWConfig
from trainables.methods.base import Head, Method
from trainables.methods.context import Context, Task
from trainables.methods.meta_weight_net import weight_of_loss
from trainables.methods.weighted import Weighted, effective_number_weights


class L2RW(Weighted):
    """w_i = max(0, -d L_meta / d eps_i) at eps = 0, with mean 1 over the batch. There is no theta.

    Source: Ren et al., "Learning to Reweight Examples for Robust Deep Learning", ICML 2018, Eq. 12 to 14. If no image helps, all
    weights are 0, as in the paper. A step without a meta step (`bilevel.meta_interval` above 1) gives all images the weight 1.
    """

    def __init__(self, config: L2RWConfig, task: Task) -> None:
        super().__init__(config, task)

    def perturbation_shape(self, batch_size: int) -> tuple[int, ...]:
        """A weight for each image."""
        return (batch_size,)

    def begin_batch(self, context: Context) -> Tensor:
        """The weight of each image, (B,): eps in the virtual phase."""
        if context.perturbation is not None:
            return context.perturbation
        if context.perturbation_gradient is None:
            return torch.ones_like(context.losses)
        helps = (-context.perturbation_gradient).clamp_min(0)
        return helps / helps.mean().clamp_min(torch.finfo(helps.dtype).tiny)


class CBDA(Weighted):
    """w_i = w_{y_i} + eps_i: class weights by the effective number, and eps_i = -weight_lr * B * d L_meta / d eps_i at eps = 0.

    Source: Jamal et al., "Rethinking Class-Balanced Methods for Long-Tailed Visual Recognition from a Domain Adaptation
    Perspective", CVPR 2020, Algorithm 1, with one step from 0 and without clipping, as in the authors' code. There, the loss of
    the virtual step is a sum over the batch, here it is a mean: the factor B, the batch size, makes up for it in eps. The virtual
    step itself is that of the mean, as long as the actual step. The first part of the training is plain cross-entropy.
    """

    weights: Tensor

    def __init__(self, config: CBDAConfig, task: Task) -> None:
        super().__init__(config, task)
        self.weight_lr, self.meta_from = config.weight_lr, config.meta_from
        self.register_buffer("weights", effective_number_weights(task.class_counts, config.beta), persistent=False)

    def perturbation_shape(self, batch_size: int) -> tuple[int, ...]:
        """A weight for each image."""
        return (batch_size,)

    def begin_batch(self, context: Context) -> Tensor:
        """The weight of each image by its label, (B,) or (B, 2)."""
        weights = context.of_labels(self.weights)
        change = context.perturbation
        if context.perturbation_gradient is not None:
            change = -self.weight_lr * len(context.labels) * context.perturbation_gradient
        if change is not None:
            weights = weights + (change if weights.dim() == 1 else change[:, None])
        return torch.where(context.moment.progress >= self.meta_from, weights, torch.ones_like(weights))


class GradientWeights(NamedTuple):
    """GDW's state."""

    of_logits: Tensor
    """omega, (B, num_classes): the factor of the loss's derivative by each logit."""
    of_images: Tensor
    """V's weight of each image, (B,), for reports."""


class GDW(Method):
    """The loss's derivative by each logit is multiplied by a weight omega of its image and class.

    omega starts as V(L_i; theta), equal for all classes. One meta step moves theta, and omega by
    -weight_lr * G / mean |G|, by at most max_change, where G = d L_meta / d omega. omega is kept positive. Then omega_y is set so
    that the weighted derivatives of each image still add up to 0.

    Source: Chen et al., "Generalized DataWeighting via Class-level Gradient Manipulation", NeurIPS 2021, Algorithm 1 and code.
    For cross-entropy the condition gives omega_y = sum_{k != y} omega_k p_k / (1 - p_y); ours holds for any base loss.
    Like all methods here, the actual step takes V after theta's update; the authors' code takes V as it was before.
    """

    def __init__(self, config: GDWConfig, task: Task) -> None:
        super().__init__(config, task)
        self.weight_lr, self.max_change = config.weight_lr, config.max_change
        self.network = weight_of_loss(config.hidden_width)

    def perturbation_shape(self, batch_size: int) -> tuple[int, ...]:
        """A weight for each image and class."""
        return (batch_size, self.num_classes)

    def begin_batch(self, context: Context) -> GradientWeights:
        """omega, on theta's and the perturbation's tape, and V's weights."""
        of_images: Tensor = self.network(context.losses.unsqueeze(1))
        self.outputs.add(of_images, context)
        omega = of_images.expand(-1, self.num_classes)
        if context.perturbation is not None:
            omega = omega + context.perturbation
        if context.perturbation_gradient is not None:
            gradient = context.perturbation_gradient
            step = self.weight_lr * gradient / gradient.abs().mean().clamp_min(torch.finfo(gradient.dtype).tiny)
            omega = (omega - step.clamp(-self.max_change, self.max_change)).clamp(1e-6, 1e6)
            omega = self._balanced(omega, context)
        return GradientWeights(omega, of_images.squeeze(1))

    def _balanced(self, omega: Tensor, context: Context) -> Tensor:
        """omega with omega_y such that sum_k omega_k dL/dz_k = 0."""
        derivative = self._derivative(context.logits, context)
        own = F.one_hot(context.labels, self.num_classes).bool()
        others = (omega * derivative).masked_fill(own, 0).sum(1, keepdim=True)
        of_label = derivative.gather(1, context.labels[:, None])
        # An image that is fitted perfectly has no derivative, and any weight will do.
        balanced = torch.where(of_label != 0, -others / torch.where(of_label != 0, of_label, 1), 1)
        return torch.where(own, balanced, omega)

    def train_loss(self, head: Head, features: Tensor, context: Context, state: GradientWeights) -> Tensor:
        """The mean base loss, (), whose derivative by the logits is omega times the base loss's."""
        logits = head(features)
        with torch.no_grad():
            losses = self.sample_losses(logits, context)
        weighted = (logits * (state.of_logits * self._derivative(logits, context))).sum(1)
        return (losses + weighted - weighted.detach()).mean()

    def _derivative(self, logits: Tensor, context: Context) -> Tensor:
        """d L_i / d z_ik, (B, num_classes), without a tape."""
        with torch.enable_grad():
            leaf = logits.detach().requires_grad_()
            derivative: Tensor = torch.autograd.grad(self.sample_losses(leaf, context).sum(), leaf)[0]
        return derivative

    def sample_weights(self, context: Context, state: GradientWeights) -> Tensor:
        """V's weight of each image, (B,)."""
        return state.of_images
