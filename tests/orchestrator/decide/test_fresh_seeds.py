from orchestrator.decide.fresh_seeds import candidates, fresh_seeds


def test_of_equal_configurations_one_is_a_candidate() -> None:
    scores = {"t0": 0.7, "t1": 0.9, "t2": 0.9, "t3": None, "t4": 0.8}
    configurations = {"t0": "a", "t1": "b", "t2": "b", "t3": "c", "t4": "d"}
    assert candidates(scores, configurations, 2) == ["t1", "t4"]
    assert candidates(scores, configurations, 9) == ["t1", "t4", "t0"]


def test_fresh_seeds_have_not_been_used() -> None:
    assert fresh_seeds([0, 3, 1], 2) == [4, 5]
