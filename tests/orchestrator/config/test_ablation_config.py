"""Plans of ablations: which variants there are, and which plans are refused."""

from typing import Any

import pytest

from orchestrator.config.ablation_config import AblationConfig
from orchestrator.config.sweep_config import SweepConfig
from trainables.config_file import ConfigError, Origin, check

LIST = {"variants": {"plain": {"method.name": "cross_entropy"}, "ours": {}}, "reference": "plain"}
PARTS = {"a": {"optim.lr": 0.2}, "b": {"optim.momentum": 0.5}, "c": {"optim.weight_decay": 0.1}}


def sweep(plan: dict[str, Any], **changed: Any) -> SweepConfig:
    return check(SweepConfig, {"ablation": plan, **changed}, Origin("PLAN"))


def refusal(plan: dict[str, Any], **changed: Any) -> str:
    with pytest.raises(ConfigError) as error:
        sweep(plan, **changed)
    return str(error.value)


def settings(config: SweepConfig) -> dict[str, tuple[float, float, float]]:
    return {
        name: (trial.optim.lr, trial.optim.momentum, trial.optim.weight_decay) for name, trial in config.trials_of_cells().items()
    }


def test_every_variant_runs_on_every_seed_and_the_first_seeds_come_first() -> None:
    config = sweep({**LIST, "seeds": 3}, trial={"seed": 5})
    assert [(fixed.variant, fixed.trial.seed) for fixed in config.fixed_trials()] == [
        ("plain", 5), ("ours", 5), ("plain", 6), ("ours", 6), ("plain", 7), ("ours", 7),
    ]  # fmt: skip
    assert all(fixed.trial.read_test for fixed in config.fixed_trials())
    assert config.num_trials() == 6
    assert sweep({**LIST, "seeds": [9, 2]}).fixed_trials()[2].trial.seed == 2


def test_leave_one_out_takes_each_component_away_in_turn() -> None:
    config = sweep({"kind": "leave_one_out", "components": PARTS})
    assert settings(config) == {
        "full": (0.05, 0.9, 0),
        "without_a": (0.2, 0.9, 0),
        "without_b": (0.05, 0.5, 0),
        "without_c": (0.05, 0.9, 0.1),
    }
    assert config.ablation is not None
    assert config.ablation.reference_name == "full"


def test_add_one_in_and_factorial_begin_with_none_of_the_components() -> None:
    one = sweep({"kind": "add_one_in", "components": PARTS})
    assert list(settings(one)) == ["none", "with_a", "with_b", "with_c"]
    all_of_them = settings(sweep({"kind": "factorial", "components": PARTS}))
    assert list(all_of_them) == ["none", "a", "b", "c", "a+b", "a+c", "b+c", "a+b+c"]
    assert all_of_them["none"] == (0.05, 0.9, 0)
    assert all_of_them["a+c"] == (0.2, 0.9, 0.1)
    assert all_of_them["a+b+c"] == (0.2, 0.5, 0.1)


