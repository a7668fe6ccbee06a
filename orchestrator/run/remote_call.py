"""Calls a function on a machine of the cluster that a trial's worker would run on. Such a machine may have to come first."""

import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import ray

from orchestrator.cluster.autoscaler import doings
from orchestrator.cluster.placement import in_words, needs_of_worker
from orchestrator.config.sweep_config import SweepConfig
from orchestrator.run.machine_watch import SILENT_S

POLL_S = 0.5
RETRIES = 3
"""How often a call is repeated when its machine was lost."""
Given = ParamSpec("Given")
Result = TypeVar("Result")


class CallLost(RuntimeError):
    """One machine after the other was lost before the function returned."""


def call_on_worker(
    config: SweepConfig,
    note: Callable[[str], None],
    check: Callable[[], None],
    function: Callable[Given, Result],
    *args: Given.args,
    **kwargs: Given.kwargs,
) -> Result:
    """The result of a function that has the resources of one worker of the sweep, on whichever machine has them.

    Args:
        config: of the sweep.
        note: tells a person what is waited for, after a minute.
        check: called twice a second while waiting; may raise.
        function: what runs there.
        args: for the function.
        kwargs: for the function.

    Raises:
        CallLost: when the call was repeated in vain.
        Exception: what the function raised there.
    """
    needs = needs_of_worker(config)
    task = ray.remote(function).options(num_cpus=needs["CPU"], num_gpus=needs.get("GPU", 0), max_retries=RETRIES)
    reference, told, since = task.remote(*args, **kwargs), "", time.monotonic()
    while not ray.wait([reference], timeout=POLL_S)[0]:
        check()
        if time.monotonic() - since > SILENT_S and (text := f"waiting for a machine with {in_words(needs)} ({doings()})") != told:
            note(text)
            told = text
    try:
        result: Result = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayError as error:
        raise CallLost(f"{RETRIES + 1} machines were lost one after the other: {str(error).splitlines()[0]}") from error
    return result
