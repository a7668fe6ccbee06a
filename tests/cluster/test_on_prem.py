"""Two hosts on this machine, each with processes, network, files and sshd of its own: `ray up`, a sweep over both, `ray down`.

Needs openssh-server, rsync, iproute2, util-linux, and root.
"""

import os
import shutil
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


def test_a_sweep_runs_over_both_hosts_and_leaves_no_process(folder: Path) -> None:
    if reason := unavailable():
        if os.environ.get("CLUSTER_TESTS") == "required":
            pytest.fail(reason)
        pytest.skip(reason)
    laptop = folder / "laptop"
    (laptop / ".ray").mkdir(parents=True)
    (laptop / ".ray" / "auth_token").write_text("a" * 64)
    with two_hosts(folder) as (head, worker, key):
        tree = yaml.safe_load((ROOT / "clusters" / "on_prem.yaml").read_text())
        tree["provider"] |= {"head_ip": HEAD, "worker_ips": [WORKER]}
        tree["auth"] = {"ssh_user": "root", "ssh_private_key": str(key)}
        tree |= {"max_workers": 1, "cluster_name": f"tailtune-{os.getpid()}"}
        tree["file_mounts"] = {"~/tailtune": str(ROOT), "~/.ray/auth_token": str(laptop / ".ray" / "auth_token")}
        # The environment of this clone in place of one of 6 GB for each host.
        tree["setup_commands"] = [
            command.replace("make .venv/.ready", f"ln -sfn {ROOT / '.venv'} .venv") for command in tree["setup_commands"]
        ]
        file = folder / "on_prem.yaml"
        file.write_text(yaml.safe_dump(tree, sort_keys=False))
        environment = os.environ | {"HOME": str(laptop), "PATH": f"{Path(sys.executable).parent}:{PATH}"}

        def ray(*words: str, limit_s: float = 300) -> str:
            """A command on the laptop, which reaches the head's network."""
            command = ["nsenter", f"--target={head.first}", "--net", "--", str(Path(sys.executable).parent / "ray"), *words]
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=limit_s, stdin=subprocess.DEVNULL
            )
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout

        ray("up", str(file), "--yes")
        sweep = (
            "cd ~/tailtune && RAY_AUTH_MODE=token .venv/bin/python -m orchestrator.sweep --address auto resources.workers=3 "
            "resources.cpus_per_worker=1 search.trials=3 'search.references={}' trial.epochs=2 scheduler.grace_epochs=1 "
            "trial.data.n_max=20 trial.data.imbalance_factor=5 'trial.classifier.widths=[4, 8]' tracking.mlflow=false"
        )
        said = ray("exec", str(file), sweep, limit_s=500)
        assert "3 trials in" in said
        check_that_strangers_are_refused(head, worker)
        ray("rsync-down", str(file), "~/tailtune/results/", str(folder / "results"))
        events = list(read_ledger(folder / "results" / "digits_lt"))
        assert sum(event["event"] == "trial_end" for event in events) == 3
        assert (folder / "results" / "digits_lt" / "best" / "model.safetensors").is_file()
        assert any("raylet" in line for line in worker.processes())
        ray("down", str(file), "--yes")
        stop = worker.inside("bash", "-c", "cd && tailtune/.venv/bin/ray stop")  # what the file's head says to do
        subprocess.run(stop, env=environment | {"HOME": str(Path.home())}, check=True, capture_output=True, timeout=120)
        deadline = time.monotonic() + 180  # agents of Ray try for a minute to reach a head that is gone
        while left := [line for one in (head, worker) for line in one.processes() if "ray" in line.split()[0]]:
            assert time.monotonic() < deadline, left
            time.sleep(1)
