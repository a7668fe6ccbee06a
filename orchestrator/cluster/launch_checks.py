"""What is checked on a laptop before a cluster is started for a sweep: files, token, commands, and what runs there already."""

import hashlib
import os
import shutil
import sys
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from orchestrator.cluster.cluster_checks import Fault, faults_of
from orchestrator.cluster.cluster_file import FAKE, ClusterFile
from orchestrator.cluster.head import Found, Head, StepFailed
from orchestrator.config.sweep_config import SweepConfig
from orchestrator.ledger.ledger import LEDGER
from trainables.config_file import ConfigError

TOKEN = ".ray/auth_token"
"""Where Ray looks for the token on every machine, in the home folder."""
CLONE = ("orchestrator/sweep.py", "Makefile")
"""Files by which a folder is known as the clone: the program, and what installs it on the machines."""


class Down(StrEnum):
    """When the cluster is ended: only after the results are here."""

    ALWAYS = "always"
    SUCCESS = "success"
    NEVER = "never"


class Launch(NamedTuple):
    """What is to run, and where."""

    verb: str
    """`sweep` or `ablate`."""
    name: str
    file: Path
    overrides: list[str]
    config: SweepConfig
    cluster: ClusterFile
    results: Path
    """The folder on this machine into which the sweep's results are fetched."""
    store: str | None
    """The address to which the sweep itself brings its results; nothing is fetched then."""
    resume: bool
    warm_start: Path | None
    down: Down
    again: str
    """The command that follows the sweep again, or goes on with it."""


def check_launch(cluster: ClusterFile, config: SweepConfig, sweep: str) -> str:
    """Checks everything that can be checked without asking a machine.

    Args:
        cluster: the file.
        config: of the sweep.
        sweep: its file, for the messages.

    Returns: the folder of the clone on the machines, such as `~/tailtune`.

    Raises:
        ConfigError: naming all faults, each with a cure.
    """
    if cluster.provider == FAKE:
        text = f"provider.type is {FAKE}, whose machines are processes; allowed: a cluster that runs already, with --address"
        raise ConfigError(f"{cluster.at('provider.type')}: {text}")
    clones = [str(there) for there, here in mounts_of(cluster).items() if is_clone(local(here))]
    faults = [*faults_of(cluster, config, sweep), *_tools(), *_token(cluster), *([] if clones else [_no_clone(cluster)])]
    if faults:
        raise ConfigError("\n  ".join(["this sweep cannot be launched; nothing was started", *map(str, faults)]))
    return clones[0].rstrip("/")


def look(asked: Launch, head: Head) -> Found | None:
    """What runs on the head already; None when there is no head.

    Raises:
        ConfigError: when `ray up` would end a job that runs, or the sweep would meet another one of its name.
    """
    try:
        found = head.look(asked.name, size_of(asked.results))
    except StepFailed as error:
        raise ConfigError(f"{asked.cluster.path}: it cannot be seen whether its head runs something; {error}") from error
    own = own_job(found, asked.name)
    if asked.resume and not (asked.store or own or (found and found.begins) or first_line(asked.results)):
        raise ConfigError(
            f"neither {asked.results} nor the cluster holds a sweep that could go on; leave --resume out to begin one"
        )
    if found is None:
        return None
    if found.jobs and not found.known:
        raise ConfigError(
            f"{asked.cluster.path}: Ray on this machine does not know this cluster, as after a restart, but its head runs "
            f"{', '.join(found.jobs)}, which `ray up` would end; nothing was started; allowed: wait for its end"
        )
    if own and not asked.resume:
        raise ConfigError(f"the cluster runs {asked.name} already, as the job {own}; allowed: --resume to follow it, or --name")
    other = [job for job in found.jobs if job != own]
    if other and not (own and asked.down is Down.NEVER):  # who only watches ends nothing
        verb, cure = ("down", "--down never") if own else ("up", f"a file with another cluster_name than {cluster_name(asked)}")
        raise ConfigError(
            f"the cluster runs {', '.join(other)}, which `ray {verb}` would end; nothing was started; allowed: wait for its end, "
            f"or {cure}"
        )
    check_same_sweep(asked, found)
    return found


