"""Runs a sweep on a cluster with one command from a laptop: starts the cluster, submits and follows the sweep, fetches results.

The sweep is a Ray job on the head, so that it goes on when the laptop sleeps, loses its network or is closed.
"""

import os
import shlex
import shutil
import tempfile
import time
from pathlib import Path

from orchestrator.cluster.cluster_file import LOCAL
from orchestrator.cluster.head import INTERRUPTED, Found, Head, StepFailed
from orchestrator.cluster.launch_checks import (
    Down,
    Launch,
    check_launch,
    check_results,
    cluster_name,
    first_line,
    look,
    own_job,
    ray_command,
)
from orchestrator.ledger.head import HEAD
from orchestrator.ledger.ledger import LEDGER
from trainables.command_line import ended_like_ctrl_c

REFUSED = 2
"""The exit code of a sweep whose input was wrong, so that nothing was started."""
CONCLUSIVE = (0, 1, REFUSED)
"""The exit codes with which a sweep says that the store has all its results, if it wrote any."""
RETRY_S, RETRIES = 10.0, 60
"""Seconds between attempts to follow a sweep again after the connection was lost, and their number."""


def launch(asked: Launch) -> int:
    """Runs what is asked for, and tells each step. Returns the exit code of the sweep.

    Raises:
        ConfigError: when something is wrong that can be seen before anything is started.
    """
    clone, ray = check_launch(asked.cluster, asked.config, str(asked.file)), ray_command()
    assert ray
    if not asked.store and not asked.resume:
        check_results(asked.results)
    descriptor, log = tempfile.mkstemp(prefix=f"tailtune-{asked.name}-", suffix=".log")
    os.close(descriptor)
    head = Head(asked.cluster, clone, ray, Path(log))
    say(f"looking for a running cluster {cluster_name(asked)} (output of all commands: {log}) ...")
    found = look(asked, head)
    job = own_job(found, asked.name)
    with ended_like_ctrl_c():
        try:
            if job is None:
                try:
                    start(asked, head, found)
                    job = f"{asked.name}-{time.strftime('%Y%m%d-%H%M%S')}"
                    head.submit(job, command_of(asked, head))
                except StepFailed as error:
                    return failed(asked, head, error, begun=found is not None)
            say(f"the sweep runs on the head as the job {job}; Ctrl-C stops watching, not the sweep")
            code = watch(head, job)
        except StepFailed as error:
            return failed(asked, head, error, begun=True)
        except KeyboardInterrupt:
            return interrupted(asked, head, job)
        try:
            return conclude(asked, head, code)
        except KeyboardInterrupt:
            say(f"\ninterrupted; the results are on the head; this fetches them: {asked.again}\n{stays_up(head)}")
            return INTERRUPTED


def start(asked: Launch, head: Head, found: Found | None) -> None:
    """Starts the cluster, and brings to the head what the sweep needs.

    Raises:
        StepFailed: when a step fails.
    """
    say(f"starting the cluster {cluster_name(asked)} (ray up {asked.cluster.path}) ...")
    head.up()
    say("bringing the sweep to the head ...")
    with tempfile.TemporaryDirectory() as folder:
        shutil.copyfile(asked.file, Path(folder) / f"{asked.name}.yaml")
        if asked.warm_start:
            earlier = Path(folder) / f"{asked.name}-warm-start"
            earlier.mkdir()
            for name in (LEDGER, HEAD):
                if (asked.warm_start / name).is_file():
                    shutil.copyfile(asked.warm_start / name, earlier / name)
        head.bring(Path(folder), head.sweeps)
    if asked.resume and not asked.store and not (found and found.begins) and first_line(asked.results):
        say(f"bringing {asked.results} to the head, which has no such sweep ...")
        head.bring(asked.results, f"{head.clone}/results/{asked.name}")


def command_of(asked: Launch, head: Head) -> str:
    """The command, on the head, that runs the sweep."""
    words = [*asked.overrides, "--name", asked.name, "--address", "auto"]
    words += ["--results", asked.store] if asked.store else []
    words += ["--resume"] if asked.resume else []
    earlier = f" --warm-start {head.sweeps}/{asked.name}-warm-start" if asked.warm_start else ""
    module = f".venv/bin/python -m orchestrator.{asked.verb}"
    return f"{module} {head.sweeps}/{asked.name}.yaml {shlex.join(words)}{earlier}"  # the shell there replaces `~`


