"""Two hosts on this machine, each with processes, network, files and sshd of its own: one command runs a sweep over both.

Needs openssh-server, rsync, iproute2, util-linux, and root.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from tools import need

from orchestrator.ledger.ledger import read_ledger

ROOT = Path(__file__).parents[2]
HEAD, WORKER = "10.77.0.1", "10.77.0.2"
TOOLS = ("unshare", "nsenter", "ip", "sshd", "ssh", "ssh-keygen", "rsync")
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"


class Host(NamedTuple):
    """A host; `first` is the first process of its namespace."""

    first: int
    home: Path

    def inside(self, *command: str) -> list[str]:
        return ["nsenter", f"--target={self.first}", "--pid", "--mount", "--net", "--uts", *command]

    def processes(self) -> list[str]:
        """The command lines of its processes."""
        done = subprocess.run(self.inside("ps", "-eo", "args"), capture_output=True, text=True, check=True)
        return done.stdout.splitlines()[1:]


@contextmanager
def host(folder: Path, name: str, key: Path) -> Iterator[Host]:
    """A host without a network. Its home and /tmp are folders of its own; the rest of the disk is this machine's."""
    home, temporary = folder / name / "home", folder / name / "tmp"
    (home / ".ssh").mkdir(parents=True)
    temporary.mkdir()
    temporary.chmod(0o1777)
    shutil.copy(key.with_suffix(".pub"), home / ".ssh" / "authorized_keys")
    here = Path.home()
    script = ["set -e", f"hostname {name}"]
    for hidden, shown in ((here, home), (Path("/tmp"), temporary)):
        for place in (Path(sys.base_prefix), ROOT):  # this Python and this clone may lie below what is hidden
            if place.is_relative_to(hidden):
                copy = shown / place.relative_to(hidden)
                copy.mkdir(parents=True)
                script.append(f"mount --bind {place} {copy}")
    script += [f"mount --rbind {home} {here}", f"mount --rbind {temporary} /tmp", "ip link set lo up", "echo up"]
    script += ["while sleep 1; do :; done"]  # the first process must collect what the others leave
    command = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--net", "--uts", "bash", "-c", "\n".join(script)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PATH": PATH})
    try:
        assert process.stdout
        assert process.stdout.readline() == "up\n"
        first = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])
        yield Host(first, home)
    finally:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


