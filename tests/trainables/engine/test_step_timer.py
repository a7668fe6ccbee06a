import math

import pytest
from clock import Clock

from trainables.engine.step_timer import StepTimer


def test_what_happens_beside_the_steps_is_left_out() -> None:
    clock = Clock()
    timer = StepTimer(clock.time, lambda: None)
    with timer.step(counts=False):
        clock.now += 100
        with timer.aside():  # is left out already
            clock.now += 10
    for seconds in (1, 3):
        with timer.step(counts=True):
            with timer.aside():
                clock.now += 50
            clock.now += seconds
    assert timer.mean_s() == pytest.approx(2)


def test_work_that_a_device_has_yet_to_do_belongs_to_the_steps_that_gave_it() -> None:
    clock, pending = Clock(), []

    def wait() -> None:
        clock.now += sum(pending)
        pending.clear()

    timer = StepTimer(clock.time, wait)
    for counts, seconds in ((True, 2.0), (False, 70.0), (True, 4.0)):
        with timer.step(counts=counts):
            pending.append(seconds)
    wait()
    assert timer.mean_s() == pytest.approx(3)


def test_there_is_no_mean_of_no_steps() -> None:
    timer = StepTimer(Clock().time, lambda: None)
    assert math.isnan(timer.mean_s())
