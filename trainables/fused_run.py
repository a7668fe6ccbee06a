"""Trials that are trained together, an epoch at a time: the same results as alone, for a part of the time.

Each member is an ordinary TrialRun. It is started, loaded and saved alone, also between two epochs. Fusing makes the parameters
of all members, and the states of their optimisers, views of common tensors, which one step updates.
"""

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from trainables.alive import alive
from trainables.data.loader import LoadedSet, Request
from trainables.engine.fused_step import Factors, FusedStep, MeasuredByTrial
from trainables.engine.health import LOOK_EVERY, TrialEnded, within_memory
from trainables.engine.meta_gradient import Batch
from trainables.engine.numerics import numerics
from trainables.engine.optimizers import meta_schedule_factor
from trainables.engine.step_timer import StepTimer
from trainables.evaluate import PIXELS_AT_ONCE
from trainables.fusion import dividing_differences, fusion_key, why_alone
from trainables.trial_run import EpochClock, TrialRun

Ending = dict[str, float] | TrialEnded
"""How an epoch ended for a member: its metrics, or why the trial has ended."""


class FusedRun:
    """Trains its members together, in the first stage.

    Args:
        members: trials that have been started or loaded, at the same epoch and with the same LoadedData.

    Raises:
        ValueError: when the trials cannot be fused with each other.
    """

    def __init__(self, members: Sequence[TrialRun]) -> None:
        check_members(members)
        self.members = list(members)
        """The trials that are still trained, in the order in which they were given."""
        self._stack()

    def leave(self, member: TrialRun) -> None:
        """Lets a member go; it may go on alone."""
        self._step.release(self.members.index(member))
        self.members.remove(member)
        self._stack()

    def disband(self) -> None:
        """Lets all members go; each may go on alone."""
        for number in range(len(self.members)):
            self._step.release(number)
        self.members = []

    def run_epoch(self, after_step: Callable[[int], None] | None = None) -> list[Ending]:
        """Trains and evaluates one epoch of all members.

        `time/step_ms` and `time/epoch_s` are a member's share of the time of all.

        Args:
            after_step: called after each step with the number of steps done in the epoch.

        Returns: how the epoch ended for each of `members` as they were before. Members whose trial has ended have left.

        Raises:
            ValueError: when the first stage is over; then members must leave.
            OutOfMemory: when the memory does not suffice.
        """
        lead = self.members[self._step.lead]
        if lead.epoch >= lead.config.stage_epochs()[0].stop:
            raise ValueError(f"epoch {lead.epoch + 1} is not one of the first stage; fused trials must leave before it")
        with numerics(lead.config.compute, lead.device), within_memory(f"in epoch {lead.epoch + 1}"):
            endings = self._run_epoch(lead, after_step)
        for member, ending in zip(list(self.members), endings, strict=True):
            if isinstance(ending, TrialEnded):
                self.leave(member)
        return endings

    def _run_epoch(self, lead: TrialRun, after_step: Callable[[int], None] | None) -> list[Ending]:
        members, stage, clock = self.members, lead.stage, EpochClock(len(self.members))
        timer = StepTimer(time.perf_counter, lead.wait)
        with timer.aside():
            for member in members:
                member.begin_epoch()
            self._step.refresh()
        healths, step = Healths(members), 0
        for batch, meta_batch, step in lead.batches([member for member in members if member is not lead]):
            timer.step(counts=True)
            measured, factor = self._train_step(batch, meta_batch, step, timer)
            healths.record(step, measured, factor)
            if after_step:
                after_step(step % stage.steps_per_epoch + 1)
        endings = healths.epoch_means()
        step_s = timer.mean_s() / len(members)
        self._step.end_epoch()
        predict = self._predictions()
        # Where no trial keeps an average, both are one, so that a set is evaluated once.
        evaluate = self._predictions(averaged=True) if any(member.stage.average for member in members) else predict
        for number, member in enumerate(members):
            member.set_step_sizes(step)
            means = endings[number]
            if not isinstance(means, TrialEnded):
                endings[number] = member.end_epoch(means, predict(number), evaluate(number), clock, step_s)
        return endings

    def time_epoch(self, limit_s: float = 5.0) -> float:
        """Estimates the seconds of one epoch of all members, as TrialRun.time_epoch does. No member can go on afterwards.

        Raises:
            OutOfMemory: when the memory does not suffice.
        """
        lead = self.members[self._step.lead]
        others = [member for member in self.members if member is not lead]
        with numerics(lead.config.compute, lead.device), within_memory("in epoch 1"):
            for member in self.members:
                member.begin_epoch()
            self._step.refresh()
            timer, done, began = StepTimer(time.perf_counter, lead.wait), 0, time.perf_counter()
            for batch, meta_batch, step in itertools.chain(lead.batches(others), lead.batches(others)):
                self._train_step(batch, meta_batch, step, timer)
                lead.wait()
                done += 1
                if time.perf_counter() - began > limit_s:
                    break
            step_s = (time.perf_counter() - began) / done
            began = time.perf_counter()
            for images in {id(images): images for images in (lead.loaded.val, lead.loaded.meta)}.values():
                self._predicted_classes(images)
            lead.wait()
            return lead.steps_per_epoch * step_s + time.perf_counter() - began

    def _train_step(self, batch: Batch, meta_batch: Batch | None, step: int, timer: StepTimer) -> tuple[MeasuredByTrial, float]:
        """One step of all members; returns what it measured, and the factor by which the schedule scales the step sizes."""
        lead = self.members[self._step.lead]
        self._refresh(step, timer)
        factor, total = lead.set_step_sizes(step), lead.stage.total_steps
        metas = [member.method.meta for member in self.members]
        of_theta = [1.0 if meta is None else meta_schedule_factor(meta, step, total, factor) for meta in metas]
        return self._step(batch, meta_batch, step, Factors(factor, of_theta), step / total), factor

    def _stack(self) -> None:
        if self.members:
            steps = [member.bilevel_step for member in self.members]
            averages = [member.stage.average for member in self.members]
            self._step = FusedStep(steps, self.members[0].config.optim.clip_norm, averages)

    def _refresh(self, step: int, timer: StepTimer) -> None:
        """Gives the members whose time it is their class accuracies."""
        due, predict = any(member.is_refresh_due(step) for member in self.members), self._predictions()
        with timer.aside() if due else contextlib.nullcontext():
            for number, member in enumerate(self.members):
                member.refresh(step, predict(number))
            if due:
                self._step.refresh()

    def _predictions(self, averaged: bool = False) -> Callable[[int], Callable[[LoadedSet], Tensor]]:
        """By member: a function that gives the predicted classes of a set's images, by phi or by its average. All members are
        evaluated at once.
        """
        found: dict[int, list[Tensor]] = {}

        def of_member(number: int) -> Callable[[LoadedSet], Tensor]:
            def predict(images: LoadedSet) -> Tensor:
                if id(images) not in found:
                    found[id(images)] = self._predicted_classes(images, averaged)
                return found[id(images)][number]

            return predict

        return of_member

    @torch.no_grad()
    def _predicted_classes(self, images: LoadedSet, averaged: bool = False) -> list[Tensor]:
        """The most probable class of each image of a set, (N,), for each member."""
        methods, dtype = [member.method for member in self.members], self.members[0].dtype
        parts: list[list[Tensor]] = [[images.labels[:0]] for _ in methods]
        for features in _all_images(images, len(methods)):
            alive()
            logits = self._step.logits(features.to(dtype), averaged)
            for predicted, method, own in zip(parts, methods, logits, strict=True):
                predicted.append(method.predict(own).argmax(1))
        return [torch.cat(predicted) for predicted in parts]


