"""One training iteration of K trials at once, for linear classifiers: the same numbers as K times bilevel.py.

The classifier of trial k has the logits z = W_k x + b_k. Let g_i be the gradient of image i's base loss by its logits, without
its weight w_i(theta). A linear head makes every product with a gradient of phi a product of images with each other. With B images
x_i and M meta images x'_j, whose meta losses have the gradients p_j:

    phi_hat = phi - alpha/B sum_i w_i g_i (x_i, 1)                    virtual step
    z'_j(phi_hat) = z'_j(phi) - alpha/B sum_i (<x'_j, x_i> + 1) w_i g_i
    d L_meta/dtheta = -alpha/(B M) sum_i dw_i/dtheta <g_i, sum_j (<x_i, x'_j> + 1) p_j>

So neither phi_hat nor the gradients that lead to it are formed. The products of images serve all trials, and all other products
with images are one matrix product for all trials. Only the weighting networks need reverse mode, and nothing is differentiated
twice.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from trainables.engine.bilevel import BilevelStep
from trainables.engine.meta_gradient import Batch
from trainables.engine.stacked_optimizers import stack_optimizers, unstack
from trainables.methods.stacked import StackedLoss, Weighting, weighting_of
from trainables.stacks import norms, stack_parameters


class Factors(NamedTuple):
    """By what the schedules scale the step sizes of a step."""

    phi: float
    theta: Sequence[float]
    """Of each trial; of one without a weighting network the number has no meaning."""


class MeasuredByTrial(NamedTuple):
    """The measured quantities of a step, as those of BilevelStep, without `virtual/grad_norm`."""

    names: tuple[str, ...]
    values: Tensor
    """(number of names, K); NaN where a trial does not measure a quantity."""
    is_measured: Tensor
    """Whether a trial has a quantity, of the same shape."""


OF_THETA = ("virtual/loss", "meta/loss", "meta/v_norm", "meta/grad_norm", "theta/grad_norm")
OF_PHI = ("train/loss", "train/grad_norm")


class FusedStep:
    """The iterations of K trials. Their parameters and the states of their optimisers become views of stacks.

    Args:
        steps: the iterations of each trial alone, with a linear classifier and equal settings of `bilevel`.
        clip_norm: as `optim.clip_norm`.
    """

    def __init__(self, steps: Sequence[BilevelStep], clip_norm: float | None) -> None:
        self._given = steps
        kinds = [weighting_of(step.method) for step in steps]
        # Trials of one weighting stand side by side, those with a weighting network at the end.
        order = sorted(range(len(steps)), key=lambda n: (steps[n].meta_optimizer is not None, kinds.index(kinds[n])))
        self._order, self._steps = order, [steps[number] for number in order]
        self._config, self._lead = self._steps[-1].config, self._steps[-1]
        methods = [step.method for step in self._steps]
        groups = [list(of) for _, of in itertools.groupby(order, key=lambda number: kinds[number])]
        ends = list(itertools.accumulate(len(of) for of in groups))
        self._rows = [slice(end - len(of), end) for end, of in zip(ends, groups, strict=True)]
        self.weightings: list[Weighting] = [kinds[of[0]][0](methods[rows]) for rows, of in zip(self._rows, groups, strict=True)]
        self._learning = slice(sum(step.meta_optimizer is None for step in self._steps), len(self._steps))
        phi = [list(step.classifier.parameters()) for step in self._steps]
        self._weight, self._bias = stacks = stack_parameters(phi)
        self._optimizer = stack_optimizers([step.optimizer for step in self._steps], phi, stacks, clip_norm)
        self._alpha = self._optimizer.alphas[1][self._learning]  # (J, 1): of the bias, equal to that of the weight
        self._meta_optimizers = [
            stack_optimizers(
                [step.meta_optimizer for step in self._steps[rows] if step.meta_optimizer],
                [list(method.parameters()) for method in weighting.methods],
                weighting.theta,
            )
            for rows, weighting in self._with_theta()
        ]
        num_classes = self._bias.shape[1]
        self._base_loss = StackedLoss([method.base_loss for method in methods], self._bias, num_classes)
        self._meta_loss = StackedLoss(
            [method.meta_loss for method in methods[self._learning] or methods], self._bias, num_classes
        )
        self._sums = torch.zeros(len(steps), num_classes, dtype=torch.float64, device=self._bias.device)
        self._counts = torch.zeros(num_classes, dtype=torch.float64, device=self._bias.device)

    @property
    def lead(self) -> int:
        """The number of a trial whose batches serve all: it has meta batches if any trial has."""
        return self._order[-1]

    def __call__(self, batch: Batch, meta_batch: Batch | None, step: int, factors: Factors, progress: float) -> MeasuredByTrial:
        """One iteration of each trial.

        Args:
            batch: the training batch; its images are flattened.
            meta_batch: the meta batch, if a trial needs one in this step.
            step: counted from 0 over the whole trial.
            factors: by what the step sizes are scaled.
            progress: share of all steps that lies behind, in [0, 1).
        """
        images, labels = batch.images.flatten(1), batch.labels
        losses, gradients = self._base_loss(self._logits(images, slice(None)), labels)
        updates = self._lead.updates_theta(step)
        of_theta, virtual = (
            self._update_theta(images, labels, losses, gradients, meta_batch, factors, progress) if updates else (None, None)
        )
        if virtual is not None and self._config.actual_step == "stale":
            with torch.no_grad():
                before = slice(0, self._learning.start)
                weights = torch.cat([self._weights(labels, losses, progress, before), virtual], 1)
        else:
            with torch.no_grad():
                weights = self._weights(labels, losses, progress, slice(0, len(self._steps)))
        gradients *= weights[:, :, None] / len(labels)
        of_weight = (gradients.flatten(1).T @ images).view_as(self._weight)
        of_phi = [of_weight, gradients.sum(0)]
        of_class = F.one_hot(labels, self._bias.shape[1]).double()
        self._sums += weights.T.double() @ of_class
        self._counts += of_class.sum(0)
        for weighting in self.weightings:
            weighting.end_step()
        actual = torch.stack([(weights * losses).mean(0), norms(of_phi)])
        self._optimizer.step(of_phi, factors.phi)
        return self._measured(of_theta, actual)

    def logits(self, images: Tensor) -> list[Tensor]:
        """The logits of each trial, (N, num_classes), in the order in which the trials were given."""
        logits = self._logits(images.flatten(1), slice(None))
        return [logits[:, self._order.index(number)] for number in range(len(self._order))]

    def refresh(self) -> None:
        """Tells the weightings that methods have new accuracies."""
        for weighting in self.weightings:
            weighting.refresh()

    def end_epoch(self) -> None:
        """Hands the weights and the statistics of the epoch to the trials."""
        for rows, weighting in zip(self._rows, self.weightings, strict=True):
            weighting.end_epoch()
            for step, sums in zip(self._steps[rows], self._sums[rows], strict=True):
                if weighting.weighs:
                    step.weights.take(sums, self._counts)
        self._sums.zero_()
        self._counts.zero_()

    def release(self, number: int) -> None:
        """Gives a trial memory of its own, so that it goes on alone. This step must not be called any more."""
        step = self._given[number]
        unstack(list(step.classifier.parameters()), step.optimizer)
        unstack(list(step.method.parameters()), step.meta_optimizer)

    def _logits(self, images: Tensor, rows: slice) -> Tensor:
        """(N, K, C), from images (N, D)."""
        weight, bias = self._weight[rows], self._bias[rows]
        return F.linear(images, weight.flatten(0, 1), bias.flatten()).view(len(images), *bias.shape)

    def _weights(self, labels: Tensor, losses: Tensor, progress: float, within: slice) -> Tensor:
        """The weights (B, K) of the trials `within`, which are whole groups."""
        found = [losses[:, :0]]
        for rows, weighting in zip(self._rows, self.weightings, strict=True):
            if within.start <= rows.start and rows.stop <= within.stop:
                found.append(weighting.weights(labels, losses[:, rows], progress))
        return torch.cat(found, 1)

    def _with_theta(self) -> list[tuple[slice, Weighting]]:
        return [pair for pair in zip(self._rows, self.weightings, strict=True) if pair[1].theta]

    def _update_theta(
        self,
        images: Tensor,
        labels: Tensor,
        losses: Tensor,
        gradients: Tensor,
        meta_batch: Batch | None,
        factors: Factors,
        progress: float,
    ) -> tuple[list[Tensor], Tensor]:
        """A step of every theta; returns the quantities OF_THETA, each (J,), and the weights of the virtual step, (B, J)."""
        weights = self._weights(labels, losses, progress, self._learning)
        theta = [whole for _, weighting in self._with_theta() for whole in weighting.theta]
        nothing = [torch.zeros_like(whole) for whole in theta]
        measured: list[Tensor] = []
        of_meta = nothing
        if meta_batch is not None:
            alpha = self._alpha * factors.phi
            directional, meta_loss, v_norm = self._meta_step(images, gradients, weights.detach(), meta_batch, alpha)
            meta = (weights * directional).sum() / -len(labels)
            of_meta = list(torch.autograd.grad(meta, theta, retain_graph=True, materialize_grads=True))
            measured = [(weights.detach() * losses[:, self._learning]).mean(0), meta_loss, v_norm]
        regularizers = [weighting.regularizer() for _, weighting in self._with_theta()]
        of_regularizer = nothing
        if added := [regularizer.sum() for regularizer in regularizers if regularizer is not None]:
            of_regularizer = list(torch.autograd.grad(torch.stack(added).sum(), theta, materialize_grads=True))
        pairs = iter(zip(of_meta, of_regularizer, strict=True))
        meta_norms, total_norms = [], []
        for (rows, weighting), optimizer in zip(self._with_theta(), self._meta_optimizers, strict=True):
            own = list(itertools.islice(pairs, len(weighting.theta)))
            total = [of_loss + added_to for of_loss, added_to in own]
            meta_norms.append(norms([of_loss for of_loss, _ in own]))
            total_norms.append(norms(total))
            optimizer.step(total, factors.theta[self._order[rows.start]])
        tiny = torch.finfo(torch.float64).tiny
        in_alpha = torch.cat(meta_norms) / (self._alpha[:, 0].double() * factors.phi).clamp_min(tiny)
        return [*measured, in_alpha, torch.cat(total_norms)], weights.detach()

    @torch.no_grad()
    def _meta_step(
        self, images: Tensor, gradients: Tensor, weights: Tensor, meta_batch: Batch, alpha: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The derivative of each image's base loss along v = alpha * d L_meta/d phi_hat, (B, J).

        Returns: it, the meta losses, and the norm of d L_meta/d phi_hat, both (J,).
        """
        meta_images = meta_batch.images.flatten(1)
        products = torch.addmm(torch.ones((), dtype=images.dtype, device=images.device), meta_images, images.T)  # (M, B)
        own = gradients[:, self._learning]
        along = (own * (weights / len(images))[:, :, None]).flatten(1)
        logits = self._logits(meta_images, self._learning)
        logits -= (products @ along).view_as(logits) * alpha
        meta_losses, of_logits = self._meta_loss(logits, meta_batch.labels)
        of_logits /= len(meta_images)
        directional = (own * (products.T @ of_logits.flatten(1)).view_as(own)).sum(2) * alpha[:, 0]
        among = torch.addmm(torch.ones((), dtype=images.dtype, device=images.device), meta_images, meta_images.T)
        squares = ((among @ of_logits.flatten(1)).view_as(of_logits) * of_logits).sum((0, 2))
        # Rounding may leave a square of 0 below 0; clamp_min keeps NaN.
        return directional, meta_losses.mean(0), squares.clamp_min(0).sqrt()

    def _measured(self, of_theta: list[Tensor] | None, actual: Tensor) -> MeasuredByTrial:
        """All quantities of a step, of the trials in the order in which they were given."""
        names = OF_THETA[-len(of_theta) :] if of_theta else ()
        values = actual.new_full((len(names), len(self._steps)), torch.nan)
        is_measured = torch.zeros(values.shape, dtype=torch.bool)
        if of_theta:
            values[:, self._learning] = torch.stack([value.to(values) for value in of_theta])
            is_measured[:, self._learning] = True
        inverse = torch.tensor(self._order).argsort()
        whole = torch.cat([values, actual])[:, inverse]
        known = torch.cat([is_measured, torch.ones(len(OF_PHI), len(self._steps), dtype=torch.bool)])[:, inverse]
        return MeasuredByTrial((*names, *OF_PHI), whole, known)