def check_same_sweep(asked: Launch, found: Found) -> None:
    """Checks that the sweep of this name on the head is the one that is meant.

    Raises:
        ConfigError: when it is not.
    """
    if found.begins and not asked.resume:
        raise ConfigError(f"the head holds results of {asked.name} already; allowed: another --name, or --resume to go on")
    here = None if asked.store else first_line(asked.results)
    if found.begins and here and found.begins != here:
        raise ConfigError(f"{asked.results} holds another sweep than the head under this name; allowed: another --results")
    if found.begins and here and digest_of(asked.results, found.size) != found.shared:
        raise ConfigError(
            f"{asked.results} went on in another way than the sweep on the head, whose results would replace it; nothing was "
            "started; allowed: to move it away, or another --results"
        )
    if found.begins and here and size_of(asked.results) > found.size:
        raise ConfigError(
            f"{asked.results} has more of the sweep than the head, whose results would replace it; nothing was started; allowed: "
            f"to go on from here on a new head, after `ray down {asked.cluster.path}`"
        )


def own_job(found: Found | None, name: str) -> str | None:
    """The job that runs the sweep `name`."""
    stamped = [job for job in (found.jobs if found else []) if job.rpartition("-")[0].rpartition("-")[0] == name]
    return stamped[0] if stamped else None


def size_of(results: Path) -> int:
    """The number of bytes of the ledger in a results folder."""
    return (results / LEDGER).stat().st_size if (results / LEDGER).is_file() else 0


def digest_of(results: Path, size: int) -> str:
    """The digest of the first `size` bytes of the ledger in a results folder, or of all that it has."""
    with (results / LEDGER).open("rb") as file:
        return hashlib.sha256(file.read(size)).hexdigest()


def first_line(results: Path) -> str | None:
    """The digest by which sweeps are told apart; None when there is no sweep."""
    if not (results / LEDGER).is_file():
        return None
    with (results / LEDGER).open("rb") as file:
        return hashlib.sha256(file.readline()).hexdigest()


def check_results(folder: Path) -> None:
    """Checks that a sweep that begins overwrites nothing.

    Raises:
        ConfigError: when its results folder on this machine holds anything.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(f"{folder} holds files already; nothing was started; allowed: another --name, or --resume to go on")


def ray_command() -> str | None:
    """The path of `ray`: the one of this program's environment, which need not be activated; otherwise that of the shell."""
    return shutil.which("ray", path=os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")]))


def mounts_of(cluster: ClusterFile) -> dict[str, Any]:
    """What is copied to the machines: folders there, and where they come from."""
    mounts = cluster.tree.get("file_mounts")
    return mounts if isinstance(mounts, dict) else {}


def local(place: Any) -> Path:
    """A place on this machine, as Ray takes it: what is relative begins where the command is run."""
    return Path(os.path.expanduser(str(place)))


def is_clone(folder: Path) -> bool:
    """Whether a folder is a clone of this repository."""
    return all((folder / name).is_file() for name in CLONE)


def _no_clone(cluster: ClusterFile) -> Fault:
    sources = [str(here) for there, here in mounts_of(cluster).items() if not str(there).endswith(TOKEN)]
    text = f"bring no clone of this repository to the machines: {', '.join(sources) or 'nothing'}"
    cure = "~/tailtune: . (which is the folder in which the command is run)"
    if "." in sources:
        text, cure = (
            f"`.` is the folder in which the command is run, {Path.cwd()}, which is no clone",
            "run the command in the clone",
        )
    return Fault(cluster.at("file_mounts"), f"file_mounts {text}; allowed: {cure}")


def _tools() -> list[Fault]:
    found = {"ray": ray_command(), "ssh": shutil.which("ssh"), "rsync": shutil.which("rsync")}
    cures = {
        "ray": "the environment of this clone (make .venv/.ready)",
        "ssh": "apt install openssh-client",
        "rsync": "apt install rsync",
    }
    return [Fault("this machine", f"has no command `{tool}`; allowed: {cures[tool]}") for tool, path in found.items() if not path]


def _token(cluster: ClusterFile) -> list[Fault]:
    """Faults of the token, which the cluster's file brings to the machines; that it does is the matter of `faults_of`."""
    given = next((here for there, here in mounts_of(cluster).items() if str(there).endswith(TOKEN)), None)
    if given is None:
        return []
    file, where = local(given), cluster.at("file_mounts")
    if not file.is_file() or not file.stat().st_size:
        own = os.environ.get("RAY_AUTH_TOKEN_PATH")
        other = f", or the file of RAY_AUTH_TOKEN_PATH, {own}, in its place" if own and local(own) != file else ""
        return [
            Fault(
                where, f"file_mounts names the token {given}, which is missing; allowed: `ray get-auth-token --generate`{other}"
            )
        ]
    if file.stat().st_mode & 0o077:
        mode = file.stat().st_mode & 0o777
        return [Fault(where, f"the token {given} has the mode {mode:o}, so that others can read it; allowed: chmod 600 {given}")]
    return []


def cluster_name(asked: Launch) -> str:
    """The name of the cluster, as its file says."""
    return str(asked.cluster.tree.get("cluster_name"))
