"""The head of a cluster, seen from a laptop: Ray's cluster launcher and, through it, Ray's jobs on the head.

All output goes to a log file; what a person should see is returned or passed on.
"""

import json
import os
import re
import shlex
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from orchestrator.cluster.cluster_file import LOCAL, ClusterFile
from orchestrator.ledger.ledger import LEDGER

JOBS = "http://127.0.0.1:8265"
"""Where the head takes jobs; it listens there for itself alone."""
INTERRUPTED = 130
"""The exit code of a sweep that was interrupted, and whose state is saved."""
KILLED = 137
"""The exit code of a sweep whose process was killed, so that nobody knows what it has saved."""
STOP_S = 600
"""Seconds that a sweep has for saving its state when its job is stopped: epochs are ended first."""
LISTED_JOBS = f"""
from ray.job_submission import JobSubmissionClient
try:
    jobs = JobSubmissionClient("{JOBS}").list_jobs()
except ConnectionError:
    jobs = []
print("jobs:", *(job.submission_id or job.job_id for job in jobs if not job.status.is_terminal()))
"""
"""Prints the jobs that run on the head, those that were not submitted as well; none where Ray does not run."""
TAIL = 20
"""Lines of a failed command that are shown."""


class StepFailed(RuntimeError):
    """A command of Ray failed. The text says which, and shows its last lines."""


class Found(NamedTuple):
    """What a head that is up holds."""

    jobs: list[str]
    """The jobs that run."""
    begins: str | None
    """Digest of the first line of the sweep's ledger, by which sweeps are told apart; None when the head has no such sweep."""
    size: int
    """Bytes of that ledger."""
    shared: str
    """Digest of as many of its first bytes as the ledger on this machine has."""
    known: bool
    """Whether Ray on this machine knows the cluster. What it knows of machines that stay lies in /tmp, until a restart."""