def test_factors_repeat_the_whole_table() -> None:
    factors = {
        "imbalance": {"50": {"data.imbalance_factor": 50}, "10": {"data.imbalance_factor": 10}},
        "noise": {"none": {}, "some": {"data.noise": {"kind": "symmetric", "rate": 0.2}}},
    }
    config = sweep({**LIST, "factors": factors, "published": {"plain": {"imbalance=10,noise=none": 0.5}}})
    found = {
        name: (trial.method.name, trial.data.imbalance_factor, trial.data.noise.rate)
        for name, trial in config.trials_of_cells().items()
    }
    assert len(found) == 8
    assert found["plain@imbalance=10,noise=some"] == ("cross_entropy", 10, 0.2)
    assert found["ours@imbalance=50,noise=none"] == ("difficulty_net", 50, 0)
    plan = config.ablation
    assert plan is not None
    published = {cell.name: plan.published_of(cell) for cell in plan.cells()}
    assert {name: number for name, number in published.items() if number} == {"plain@imbalance=10,noise=none": 0.5}


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({**LIST, "variants": {"plain": {"optim.lr": 0.05}, "ours": {}}}, "variant plain changes nothing"),
        (
            {**LIST, "variants": {"plain": {}, "x": {"optim.lr": 0.1}, "y": {"optim": {"lr": 0.1}}}},
            "variants x and y are the same",
        ),
        ({**LIST, "variants": {"plain": {}, "x": {"optim.lrr": 0.1}}}, "ablation, variant x: optim.lrr is not a setting"),
        ({**LIST, "variants": {"plain": {}, "x": {"seed": 3}}}, "variant x changes seed, which all trials must share"),
        ({**LIST, "variants": {"plain": {}}}, "variants gives 1 variant"),
        ({**LIST, "variants": {"plain": {}, "a b": {"optim.lr": 1}}}, "variants: 'a b' cannot be a name; allowed: letters"),
        ({**LIST, "reference": "focal"}, "reference is 'focal', which is no variant; allowed: plain, ours"),
        ({**LIST, "reference": "a.1"}, "allowed: plain, ours; no name has a dot, which stands for a level of nesting"),
        ({"variants": LIST["variants"]}, "reference is missing; allowed: plain, ours"),
        ({**LIST, "seeds": 1}, "ablation.test is paired_t, but ablation.seeds is 1"),
        ({**LIST, "seeds": 0}, "seeds is 0; allowed: a number from 1 on"),
        ({**LIST, "seeds": [1, 1]}, "seeds is [1, 1]; allowed: one or more seeds, each once"),
        ({**LIST, "seeds": {"min": 5, "max": 5}}, "max is 5, but min is 5"),
        ({**LIST, "seeds": 5, "test": "sign_flip"}, "with 5 seeds and 1 tests the smallest corrected p is 0.0625"),
        ({**LIST, "metric": "test/loss"}, "metric is 'test/loss'"),
        ({**LIST, "published": {"focal": 0.4}}, "published: 'focal' is no variant"),
        ({**LIST, "published": {"plain": {"x": 0.4}}}, "published.plain is {'x': 0.4}; allowed: a number"),
        ({"kind": "factorial", "variants": LIST["variants"]}, "kind is 'factorial'; allowed: components by name"),
        ({**LIST, "factors": {"lr": {"small": {}}}}, "factors.lr has fewer than two levels"),
    ],
)
def test_bad_plans_are_refused_with_the_reason(plan: dict[str, Any], message: str) -> None:
    assert message in refusal(plan)


def test_the_number_of_seeds_that_would_do_is_named() -> None:
    """Of 2^n sign patterns 2 are the most extreme: 2/2^n times the number of tests has to be at most 0.05."""
    assert "allowed: 6 seeds or more, or test: paired_t" in refusal({**LIST, "seeds": 5, "test": "sign_flip"})
    sweep({**LIST, "seeds": 6, "test": "sign_flip"})
    four = {"kind": "leave_one_out", "components": {**PARTS, "d": {"optim.batch_size": 16}}, "test": "sign_flip"}
    assert "allowed: 8 seeds or more" in refusal({**four, "seeds": 7})
    sweep({**four, "seeds": 8})


def test_one_seed_is_enough_where_no_test_is_asked_for() -> None:
    assert sweep({**LIST, "seeds": 1, "test": None}).num_trials() == 2


@pytest.mark.parametrize("name", ["space", "search", "scheduler"])
def test_nothing_is_searched(name: str) -> None:
    given = {
        "space": {"optim.lr": {"type": "float", "low": 0.1, "high": 1}},
        "search": {"trials": 3},
        "scheduler": {"name": "none"},
    }
    assert f"{name} is set, but an ablation neither searches nor stops early" in refusal(LIST, **{name: given[name]})


def test_the_test_set_stays_sealed_in_a_sweep() -> None:
    with pytest.raises(ConfigError, match=r"trial\.read_test is true, but a sweep reads the test set once"):
        check(SweepConfig, {"trial": {"read_test": True}}, Origin("SWEEP"))


def test_looks_end_at_the_most_seeds() -> None:
    plan = AblationConfig.model_validate({**LIST, "seeds": {"min": 3, "max": 12}})
    assert not isinstance(plan.seeds, int | list)
    assert plan.seeds.looks() == [3, 5, 8, 12]
    assert plan.num_tests() == 4
    assert plan.most_seeds() == 12


SEARCHES = {"kind": "searches", "reference": "cross_entropy", "seeds": 3, "metric": "val/acc"}
LR = {"optim.lr": {"type": "float", "low": 0.1, "high": 1}}
ARMS = {"trials": 2, "references": {"cross_entropy": {"method.name": "cross_entropy", "tuned": True}, "as_is": {"optim.lr": 0.3}}}