def watch(head: Head, job: str) -> int:
    """Shows what the sweep prints until it ends, also over a connection that gets lost. Returns the exit code of the sweep.

    Raises:
        StepFailed: when the head has not answered for long.
    """
    shown = tries = 0
    while True:
        code, number = head.follow(job, shown, say)
        if code is not None:
            return code
        tries, shown = 1 if number > shown else tries + 1, number
        if tries > RETRIES:
            raise StepFailed(f"the head has not answered for {RETRIES * RETRY_S:.0f} s; the sweep may go on there")
        if tries == 1:
            say("the connection to the head was lost; the sweep goes on, and is followed again as soon as the head answers ...")
        time.sleep(RETRY_S)


def conclude(asked: Launch, head: Head, code: int) -> int:
    """Fetches the results and, if that is wanted, ends the cluster. Returns the exit code."""
    # The commands that the sweep itself names are those of the head.
    on = f"; to go on with it on the cluster: {asked.again}"
    say({0: "the sweep has ended", INTERRUPTED: f"the sweep was interrupted{on}"}.get(code, f"the sweep has failed{on}"))
    try:
        fetch(asked, head, code)
    except StepFailed as error:
        say(f"error: {error}\nThe results are on the head, and the cluster stays as it is. This fetches them: {asked.again}")
        say(stays_up(head))
        return code or 1
    if asked.down is Down.ALWAYS or (asked.down is Down.SUCCESS and code == 0):
        return code if end(asked, head) else code or 1
    say(stays_up(head))
    return code


def fetch(asked: Launch, head: Head, code: int) -> None:
    """Brings the results to this machine.

    Raises:
        StepFailed: when that fails, or no sweep has come.
    """
    if asked.store:
        if code not in CONCLUSIVE:
            raise StepFailed(f"the results are whole on the head alone; {asked.store} may lack a part of them")
        say(f"results: {asked.store}")
        return
    if code == REFUSED and (found := head.look(asked.name)) and not found.begins:
        say("the sweep was refused on the head; there are no results")
        return
    say(f"fetching the results (ray rsync-down {asked.cluster.path}) ...")
    head.fetch(f"{head.clone}/results/{asked.name}", asked.results)
    if first_line(asked.results) is None:
        raise StepFailed(f"{asked.results} holds no sweep after it was fetched; output of all commands: {head.log}")
    say(f"results: {asked.results}")


def end(asked: Launch, head: Head) -> bool:
    """Ends the cluster. Returns whether that worked."""
    say(f"ending the cluster {cluster_name(asked)} (ray down {asked.cluster.path}) ...")
    try:
        head.down()
    except StepFailed as error:
        say(f"error: {error}\n{stays_up(head)}")
        return False
    return True


def failed(asked: Launch, head: Head, error: StepFailed, begun: bool) -> int:
    """Tells what is to be done when a step failed. Returns the exit code.

    Args:
        asked: for.
        head: of the cluster.
        error: the step.
        begun: whether there may be something on the head that would be lost with it.
    """
    say(f"error: {error}")
    if asked.down is Down.ALWAYS and not begun:
        end(asked, head)
    else:
        say(f"to try again: {asked.again}\n{stays_up(head)}")
    return 1


def interrupted(asked: Launch, head: Head, job: str | None) -> int:
    """Tells what goes on after Ctrl-C, and how to end that. Returns the exit code."""
    if job is None:
        say(f"\ninterrupted before the sweep was submitted\n{stays_up(head)}")
        return INTERRUPTED
    stop = shlex.join([head.ray, "exec", str(asked.cluster.path), head.of_jobs("stop", job)])
    say(f"\nstopped watching; the sweep goes on, on the head\n  to follow it again: {asked.again}\n  to stop it: {stop}")
    say(stays_up(head))
    return INTERRUPTED


def stays_up(head: Head) -> str:
    """A line about what goes on costing money, with the command that ends it."""
    down = shlex.join([head.ray, "down", str(head.cluster.path)])
    if head.cluster.provider == LOCAL:
        return f"the cluster stays up; this ends it: {down}, then on each worker: {head.clone}/.venv/bin/ray stop"
    return f"the cluster stays up, and its head costs money until: {down}"


def say(text: str) -> None:
    """Tells a person."""
    print(text, flush=True)