class Head:
    """The head of a cluster.

    Args:
        cluster: the cluster's file.
        clone: the folder of the clone on the head.
        ray: the path of the command `ray`.
        log: the file for all output.
    """

    def __init__(self, cluster: ClusterFile, clone: str, ray: str, log: Path) -> None:
        self.cluster, self.clone, self.ray, self.log = cluster, clone, ray, log
        self.sweeps = "~/launched"

    def look(self, name: str, size: int = 0) -> Found | None:
        """What the head does, and whether it holds the sweep `name`; None when there is no head.

        Args:
            name: of the sweep.
            size: bytes of the sweep's ledger on this machine.

        Raises:
            StepFailed: when there may be a head, but it does not answer.
        """
        ledger = f"results/{name}/{LEDGER}"
        command = (
            f"cd {self.clone} 2>/dev/null || {{ echo jobs:; exit 0; }}; "
            f"test -e {ledger} && echo begins: $(head -n 1 {ledger} | sha256sum | cut -c -64) $(wc -c < {ledger}) "
            f"$(head -c {size} {ledger} | sha256sum | cut -c -64); "
            "test -x .venv/bin/python || { echo jobs:; exit 0; }; "
            f"RAY_AUTH_MODE=token .venv/bin/python -c {shlex.quote(LISTED_JOBS)}"
        )
        known = True
        try:
            said = self.on_head(command)
        except StepFailed as error:
            if not re.search(r"Head node of cluster .*not found", str(error)):
                raise
            if self.cluster.provider != LOCAL:
                return None
            provider, known = self.cluster.tree["provider"], False
            said = self._step(_ssh(self.cluster, str(provider.get("external_head_ip") or provider["head_ip"]), command))
        jobs, begins = (
            re.search(r"^jobs:(.*)$", said, re.MULTILINE),
            re.search(r"^begins: (\w+) +(\d+) +(\w+)", said, re.MULTILINE),
        )
        if jobs is None:
            raise StepFailed(f"the head does not say what runs there; all output: {self.log}")
        if begins is None:
            return Found(jobs.group(1).split(), None, 0, "", known)
        return Found(jobs.group(1).split(), begins.group(1), int(begins.group(2)), begins.group(3), known)

    def up(self) -> None:
        """Starts the cluster; Ray on its machines is started anew."""
        self._run("up", str(self.cluster.path), "--yes")

    def down(self) -> None:
        """Ends the cluster."""
        self._run("down", str(self.cluster.path), "--yes")
        if self.cluster.provider == LOCAL:  # these machines stay, and Ray 2.60 leaves processes on them
            for address in self.cluster.tree["provider"]["worker_ips"]:
                self._step(_ssh(self.cluster, str(address), f"cd && {self.clone}/.venv/bin/ray stop"))

    def bring(self, folder: Path, there: str) -> None:
        """Copies the content of a folder to the head."""
        self.on_head(f"mkdir -p {there}")
        self._run("rsync-up", str(self.cluster.path), f"{folder}/", f"{there}/")

    def fetch(self, there: str, folder: Path) -> None:
        """Copies the content of a folder of the head to this machine."""
        folder.mkdir(parents=True, exist_ok=True)
        self._run("rsync-down", str(self.cluster.path), f"{there}/", f"{folder}/")

    def submit(self, job: str, command: str) -> None:
        """Starts a command of the clone on the head; it needs nobody who watches."""
        started = f"cd {self.clone} && RAY_AUTH_MODE=token exec {command}"
        patience = json.dumps({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_S)}})
        options = f"--no-wait --submission-id {job} --runtime-env-json {shlex.quote(patience)}"
        self.on_head(self.of_jobs("submit", f"{options} -- bash -c {shlex.quote(started)}"))

    def follow(self, job: str, skip: int, show: Callable[[str], None]) -> tuple[int | None, int]:
        """Passes on what a job prints, until it ends.

        Args:
            job: its name.
            skip: the number of lines that were passed on before.
            show: takes each line.

        Returns: the job's exit code, None when the connection ended before the job; and the number of lines so far.
        """
        words = [self.ray, "exec", str(self.cluster.path), self.of_jobs("logs", f"--follow {job}")]
        begun, number = False, 0
        outcome: list[str] = []
        self._note(words)
        with self.log.open("a", encoding="utf-8") as log, _started(words, subprocess.PIPE, log.fileno()) as process:
            assert process.stdout
            try:
                for line in process.stdout:
                    log.write(line)
                    if outcome or re.search(rf"Job '{job}' (succeeded|failed|was stopped)", line):
                        outcome.append(line)
                    elif begun and not re.search(r"^-{10,}$|\tINFO sdk.py:", line.rstrip()):  # Ray's own lines
                        number += 1
                        if number > skip:
                            show(line.rstrip("\n"))
                    begun = begun or f"Running entrypoint for job {job}" in line
            except BaseException:
                process.terminate()
                raise
        return exit_code(outcome), max(number, skip)

    def on_head(self, command: str) -> str:
        """The output of a command on the head."""
        return self._run("exec", str(self.cluster.path), command)

    def of_jobs(self, action: str, words: str) -> str:
        """The command, on the head, that does something with jobs."""
        return f"cd {self.clone} && RAY_AUTH_MODE=token .venv/bin/ray job {action} --log-color=false --address {JOBS} {words}"

    def _run(self, *words: str) -> str:
        return self._step([self.ray, *words])

    def _step(self, words: list[str]) -> str:
        """Runs a command to its end, and returns its output.

        Raises:
            StepFailed: when it fails.
        """
        self._note(words)
        with self.log.open("a+b") as log:
            begin = log.seek(0, os.SEEK_END)
            # A file in place of a pipe, which a connection that ssh keeps for the next command would hold open.
            with _started(words, log.fileno(), log.fileno()) as process:
                try:
                    code = process.wait()
                except BaseException:
                    process.terminate()
                    raise
            log.seek(begin)
            said = log.read().decode(errors="replace").replace("\r\n", "\n")
        if code:
            last = "\n    ".join(said.rstrip().splitlines()[-TAIL:])
            raise StepFailed(
                f"{f'ray {words[1]}' if words[0] == self.ray else words[0]} failed; all output: {self.log}\n    {last}"
            )
        return said

    def _note(self, words: list[str]) -> None:
        """Writes into the log which command comes."""
        with self.log.open("a", encoding="utf-8") as log:
            log.write(f"\n{time.strftime('%H:%M:%S')} $ {shlex.join(words)}\n")


def exit_code(outcome: list[str]) -> int | None:
    """The exit code of a job, from the lines with which Ray says how it ended; None when it said nothing."""
    said = "".join(outcome)
    if not said or "succeeded" in outcome[0]:
        return 0 if said else None
    if "was stopped" in outcome[0]:
        return INTERRUPTED
    found = re.search(r"exit code (-?\d+)", said)
    code = int(found.group(1)) if found else -1
    return code if code >= 0 else KILLED


def _started(words: list[str], stdout: int, stderr: int) -> "subprocess.Popen[str]":
    """A process that reads nothing: with a terminal as input, ssh would take Ctrl-C away from this program."""
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}
    return subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        text=True,
        encoding="utf-8",
        errors="replace",
        env=environment,
    )


def _ssh(cluster: ClusterFile, address: str, command: str) -> list[str]:
    """A command on a machine that stays, reached as Ray reaches it."""
    auth = cluster.tree.get("auth") or {}
    options = [
        "BatchMode=yes",
        "ConnectTimeout=20",
        "StrictHostKeyChecking=no",
        f"UserKnownHostsFile={os.devnull}",
        "LogLevel=ERROR",
    ]
    if proxy := auth.get("ssh_proxy_command"):
        options.append(f"ProxyCommand={proxy}")
    key = ["-i", os.path.expanduser(str(auth["ssh_private_key"]))] if auth.get("ssh_private_key") else []
    return ["ssh", *(word for option in options for word in ("-o", option)), *key, f"{auth['ssh_user']}@{address}", command]