@contextmanager
def two_hosts(folder: Path) -> Iterator[tuple[Host, Host, Path]]:
    """Two hosts that reach each other; and the key that opens both."""
    key = folder / "key"
    for name in ("key", "host_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    environment = os.environ | {"PATH": PATH}
    with ExitStack() as stack:
        hosts = [stack.enter_context(host(folder, name, key)) for name in ("head", "worker")]
        subprocess.run(["ip", "link", "add", "tt1", "type", "veth", "peer", "name", "tt2"], check=True, env=environment)
        for one, link, address in zip(hosts, ("tt1", "tt2"), (HEAD, WORKER), strict=True):
            subprocess.run(["ip", "link", "set", link, "netns", str(one.first)], check=True, env=environment)
            for words in (f"addr add {address}/24 dev {link}", f"link set {link} up", f"route add default dev {link}"):
                subprocess.run(one.inside("ip", *words.split()), check=True, env=environment)
            Path("/run/sshd").mkdir(exist_ok=True)
            options = [f"HostKey={folder / 'host_key'}", "StrictModes=no", "UsePAM=no", "PidFile=none", "PermitRootLogin=yes"]
            sshd = [shutil.which("sshd", path=PATH) or "sshd", "-D", *(word for option in options for word in ("-o", option))]
            process = subprocess.Popen(one.inside(*sshd), env=environment, stderr=subprocess.DEVNULL)
            stack.callback(process.wait)
            stack.callback(process.kill)
        yield hosts[0], hosts[1], key


STRANGER = """
import sys, urllib.error, urllib.request
job = b'{"entrypoint": "touch /tmp/stranger"}'
for address in sys.argv[1:]:
    for path, body in (("/api/version", None), ("/api/jobs/", None), ("/api/jobs/", job), ("/api/cluster_status", None)):
        try:
            answer = urllib.request.urlopen(urllib.request.Request(address + path, body), timeout=10).status
        except urllib.error.HTTPError as error:
            answer = error.code
        except OSError:
            answer = "no connection"
        print(path, "job" if body else "", answer)
"""
"""Calls the dashboard without a token, and submits a job."""


def check_that_strangers_are_refused(head: Host, worker: Host) -> None:
    """Without the token nobody runs code: no driver, no job; the dashboard tells nothing, and other machines do not reach it."""
    driver = f"import ray; ray.init('{HEAD}:6379')"
    environment = os.environ | {"RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(head.inside(sys.executable, "-c", driver), env=environment, capture_output=True, timeout=300)
    assert done.returncode != 0
    said = {}
    for one, address in ((head, "http://127.0.0.1:8265"), (worker, f"http://{HEAD}:8265")):
        command = one.inside(sys.executable, "-c", STRANGER, address)
        said[address] = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100).stdout.splitlines()
    own, other = said.values()
    assert [line for line in own if "/api/jobs" in line or "/api/cluster_status" in line]
    assert all(line.endswith((" 401", " 403")) for line in own if "version" not in line), own
    assert all(line.endswith("no connection") for line in other), other
    assert not any((one.home.parent / "tmp" / "stranger").exists() for one in (head, worker))


def unavailable() -> str:
    missing = [tool for tool in TOOLS if shutil.which(tool, path=PATH) is None]
    return f"missing: {', '.join(missing)}" if missing else "" if os.getuid() == 0 else "needs root"


@pytest.fixture
def folder() -> Iterator[Path]:
    """Not below /tmp, which the hosts have of their own."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as place:
        yield Path(place)


class Laptop:
    """A machine outside the cluster, from which sweeps are started; it reaches the head's network.

    Args:
        folder: for its home, the cluster's file and the sweep's, all outside the clone.
        head: whose network it is on.
        key: opens both hosts.
    """

    def __init__(self, folder: Path, head: Host, key: Path) -> None:
        self.home, self.head = folder / "laptop", head
        self.results = self.home / "results"
        token = self.home / ".ray" / "auth_token"
        token.parent.mkdir(parents=True)
        token.write_text("a" * 64)
        token.chmod(0o600)
        tree = yaml.safe_load((ROOT / "clusters" / "on_prem.yaml").read_text())
        tree["provider"] |= {"head_ip": HEAD, "worker_ips": [WORKER]}
        tree["auth"] = {"ssh_user": "root", "ssh_private_key": str(key)}
        tree |= {"max_workers": 1, "cluster_name": f"tailtune-{os.getpid()}"}
        # The environment of this clone in place of one of 6 GB for each host.
        tree["setup_commands"] = [
            command.replace("make .venv/.ready", f"ln -sfn {ROOT / '.venv'} .venv") for command in tree["setup_commands"]
        ]
        self.cluster = self.home / "on_prem.yaml"
        self.cluster.write_text(yaml.safe_dump(tree, sort_keys=False))
        self.sweep = self.home / "small.yaml"
        shutil.copy(ROOT / "search_spaces" / "digits_lt.yaml", self.sweep)

    @property
    def environment(self) -> dict[str, str]:
        """Has no `ray` on the PATH: the environment of the clone is not activated."""
        return os.environ | {"HOME": str(self.home), "PATH": PATH}

    def inside(self, *command: str) -> list[str]:
        return ["nsenter", f"--target={self.head.first}", "--net", "--", *command]

    def start(self, *more: str) -> "subprocess.Popen[str]":
        """The one command, started."""
        words = [str(self.sweep), *SMALL, "--cluster", str(self.cluster), "--results", str(self.results), *more]
        command = self.inside(sys.executable, "-m", "orchestrator.sweep", *words)
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.Popen(command, cwd=ROOT, env=self.environment, text=True, **streams)  # type: ignore[call-overload, no-any-return]

    def ended(self, *more: str, code: int = 0) -> str:
        """What the command printed, which has ended with the exit code `code`."""
        with self.start(*more) as process:
            said: str = process.communicate(timeout=900)[0]
        assert process.returncode == code, said
        return said


def until(process: "subprocess.Popen[str]", beginning: str) -> str:
    """What a process prints until a line begins so."""
    seen = []
    assert process.stdout
    for line in process.stdout:
        seen.append(line)
        if line.startswith(beginning):
            return "".join(seen)
    raise AssertionError("".join(seen))


SMALL = (
    "resources.workers=3",
    "resources.cpus_per_worker=1",
    "search.trials=3",
    "search.references={}",
    "trial.epochs=6",
    "scheduler.grace_epochs=5",
    "trial.data.n_max=20",
    "trial.data.imbalance_factor=5",
    "trial.classifier.widths=[4, 8]",
    "tracking.mlflow=false",
)
"""A trial needs three cores, which no host has alone."""


def test_one_command_runs_a_sweep_over_both_hosts_and_leaves_no_process(folder: Path) -> None:
    need(unavailable())
    with two_hosts(folder) as (head, worker, key):
        laptop = Laptop(folder, head, key)
        with laptop.start() as process:
            said = until(process, "small: 3 trials of")
            process.send_signal(signal.SIGINT)  # Ctrl-C
            said += process.communicate(timeout=60)[0]
        assert process.returncode == 130, said
        assert "stopped watching; the sweep goes on, on the head" in said
        assert not laptop.results.exists()
        assert "the cluster runs small already" in laptop.ended(code=2)
        with laptop.start("--resume") as process:
            following = until(process, "small: 3 trials of")
            stop = said.partition("  to stop it: ")[2].splitlines()[0]
            subprocess.run(
                laptop.inside("bash", "-c", stop), env=laptop.environment, check=True, capture_output=True, timeout=300
            )
            following += process.communicate(timeout=300)[0]
        assert process.returncode == 130, following
        assert "starting the cluster" not in following
        events = list(read_ledger(laptop.results / "small"))
        assert (events[-1]["event"], events[-1]["status"]) == ("sweep_end", "interrupted")
        check_that_strangers_are_refused(head, worker)
        assert any("raylet" in line for line in worker.processes())
        said = laptop.ended("--resume", "--down", "always")
        assert "3 trials in" in said
        assert "ending the cluster" in said
        events = list(read_ledger(laptop.results / "small"))
        ends = [event["status"] for event in events if event["event"] == "trial_end"]
        assert sum(status in ("finished", "stopped_early") for status in ends) == 3, ends
        assert (laptop.results / "small" / "best" / "model.safetensors").is_file()
        deadline = time.monotonic() + 180  # agents of Ray try for a minute to reach a head that is gone
        while left := [line for one in (head, worker) for line in one.processes() if "ray" in line.split()[0]]:
            assert time.monotonic() < deadline, left
            time.sleep(1)
