from orchestrator.decide.fresh_seeds import candidates, fresh_seeds


def test_of_equal_configurations_one_is_a_candidate() -> None:
    scores = {"t0": 0.7, "t1": 0.9, "t2": 0.9, "t3": None, "t4": 0.8}
    configurations = {"t0": "a", "t1": "b", "t2": "b", "t3": "c", "t4": "d"}
    assert candidates(scores, configurations, 2) == ["t1", "t4"]
    assert candidates(scores, configurations, 9) == ["t1", "t4", "t0"]


def test_what_is_confirmed_in_any_case_takes_no_place() -> None:
    scores, configurations = {"t0": 0.7, "t1": 0.9, "t2": 0.8, "t3": 0.6}, {"t0": "a", "t1": "b", "t2": "c", "t3": "d"}
    assert candidates(scores, configurations, 1, {"b", "d"}) == ["t1", "t2", "t3"]


def test_a_configuration_that_ran_on_several_seeds_has_their_mean() -> None:
    scores = {"t0": 0.5, "t1": 0.9, "t2": 0.65, "t3": None}
    configurations = {"t0": "a", "t1": "a", "t2": "b", "t3": "b"}
    assert candidates(scores, configurations, 2) == ["t0", "t2"]  # 0.7 and 0.65: not 0.9
    assert candidates(scores | {"t0": 0.3}, configurations, 2) == ["t2", "t0"]


def test_fresh_seeds_have_not_been_used() -> None:
    assert fresh_seeds([0, 3, 1], 2) == [4, 5]
