"""Which trials may be fused: trained together in one process, on the same batches (fused_run.py). Knows settings only, no torch.

Fused trials share everything about their batches and the architecture of their classifier, except the width of an adapter. They
may differ in the method with all its settings, and in the settings of `optim` that are a number of each trial: the step sizes,
the momentum, the weight decay and the decay of an average.
"""

import json
from typing import Any, Final

from trainables.config import TrialConfig
from trainables.method_config import DifficultyNetConfig, MetaLossSettings, WeightingSettings
from trainables.settings import differences

FUSED_CLASSIFIERS = frozenset({"linear", "mlp_adapter"})
FUSED_LOSSES = frozenset({"cross_entropy", "focal", "balanced_softmax", "logit_adjustment"})
FUSED_METHODS = FUSED_LOSSES | {"class_balanced", "cdb_ce", "difficulty_net", "meta_weight_net"}
OWN: Final[dict[str, Any]] = {
    "method": True,
    "classifier": {"bottleneck"},
    "optim": {"lr", "head_lr", "momentum", "weight_decay", "weight_decay_biases", "ema"},
    "bilevel": {"memory"},
}
"""The settings in which fused trials may differ. `bilevel.memory` changes no number, and fused trials are never short of it."""


def fusion_key(config: TrialConfig) -> str | None:
    """Trials with equal keys may be fused with each other. None for a trial that trains alone, as `why_alone` says."""
    if why_alone(config):
        return None
    return json.dumps(_common(config), sort_keys=True)


def dividing_differences(first: TrialConfig, second: TrialConfig) -> set[str]:
    """The settings, by dotted name, whose difference keeps two trials from being fused with each other."""
    return set(differences(_common(first), _common(second)))


def why_alone(config: TrialConfig) -> str:
    """Why no trial can be fused with this one, with the setting that is in the way; empty if some can."""
    method, classifier, bilevel, compute = config.method, config.classifier, config.bilevel, config.compute
    base = method.base_loss.name if isinstance(method, WeightingSettings) else "cross_entropy"
    meta = method.meta_loss.name if isinstance(method, MetaLossSettings) else "cross_entropy"
    sample = isinstance(method, DifficultyNetConfig) and method.difficulty == "sample"
    classifiers, losses = (", ".join(sorted(names)) for names in (FUSED_CLASSIFIERS, FUSED_LOSSES))
    reasons = {
        f"classifier.name is {classifier.name}; allowed: {classifiers}": classifier.name not in FUSED_CLASSIFIERS,
        f"method.name is {method.name}; allowed: {', '.join(sorted(FUSED_METHODS))}": method.name not in FUSED_METHODS,
        f"method.base_loss.name is {base}; allowed: {losses}": base not in FUSED_LOSSES,
        f"method.meta_loss.name is {meta}; allowed: {losses}": meta not in FUSED_LOSSES,
        "method.difficulty is sample; allowed: relative, absolute, fixed": sample,
        f"data.mix is {getattr(config.data, 'mix', 'none')}; allowed: none": getattr(config.data, "mix", "none") != "none",
        f"bilevel.meta_gradient is {bilevel.meta_gradient}; allowed: exact, none": bilevel.meta_gradient not in ("exact", "none"),
        f"bilevel.check_interval is {bilevel.check_interval}; allowed: 0": bilevel.check_interval > 0,
        f"compute.micro_batch is {compute.micro_batch}; allowed: null": compute.micro_batch is not None,
        f"compute.precision is {compute.precision}; allowed: float32, tf32, float64": compute.precision == "bf16",
        "compute.cuda_graphs is true; allowed: false": compute.cuda_graphs,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def _common(config: TrialConfig) -> dict[str, Any]:
    """The settings that fused trials share."""
    return config.model_dump(mode="json", exclude=OWN)
