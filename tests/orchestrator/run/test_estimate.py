import pytest

from orchestrator.config.scheduler_config import HyperbandConfig, RunAllConfig
from orchestrator.config.search_config import ConfirmConfig
from orchestrator.config.sweep_config import SweepConfig
from orchestrator.decide.schedulers import Hyperband
from orchestrator.run.estimate import expected_epochs


def test_expected_epochs_follow_the_rungs(config: SweepConfig) -> None:
    # 2 references of 40; 22 trials: all reach epoch 15, half go on to 30, a quarter to 40.
    assert expected_epochs(config) == 2 * 40 + 22 * (15 + 15 / 2 + 10 / 4)
    assert expected_epochs(config.model_copy(update={"scheduler": RunAllConfig()})) == 24 * 40
    confirmed = config.search.model_copy(update={"confirm": ConfirmConfig(top=2, seeds=3)})
    assert expected_epochs(config.model_copy(update={"search": confirmed})) == expected_epochs(config) + 6 * 40
    # Half of the trials as above, a third begins at rung 30, the rest is never judged.
    hyperband = HyperbandConfig(grace_epochs=15, reduction_factor=2)
    shares = [Hyperband(config.model_copy(update={"scheduler": hyperband})).bracket(number) for number in range(24)]
    each = {0: 15 + 15 / 2 + 10 / 4, 1: 30 + 10 / 2, 2: 40}
    mean = sum(each[bracket] for bracket in shares) / 24
    assert expected_epochs(config.model_copy(update={"scheduler": hyperband})) == pytest.approx(2 * 40 + 22 * mean)