class Healths:
    """The health checks of the members in one epoch, with one transfer of all numbers from the device."""

    def __init__(self, members: Sequence[TrialRun]) -> None:
        self._members = members
        self._ended: dict[int, TrialEnded] = {}
        self._unseen: list[tuple[int, MeasuredByTrial, float]] = []

    def record(self, step: int, measured: MeasuredByTrial, factor: float) -> None:
        """Adds the quantities of `step`, whose step sizes the schedule scaled by `factor`."""
        self._unseen.append((step, measured, factor))
        if len(self._unseen) >= LOOK_EVERY:
            self._look()

    def epoch_means(self) -> list[Ending]:
        """Of each member the means over the epoch, or why its trial has ended."""
        self._look()
        # A trial that has ended keeps means of the steps before, which nobody asks for.
        means = [member.health.epoch_means() for member in self._members]
        return [self._ended.get(number, of_member) for number, of_member in enumerate(means)]

    def _look(self) -> None:
        unseen, self._unseen = self._unseen, []
        if not unseen:
            return
        values = iter(torch.cat([measured.values.double() for _, measured, _ in unseen]).tolist())
        for step, measured, factor in unseen:
            rows = [next(values) for _ in measured.names]
            known = measured.is_measured.tolist()
            for number, member in enumerate(self._members):
                if number not in self._ended:
                    own = {name: rows[i][number] for i, name in enumerate(measured.names) if known[i][number]}
                    with self._ending(number):
                        member.health.take(step, own, member.config.optim.lr * factor)

    @contextlib.contextmanager
    def _ending(self, number: int) -> Iterator[None]:
        try:
            yield
        except TrialEnded as reason:
            self._ended[number] = reason


def check_members(members: Sequence[TrialRun]) -> None:
    """Refuses trials that cannot be fused with each other.

    Raises:
        ValueError: with what is in the way.
    """
    for member in members:
        if reason := why_alone(member.config):
            raise ValueError(f"this trial cannot be fused: {reason}")
    first = members[0]
    for member in members:
        if fusion_key(member.config) != fusion_key(first.config):
            names = ", ".join(sorted(dividing_differences(first.config, member.config)))
            raise ValueError(f"these trials cannot be fused: they differ in {names}; allowed: equal values there")
    if epochs := {member.epoch for member in members} - {first.epoch}:
        raise ValueError(f"these trials cannot be fused: they are at the epochs {sorted({first.epoch, *epochs})}")
    if any(member.loaded is not first.loaded for member in members):
        raise ValueError("these trials cannot be fused: each has loaded its own data; pass `loaded` of the first to the others")


def _all_images(images: LoadedSet, trials: int) -> Iterator[Tensor]:
    """All images of a set, a batch at a time, as features_at takes them. Each of the trials may have features of its own."""
    batch_size = max(1, min(1024, PIXELS_AT_ONCE // (math.prod(images.shape) * trials)))
    positions = torch.split(torch.arange(len(images)), batch_size)
    for batch in images.batches([Request(some) for some in positions if len(some)]):
        yield batch.images