def test_the_arms_of_a_search_are_the_variants_of_an_ablation_that_repeats_it() -> None:
    config = sweep(SEARCHES, space=LR, search={**ARMS, "seed": 7}, trial={"seed": 5})
    assert list(config.comparison.changes_by_variant()) == ["difficulty_net", "cross_entropy"]
    assert config.comparison.num_tests() == 1
    assert [(one.search.seed, one.trial.seed) for one in config.searches()] == [(7, 5), (8, 105), (9, 205)]
    first = config.searches()[0]
    assert first.ablation is None
    assert (first.num_trials(), first.num_searched()) == (config.num_trials(), config.num_searched()) == (5, 4)
    methods = {"method.name": {"type": "categorical", "choices": ["cross_entropy", "focal"]}, **LR}
    assert list(sweep(SEARCHES, space=methods, search={"per_method": 2}).comparison.variants) == ["cross_entropy", "focal"]


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({**SEARCHES, "variants": LIST["variants"]}, "whose variants are the arms of the search; allowed: leave variants out"),
        ({**SEARCHES, "components": PARTS}, "allowed: leave components out"),
        ({**SEARCHES, "factors": {"lr": {"a": {}, "b": {"optim.lr": 1}}}}, "allowed: leave factors out"),
        ({**SEARCHES, "published": {"cross_entropy": 0.4}}, "allowed: leave published out"),
        ({**SEARCHES, "reference": None}, "reference is missing; allowed: an arm, which is a method of space.method.name"),
        (
            {**SEARCHES, "reference": "as_is"},
            "reference is 'as_is', which is no arm of the search; allowed: difficulty_net, cross",
        ),
        ({**SEARCHES, "seeds": [1, 2]}, "seeds is [1, 2], but kind is 'searches'; allowed: a number of searches"),
        ({**SEARCHES, "seeds": {"min": 3, "max": 6}}, "but kind is 'searches'; allowed: a number of searches"),
        ({**SEARCHES, "seeds": 1}, "ablation.test is paired_t, but ablation.seeds is 1"),
        ({**SEARCHES, "test": "sign_flip"}, "with 3 seeds and 1 tests the smallest corrected p is 0.25"),
        (
            {**SEARCHES, "metric": "test/acc"},
            "a search reads test for the model that it exports, and for no other arm; allowed: val",
        ),
    ],
)
def test_bad_plans_of_searches_are_refused_with_the_reason(plan: dict[str, Any], message: str) -> None:
    assert message in refusal(plan, space=LR, search=ARMS)


def test_a_search_that_is_repeated_is_checked_as_any_search() -> None:
    one_arm = {"trials": 2, "references": {"cross_entropy": {"method.name": "cross_entropy"}}}
    assert "but the search has a single arm, so that there is nothing to compare" in refusal(SEARCHES, space=LR, search=one_arm)
    assert "optim.lrr is not a setting" in refusal(SEARCHES, space={"optim.lrr": LR["optim.lr"]}, search=ARMS)
    assert "allowed: at most 99" in refusal(SEARCHES, space=LR, search={**ARMS, "confirm": {"seeds": 100}})


def test_a_path_that_cannot_be_gone_is_refused() -> None:
    path = {"kind": "path", "components": PARTS}
    assert "reference is 'a', which may not lie on the path; allowed: none, full" in refusal({**path, "reference": "a"})
    assert "whose steps are chosen on all seeds" in refusal({**path, "seeds": {"min": 3, "max": 12}})
    assert "the number of components is 1; allowed: 2 to 10" in refusal({**path, "components": {"a": PARTS["a"]}})
    assert "components: 'full' is the name of a variant" in refusal({**path, "components": {"full": PARTS["a"], "b": PARTS["b"]}})
    levels = {"imbalance": {"10": {"data.imbalance_factor": 10}, "20": {"data.imbalance_factor": 20}}}
    assert "factors is set; allowed: no factors" in refusal({**path, "factors": levels})


def test_every_set_of_a_path_s_components_is_checked_before_the_start() -> None:
    names = {"plain": {"method.name": "cross_entropy"}, "net": {"method.name": "meta_weight_net"}}
    said = refusal({"kind": "path", "components": names | {"width": {"method.hidden_width": 8}}})  # only plain+width is wrong
    assert "ablation, variant plain+width" in said
    assert "hidden_width" in said
