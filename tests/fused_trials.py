"""Trials that can be fused, and what they must have in common with the same trials alone."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from trainables.classifier_config import ClassifierSettings, LinearConfig, MLPAdapterConfig
from trainables.config import BilevelConfig, ComputeConfig, TrialConfig
from trainables.data_config import GeneratedConfig
from trainables.fused_run import FusedRun
from trainables.loss_config import BalancedSoftmaxConfig, CrossEntropyConfig, FocalConfig, LogitAdjustmentConfig, MethodSettings
from trainables.method_config import CDBConfig, ClassBalancedConfig, DifficultyNetConfig, MetaWeightNetConfig
from trainables.optim_config import OptimConfig
from trainables.trial_run import TrialRun

TIMES = ("time/step_ms", "time/epoch_s")
ALONE = TrialConfig(
    epochs=2,
    data=GeneratedConfig(num_classes=4, n_max=25, images_per_class=70, image_size=4),
    classifier=LinearConfig(),
    compute=ComputeConfig(precision="float64"),
    optim=OptimConfig(batch_size=16),
    bilevel=BilevelConfig(meta_batch_size=12),
)
CLASSIFIERS: dict[str, ClassifierSettings] = {
    "linear": LinearConfig(),
    "cosine": LinearConfig(head="cosine", scale=7.0),
    "adapter": MLPAdapterConfig(),
    "adapter-cosine": MLPAdapterConfig(head="cosine", scale=7.0),
}
"""Of each kind that may be fused."""
ADAPTERS = ALONE.model_copy(update={"classifier": CLASSIFIERS["adapter"], "optim": ALONE.optim.model_copy(update={"ema": 0.8})})
"""Trials that have all that linear heads lack: parameters with padding, and averages."""
METHODS: list[MethodSettings] = [
    DifficultyNetConfig(hidden_width=6, meta_lr=1e-2, refresh_interval=0.5),
    CrossEntropyConfig(),
    DifficultyNetConfig(hidden_width=9, meta_lr=3e-2, driver_weight=0.0, base_loss=BalancedSoftmaxConfig()),
    DifficultyNetConfig(hidden_width=5, difficulty="absolute", weight_scale="none", meta_loss=FocalConfig(gamma=0.5)),
    DifficultyNetConfig(hidden_width=5, meta_optimizer="sgd", meta_lr=0.3, meta_momentum=0.5, meta_weight_decay=1e-3),
    DifficultyNetConfig(difficulty="fixed", refresh_interval=0.4),
    MetaWeightNetConfig(hidden_width=7, meta_lr=1e-2, meta_schedule="cosine", base_loss=FocalConfig(gamma=2)),
    MetaWeightNetConfig(hidden_width=4, weight_scale="mean_one", meta_weight_decay=1e-2, meta_schedule="follow"),
    MetaWeightNetConfig(hidden_width=5, weight_scale="mean_one", meta_lr=1e-2, meta_schedule="follow"),
    FocalConfig(gamma=1.5, detach_modulation=True),
    BalancedSoftmaxConfig(),
    LogitAdjustmentConfig(tau=1.5),
    LogitAdjustmentConfig(tau=0.7, where="prediction"),
    ClassBalancedConfig(beta=0.99, defer_until=0.6),
    CDBConfig(exponent="dynamic", refresh_interval=0.3),
    CDBConfig(tau=2.0, accuracy_from="train", difficulty="exponential"),
]


def members_of(base: TrialConfig, methods: list[MethodSettings]) -> list[TrialConfig]:
    """A trial of each method, each with numbers of its own."""
    adamw = base.optim.optimizer == "adamw"
    numbers = [
        {
            "lr": 0.02 * (1 + n % 3),
            "weight_decay": 1e-3 * (n % 4),
            "weight_decay_biases": n % 4 != 1,
            "head_lr": [None, 0.03][n % 2],
        }
        | ({} if adamw else {"momentum": 0.9 if base.optim.nesterov else [0.9, 0.0, 0.5][n % 3]})
        for n in range(len(methods))
    ]
    averages = [{} if base.optim.ema is None else {"ema": [base.optim.ema, None, 0.6][n % 3]} for n in range(len(methods))]
    widths = [{"bottleneck": [5, 3, 8][n % 3]} if base.classifier.name == "mlp_adapter" else {} for n in range(len(methods))]
    return [
        base.model_copy(
            update={
                "method": method,
                "optim": base.optim.model_copy(update=own | average),
                "classifier": base.classifier.model_copy(update=width),
            }
        )
        for method, own, average, width in zip(methods, numbers, averages, widths, strict=True)
    ]


def started(configs: list[TrialConfig]) -> list[TrialRun]:
    """Trials that have one LoadedData."""
    runs = [TrialRun() for _ in configs]
    for run, config in zip(runs, configs, strict=True):
        run.start(config, runs[0].loaded if run is not runs[0] else None)
    return runs


def compared(run: TrialRun, metrics: dict[str, float]) -> dict[str, Any]:
    """All that an epoch leaves behind, except the times and the optimisers' own settings."""
    state = run.state()
    optimizers = [state[name]["state"] for name in ("optimizer", "meta_optimizer") if state[name]]
    kept = {
        name: value for name, value in state.items() if name not in ("optimizer", "meta_optimizer", "report", "best", "config")
    }
    best = None if run.best is None else (run.best.epoch, run.best.phi, run.best.theta)
    metrics = {name: value for name, value in metrics.items() if name not in TIMES}
    return {"state": kept, "optimizers": optimizers, "best": best, "metrics": metrics, "classes": run.class_table()}


def assert_close(ours: Any, theirs: Any, place: str = "") -> None:
    """Equal to 1e-10, number by number, through all nested values."""
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), place
        for key in ours:
            assert_close(ours[key], theirs[key], f"{place}.{key}")
    elif isinstance(ours, list | tuple):
        assert len(ours) == len(theirs), place
        for number, pair in enumerate(zip(ours, theirs, strict=True)):
            assert_close(*pair, f"{place}.{number}")
    elif isinstance(ours, torch.Tensor | float):
        numbers = [torch.as_tensor(value, dtype=torch.float64) for value in (ours, theirs)]
        torch.testing.assert_close(*numbers, rtol=1e-10, atol=1e-10, equal_nan=True, msg=lambda text: f"{place}: {text}")
    else:
        assert ours == theirs, place


def sizes_of_fused_runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many trials each FusedRun has that is made from now on."""
    made: list[int] = []
    begin = FusedRun.__init__

    def note(self: FusedRun, members: Sequence[TrialRun]) -> None:
        made.append(len(members))
        begin(self, members)

    monkeypatch.setattr(FusedRun, "__init__", note)
    return made
