"""Settings of the training of the classifier, phi: the optimiser, its step size, and the batches."""

import itertools
from typing import Annotated, Literal

from pydantic import Field, model_validator

from trainables.settings import Settings


class OptimConfig(Settings):
    """How the classifier, phi, is trained: its optimiser, the step size and the batches."""

    optimizer: Literal["sgd", "adamw"] = "sgd"
    """Optimiser of the actual step. `sgd`: gradient descent with momentum. `adamw`: Adam with betas 0.9 and 0.999 and decoupled
    weight decay (Loshchilov & Hutter, ICLR 2019). The virtual step is a step of plain gradient descent with either."""
    lr: float = Field(0.05, gt=0)
    """Step size; alpha in the papers. `schedule` and `warmup_epochs` scale it. The virtual step uses the current value."""
    head_lr: float | None = Field(None, gt=0)
    """Step size of the head; `lr` is then the step size of the backbone. `schedule` and `warmup_epochs` scale both by the same
    factor. None: the head has the step size `lr`."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum of the actual step; 0 means no momentum. The virtual step has no momentum (Eq. 9). Not used with
    `optimizer: adamw`."""
    nesterov: bool = False
    """Whether the momentum is Nesterov's, as torch computes it. Needs `optimizer: sgd` and a momentum."""
    weight_decay: float = Field(0.0, ge=0)
    """Weight decay of the actual step: L2 with `sgd`, decoupled with `adamw`. 0 means no weight decay. The virtual step has no
    weight decay."""
    weight_decay_biases: bool = True
    """Whether weight decay also applies to biases and to the parameters of norms, which are all parameters with at most one
    dimension."""
    clip_norm: float | None = Field(None, gt=0)
    """Largest Euclidean norm of the actual step's gradient, over all trained parameters together. A longer gradient is scaled
    down to this norm before the optimiser's step; `train/grad_norm` is the norm before. None: no clipping."""
    ema: float | None = Field(None, gt=0, lt=1)
    """Decay d of a moving average of the parameters, such as 0.99. After each actual step: average = d * average + (1 - d) *
    parameters. The average begins as the initial parameters, whose share in it is d^t after t steps. The averaged classifier is
    evaluated on val and test, kept as the best epoch, exported, and handed to a later stage. Training does not change: the
    virtual step, the meta step and the class accuracies that a method receives belong to the parameters themselves, and so does
    `meta/acc`. BatchNorm's running statistics are those of training. None: no average."""
    batch_size: int = Field(32, ge=1)
    """Images per training batch; b in the papers. Several workers share a batch of this size."""
    sampler: Literal["instance", "class_balanced", "square_root", "progressively_balanced"] = "instance"
    """How the images of an epoch are drawn. `instance`: each image once. The others draw with replacement, as many images as the
    training set has. `class_balanced`: all classes equally often. `square_root`: each class in proportion to the square root of
    its size. `progressively_balanced`: in epoch t of T, counted from 0, a class has the probability 1 - t/T times its share of
    the images, plus t/T times that of `class_balanced`. Source: Kang et al., ICLR 2020."""
    schedule: Literal["cosine", "constant", "multistep"] = "cosine"
    """How the step size changes after the warm-up. `cosine`: the step size falls from `lr` to 0 over all steps that remain, along
    a half cosine. `constant`: the step size stays at `lr`. `multistep`: at each of the `milestones` the step size is multiplied
    by `decay`."""
    milestones: list[Annotated[float, Field(gt=0)]] = Field([])
    """Epochs after which `schedule: multistep` multiplies the step size by `decay`, in increasing order. With [160, 180], epoch
    161 is the first with a smaller step size."""
    decay: float = Field(0.1, gt=0, lt=1)
    """Factor by which `schedule: multistep` multiplies the step size at each milestone. LDAM's code has 0.01."""
    warmup_epochs: float = Field(0.0, ge=0)
    """Length of the warm-up in epochs. In step s of a warm-up of S steps, counted from 1, the step size is `lr` times s / S. 0:
    no warm-up."""

    @model_validator(mode="after")
    def _optimizer_has_effect(self) -> "OptimConfig":
        # A dump of the settings contains the default, so the default has to pass.
        if self.optimizer == "adamw" and self.momentum != type(self).model_fields["momentum"].default:
            raise ValueError(
                f"momentum is {self.momentum:g}, but optimizer is adamw, which has averages of its own; "
                "allowed: optimizer sgd, or leave momentum out"
            )
        if self.nesterov and (self.optimizer == "adamw" or self.momentum == 0):
            given = "optimizer is adamw" if self.optimizer == "adamw" else "momentum is 0"
            raise ValueError(
                f"nesterov is True, but {given}; allowed: nesterov False, or optimizer sgd with a momentum greater than 0"
            )
        if not self.weight_decay_biases and self.weight_decay == 0:
            raise ValueError(
                "weight_decay_biases is False, but weight_decay is 0, so that nothing decays; "
                "allowed: weight_decay_biases True, or weight_decay greater than 0"
            )
        return self

    @model_validator(mode="after")
    def _schedule_has_effect(self) -> "OptimConfig":
        if self.schedule == "multistep":
            if not self.milestones:
                raise ValueError("milestones is [], but schedule is multistep; allowed: one or more epochs, as [160, 180]")
            if any(later <= earlier for earlier, later in itertools.pairwise(self.milestones)):
                raise ValueError(f"milestones is {self.milestones}; allowed: epochs in increasing order, each once")
            if self.milestones[0] < self.warmup_epochs:
                raise ValueError(
                    f"milestones begins with {self.milestones[0]:g}, but warmup_epochs is {self.warmup_epochs:g}; "
                    "allowed: milestones after the warm-up, or a shorter warm-up"
                )
            return self
        for name in ("milestones", "decay"):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(
                    f"{name} is {getattr(self, name)}, but schedule is {self.schedule}, which has no milestones; "
                    f"allowed: schedule multistep, or leave {name} out"
                )
        return self
