"""One training iteration of K trials at once: the same numbers as K times bilevel.py.

With z_i the logits of training image i and J_i their derivative by phi, let g_i be the gradient of image i's base loss by z_i,
without its weight w_i(theta), which does not depend on phi. A batch has B images:

    phi_hat = phi - alpha/B sum_i w_i J_i^T g_i                  virtual step: a pullback
    v = alpha * d L_meta/d phi_hat
    d L_meta/dtheta = -1/B sum_i dw_i/dtheta <g_i, J_i v>        J_i v: a pushforward

So only the weighting networks are on theta's tape, and no loss is differentiated twice. All that depends on the architecture of
the classifier is in stacked_classifiers.py.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from trainables.engine.averaged import Averaged, StackedAverages
from trainables.engine.bilevel import BilevelStep
from trainables.engine.meta_gradient import Batch, trained
from trainables.engine.stacked_classifiers import stack_classifiers
from trainables.engine.stacked_optimizers import stack_optimizers, unstack
from trainables.methods.stacked import StackedLoss, Weighting, weighting_of
from trainables.stacks import norms


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
        steps: the iterations of each trial alone, with classifiers of one architecture and equal settings of `bilevel`.
        clip_norm: as `optim.clip_norm`.
        averages: of each trial; None of one that keeps no average of phi.
    """

    def __init__(self, steps: Sequence[BilevelStep], clip_norm: float | None, averages: Sequence[Averaged | None]) -> None:
        self._given, self._averages = steps, averages
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
        phi = [trained(step.classifier) for step in self._steps]
        self._classifiers = stack_classifiers([step.classifier for step in self._steps], self._learning)
        for step in self._steps:
            step.find_backbone()
        self._optimizer = stack_optimizers([step.optimizer for step in self._steps], phi, self._classifiers.phi, clip_norm)
        self._alphas = [alpha[self._learning] for alpha in self._optimizer.alphas]
        self._largest_alpha = torch.stack([alpha.flatten() for alpha in self._alphas]).amax(0).double()
        self._average = None
        if any(averages):
            self._average = StackedAverages([averages[number] for number in order], phi, self._classifiers.phi)
        self._meta_optimizers = [
            stack_optimizers(
                [step.meta_optimizer for step in self._steps[rows] if step.meta_optimizer],
                [list(method.parameters()) for method in weighting.methods],
                weighting.theta,
            )
            for rows, weighting in self._with_theta()
        ]
        like, self._num_classes = self._classifiers.phi[0], methods[0].num_classes
        self._base_loss = StackedLoss([method.base_loss for method in methods], like, self._num_classes)
        self._meta_loss = StackedLoss(
            [method.meta_loss for method in methods[self._learning] or methods], like, self._num_classes
        )
        self._sums = torch.zeros(len(steps), self._num_classes, dtype=torch.float64, device=like.device)
        self._counts = torch.zeros(self._num_classes, dtype=torch.float64, device=like.device)

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
        losses, gradients = self._base_loss(self._classifiers.forward(images), labels)
        updates = self._lead.updates_theta(step)
        of_theta, virtual = (
            self._update_theta(labels, losses, gradients, meta_batch, factors, progress) if updates else (None, None)
        )
        if virtual is not None and self._config.actual_step == "stale":
            with torch.no_grad():
                before = slice(0, self._learning.start)
                weights = torch.cat([self._weights(labels, losses, progress, before), virtual], 1)
        else:
            with torch.no_grad():
                weights = self._weights(labels, losses, progress, slice(0, len(self._steps)))
        gradients *= weights[:, :, None] / len(labels)
        of_phi = self._classifiers.pullback(gradients)
        of_class = F.one_hot(labels, self._num_classes).double()
        self._sums += weights.T.double() @ of_class
        self._counts += of_class.sum(0)
        for weighting in self.weightings:
            weighting.end_step()
        actual = torch.stack([(weights * losses).mean(0), norms(of_phi)])
        self._optimizer.step(of_phi, factors.phi)
        if self._average:
            self._average.update()
        return self._measured(of_theta, actual)

    def logits(self, images: Tensor, averaged: bool) -> list[Tensor]:
        """The logits of each trial, (N, num_classes), in the order in which the trials were given.

        Args:
            images: (N, ...).
            averaged: whether the average of phi takes its place in the trials that keep one.
        """
        phi = self._average.stacks if averaged and self._average else self._classifiers.phi
        logits = self._classifiers.logits(images.flatten(1), phi)
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
        unstack(trained(step.classifier), step.optimizer)
        step.find_backbone()
        unstack(list(step.method.parameters()), step.meta_optimizer)
        if average := self._averages[number]:
            unstack(trained(average.classifier), None)

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
            directional, meta_loss, v_norm = self._meta_step(gradients, weights.detach(), meta_batch, factors.phi)
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
        in_alpha = torch.cat(meta_norms) / (self._largest_alpha * factors.phi).clamp_min(tiny)
        return [*measured, in_alpha, torch.cat(total_norms)], weights.detach()

    def _meta_step(self, gradients: Tensor, weights: Tensor, meta_batch: Batch, factor: float) -> tuple[Tensor, Tensor, Tensor]:
        """The derivative of each image's base loss along v, (B, J), the meta losses, and the norm of d L_meta/d phi_hat, (J,)."""
        own = gradients[:, self._learning]
        of_logits = own * (weights / len(own))[:, :, None]
        alphas, meta_images = [alpha * factor for alpha in self._alphas], meta_batch.images.flatten(1)
        ahead = self._classifiers.look_ahead(
            of_logits, alphas, meta_images, lambda logits: self._meta_loss(logits, meta_batch.labels)
        )
        return (own * ahead.logits_along_v).sum(2), ahead.meta_loss, ahead.v_norm

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
