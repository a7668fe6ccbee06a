"""Ablations in virtual time: which trials run, in which order, and which variants get more seeds."""

import random
from typing import Any

import numpy as np
import pytest

from orchestrator.config.sweep_config import SweepConfig
from orchestrator.decide.conductor import Conductor, decision_hash
from orchestrator.decide.virtual_sweep import Virtual, run
from orchestrator.ledger.events import Event, Kind
from trainables.config_file import Origin, check

VARIANTS = {"plain": {}, "same": {"optim.lr": 0.1}, "better": {"optim.lr": 0.2}, "noisy": {"optim.lr": 0.3}}


def ablation(**changed: Any) -> SweepConfig:
    plan = {"variants": VARIANTS, "reference": "plain", "seeds": {"min": 3, "max": 12}, "margin": 0.02, **changed}
    return check(SweepConfig, {"ablation": plan, "trial": {"epochs": 2}}, Origin("PLAN"))


def curve(settings: dict[str, Any], epoch: int) -> float | None:
    """`same` has the scores of `plain`, `better` has 10 points more, and `noisy` no other mean but large differences."""
    rng = np.random.default_rng(settings["seed"])
    of_seed, chance = rng.normal(0, 0.05), rng.normal(0, [0.001, 0.01, 0.1])
    extra = {0.05: 0.0, 0.1: chance[0], 0.2: 0.1 + chance[1], 0.3: chance[2]}[settings["optim.lr"]]
    return 0.5 + of_seed + extra


def seeds_of(done: Virtual) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {name: [] for name in VARIANTS}
    for event in done.events:
        if event["event"] == Kind.SUGGEST:
            found[event["variant"]].append(event["seed"])
    return found


def test_decided_variants_get_no_more_seeds_and_the_others_get_the_most() -> None:
    found = seeds_of(run(ablation(), curve, slots=2))
    assert found["noisy"] == found["plain"] == list(range(12))
    assert len(found["better"]) < 8
    assert len(found["same"]) < 8


def test_no_seed_is_added_once_all_variants_are_decided() -> None:
    decided = {name: change for name, change in VARIANTS.items() if name != "noisy"}
    done = run(ablation(variants=decided), curve, slots=3)
    assert done.conductor.over
    longest = max(map(len, seeds_of(done).values()))
    assert len(seeds_of(done)["plain"]) == longest < 12


def test_the_same_trials_run_on_any_number_of_slots() -> None:
    hashes = {decision_hash(run(ablation(), curve, slots, seed=slots).events) for slots in (1, 4)}
    assert len(hashes) == 1


def test_the_rule_looks_at_val_and_at_the_epoch_of_the_metric() -> None:
    """On val, `better` is better in its best epoch and no better in its last."""

    def falling(settings: dict[str, Any], epoch: int) -> float | None:
        value = curve(settings, epoch)
        assert value is not None
        return value if epoch == 1 or settings["optim.lr"] != 0.2 else value - 0.1

    assert len(seeds_of(run(ablation(metric="test/acc"), falling, slots=2))["better"]) < 8
    at_the_end = seeds_of(run(ablation(metric="test_last/acc", margin=0.0001), falling, slots=2))
    assert len(at_the_end["better"]) == 12


def test_a_variant_that_always_diverges_asks_for_all_seeds_and_ends() -> None:
    done = run(ablation(), lambda settings, epoch: None if settings["optim.lr"] == 0.3 else curve(settings, epoch), slots=2)
    assert done.conductor.over
    assert len(seeds_of(done)["noisy"]) == 12


@pytest.mark.parametrize("seed", range(3))
def test_an_ablation_that_is_cut_off_anywhere_goes_on_as_if_nothing_had_happened(seed: int) -> None:
    config, draw = ablation(), random.Random(seed)
    whole = run(config, curve, slots=2)
    cut = draw.randrange(1, len(whole.events))
    resumed: list[Event] = list(whole.events[:cut])
    conductor = Conductor(config, 2, lambda event, **fields: resumed.append({"event": event, **fields}) or resumed[-1])  # type: ignore[arg-type, func-returns-value]
    conductor.restore(resumed)
    asked = {event["trial_id"]: (event["variant"], event["seed"]) for event in whole.events if event["event"] == Kind.SUGGEST}
    kept = {event["trial_id"]: (event["variant"], event["seed"]) for event in resumed if event["event"] == Kind.SUGGEST}
    assert kept.items() <= asked.items()
    assert conductor.over == (not [1 for event in whole.events[cut:] if event["event"] in (Kind.SUGGEST, Kind.TRIAL_END)])


def test_a_fixed_number_of_seeds_is_never_extended() -> None:
    assert {len(seeds) for seeds in seeds_of(run(ablation(seeds=4), curve, slots=2)).values()} == {4}
