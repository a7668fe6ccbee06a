"""Checks this machine for anything that would keep a sweep from running, and gives the cure for each problem.

    python -m orchestrator.doctor [SWEEP.yaml] [key=value ...] [--results DIR] [--cluster CLUSTER.yaml]

With a sweep, the doctor also reads all images of the sweep's data, and reports images that are in two sets. With a cluster's
file, it looks whether the file is sound and the sweep fits its machines, without starting any.

Exit codes: 0 no problem (notes do not count); 1 at least one problem.
"""

# Only the standard library is imported here, so that the doctor can report a broken package.
import argparse
import functools
import importlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from orchestrator.finding import Finding

NEEDED = {
    "torch": "torch",
    "torchvision": "torchvision",
    "ray": "ray.tune",
    "optuna": "optuna",
    "mlflow": "mlflow",
    "pyarrow": "pyarrow.parquet",
    "scikit-learn": "sklearn.datasets",
    "safetensors": "safetensors.torch",
    "pydantic": "pydantic",
    "rich": "rich",
}
"""Distribution -> the module whose import shows that the distribution works."""

REINSTALL = "rm -f .venv/.ready && make check"
HOME_CURE = "export HOME=/tmp"


def examine(
    results: Path,
    sweep: Path | None = None,
    overrides: list[str] | None = None,
    cluster: Path | None = None,
    skip_list: Path | None = None,
) -> Iterator[Finding | list[str]]:
    """All findings, each as soon as its check is done; and settings with which a sweep can start in spite of its images."""
    yield guarded("python", check_python)
    for distribution, module in NEEDED.items():
        yield guarded(distribution, functools.partial(check_import, distribution, module))
    yield guarded("cores", check_cores)
    yield guarded("gpus", check_gpus)
    yield guarded("home", check_home)
    yield guarded("temporary", check_temporary)
    yield guarded("shared memory", check_shared_memory)
    yield guarded("results", lambda: check_results(results))
    yield guarded("locks", lambda: check_locks(results))
    yield guarded("left behind", check_left_behind)
    if cluster is not None:
        yield from check_cluster_file(cluster, sweep, overrides or [])
    if sweep is not None:
        yield from check_sweep(sweep, overrides or [], cluster, skip_list)


def guarded(subject: str, check: Callable[[], Finding]) -> Finding:
    """The finding of `check`; if the check raises an error, a problem with that error."""
    try:
        return check()
    except Exception as error:
        return Finding("problem", subject, f"{type(error).__name__}: {error}", "fix the error that is named above first")


def check_python() -> Finding:
    """The interpreter's version."""
    good = (3, 11) <= sys.version_info < (3, 14)
    return Finding(
        "ok" if good else "problem",
        "python",
        platform.python_version(),
        "" if good else "use Python 3.11, 3.12 or 3.13",
    )


def check_import(distribution: str, module: str) -> Finding:
    """Whether a package is installed and can be imported; if not, with the package's own error."""
    try:
        found = version(distribution)
    except PackageNotFoundError:
        return Finding("problem", distribution, "is not installed", REINSTALL)
    try:
        importlib.import_module(module)
    except Exception as error:  # a broken package may raise anything, and the user needs its own error
        text = f"{found}, but `import {module}` fails: {type(error).__name__}: {error}"
        cure = "rm -rf .venv && make check; a missing system library must be installed by hand"
        return Finding("problem", distribution, text, HOME_CURE if check_home().cure else cure)
    return Finding("ok", distribution, found)


def check_gpus() -> Finding:
    """The GPUs that torch sees, compared with those that the driver sees."""
    import torch

    if names := [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]:
        return Finding("ok", "gpus", ", ".join(names))
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return Finding(
            "note", "gpus", "hidden: the environment variable CUDA_VISIBLE_DEVICES names none; trials can run on the CPU"
        )
    if shutil.which("nvidia-smi") and subprocess.run(["nvidia-smi", "-L"], capture_output=True).stdout.strip():
        cure = "CUDA 13 builds of torch need an NVIDIA driver of version 580 or later"
        return Finding("problem", "gpus", f"nvidia-smi lists GPUs, but torch {torch.__version__} sees none", cure)
    return Finding("note", "gpus", "none; trials can run on the CPU")


def check_cores() -> Finding:
    """The cores that trials can use, and what keeps them from the others."""
    from trainables.machine import cpu_quota, num_cores

    cores, all_cores = num_cores(), os.cpu_count() or 1
    if cores == all_cores:
        return Finding("ok", "cores", str(cores))
    quota = cpu_quota()
    reason = (
        f"a quota of {quota:g} (docker run --cpus)" if quota and quota < all_cores else "what this process is bound to (taskset)"
    )
    return Finding("note", "cores", f"{cores} of {all_cores}: {reason}")


def check_home() -> Finding:
    """Whether there is a home folder, which Ray needs."""
    home = os.path.expanduser("~")
    if home == "~":
        return Finding("problem", "home", "HOME is not set, and Ray needs a home folder", HOME_CURE)
    return Finding("ok", "home", home)


def check_temporary() -> Finding:
    """Whether the name of the temporary folder leaves room for the names of sockets."""
    from trainables.machine import READER_NAMES, ray_folder, socket_folder

    usual, cure = tempfile.gettempdir(), "export TMPDIR=/tmp"
    try:
        short = {ray_folder(), socket_folder(READER_NAMES, usual)} - {usual}
    except ValueError as error:
        return Finding("problem", "temporary", str(error), cure)
    text = f"{usual}, {len(os.fsencode(usual))} bytes"
    return Finding(
        "ok", "temporary", f"{text}; sockets are in {', '.join(sorted(short))}, whose name is shorter" if short else text
    )


def check_shared_memory(place: str = "/dev/shm") -> Finding:
    """Whether batches fit where reader processes and Ray hand them over."""
    if not os.path.isdir(place):
        return Finding("note", "shared memory", f"{place} is missing; streamed images may need trial.compute.readers=0")
    free, needed = shutil.disk_usage(place).free, 2**30
    text = f"{place} has {free / 2**20:.0f} MiB free"
    if free >= needed:
        return Finding("ok", "shared memory", text)
    cure = "docker run --shm-size=2g, mount -o remount,size=2G /dev/shm, or trial.compute.readers=0"
    return Finding("note", "shared memory", f"{text}, too few for large batches of streamed images", cure)


def check_locks(results: Path) -> Finding:
    """Whether the file system of the results can lock a file, which keeps a second process from writing to a sweep."""
    import fcntl

    place = next(parent for parent in (results.absolute(), *results.absolute().parents) if os.path.exists(parent))
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        cure = "another --results folder (on Lustre: mount it with -o flock), or no second process for the same sweep"
        return Finding("note", "locks", f"{place}: files cannot be locked ({error.strerror})", cure)
    return Finding("ok", "locks", f"{place} has locks")


def check_left_behind() -> Finding:
    """What killed sweeps and other Ray sessions have left in the temporary folder."""
    from orchestrator.run.leftovers import leftovers

    if ours := leftovers():
        cure = f"the next sweep removes them; or: rm -r {shlex.join(map(str, ours))}"
        return Finding("note", "left behind", f"{len(ours)} folders of killed sweeps", cure)
    if others := dead_sessions(Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp") / "ray"):
        text = f"{len(others)} sessions of Ray whose processes are gone, perhaps of other programs"
        return Finding("note", "left behind", text, f"rm -r {shlex.join(map(str, others))}")
    return Finding("ok", "left behind", "nothing")


def dead_sessions(place: Path) -> list[Path]:
    """Ray sessions of this user in `place` whose process, which has its number in the name, is gone."""
    found = []
    for session in sorted(place.glob("session_*_*")):
        number = session.name.rpartition("_")[2]
        alive = os.path.exists(f"/proc/{number}") or not os.path.exists("/proc/self")
        if number.isdecimal() and not session.is_symlink() and not alive and session.stat().st_uid == os.getuid():
            found.append(session)
    return found


def check_results(results: Path) -> Finding:
    """Whether results can be written, and how much space is free."""
    from orchestrator.run.preflight import check_space_for
    from trainables.config_file import ConfigError

    try:
        free = check_space_for(results)
    except ConfigError as error:
        return Finding("problem", "results", str(error), "free some space, or choose another --results folder")
    return Finding("ok", "results", f"{results} can be written; {free / 2**30:.1f} GiB free")


def check_cluster_file(file: Path, sweep: Path | None, overrides: list[str]) -> Iterator[Finding]:
    """Whether a cluster's file is sound; with a sweep, whether the sweep fits the machines that may come."""
    from orchestrator.cluster.cluster_checks import faults_of
    from orchestrator.cluster.cluster_file import LOCAL, read_cluster
    from orchestrator.config.sweep_config import read_sweep
    from trainables.config_file import ConfigError

    cure = "change the line that is named, then run this again"
    try:
        cluster = read_cluster(file)
        faults = faults_of(cluster, read_sweep(sweep, overrides) if sweep else None, str(sweep))
    except ConfigError as error:
        yield Finding("problem", "cluster", str(error), cure)
        return
    yield from (Finding("problem", "cluster", str(fault), cure) for fault in faults)
    if not faults:
        number = cluster.max_workers if cluster.provider == LOCAL else len(cluster.machines({"CPU": 1})) - 1
        machines = f"1 to {number + 1} machines of {cluster.provider}"
        yield Finding("ok", "cluster", f"{machines}: the head, and up to {number} that come with the work")


def check_sweep(
    sweep: Path, overrides: list[str], cluster: Path | None = None, skip_list: Path | None = None
) -> Iterator[Finding | list[str]]:
    """Whether a sweep fits this machine, unless it runs on a cluster; and all that is to be known about its images."""
    from orchestrator.config.sweep_config import read_sweep_with_origin
    from orchestrator.doctor_images import check_images
    from orchestrator.run.preflight import check_machine
    from trainables.config_file import ConfigError

    try:
        config, origin = read_sweep_with_origin(sweep, overrides)
    except ConfigError as error:
        yield Finding("problem", "sweep", str(error), "change what is named above")
        return
    try:
        notes = check_machine(config, origin) if cluster is None else []
        yield from (Finding("note", "machine", text) for text in notes)
    except ConfigError as error:
        yield Finding("problem", "machine", str(error), "change the setting, or run the sweep on another machine")
    try:
        yield from check_images(sweep, overrides, config.trial, skip_list)
    except Exception as error:  # the doctor must not die of what it looks for
        yield Finding("problem", "data", f"{type(error).__name__}: {error}", "fix the error that is named above first")


def main(arguments: list[str]) -> int:
    """Returns the exit code."""
    from orchestrator import parsers
    from trainables.command_line import answered  # pure Python, both

    return answered(parsers.doctor(), arguments, report)


def report(given: argparse.Namespace, answer: dict[str, Any]) -> int:
    """Prints all findings, each with its cure, and fills the answer for programs. Returns the exit code."""
    from trainables.shown_commands import shown_command

    problems, answer["findings"], settings = 0, [], list[str]()
    for finding in examine(given.results, given.sweep, given.overrides, given.cluster, given.write_skip_list):
        if isinstance(finding, list):
            settings = finding
            continue
        level, subject, text, cure = finding
        answer["findings"].append(finding._asdict())
        print(f"{level:<8} {subject:<13} {text}")
        if cure:
            print(f"{'':<8} {'cure:':<13} {cure}")
        problems += level == "problem"
    place = ["--address", "auto"] if given.cluster else []
    words = [*([str(given.sweep)] if given.sweep else []), *given.overrides, *settings, *place]
    command = shown_command("orchestrator.sweep", shlex.join(words)).strip()
    answer["settings"] = settings
    if not problems:
        print(f"\nready: {command}")
        return 0
    print(f"\n{problems} to mend")
    if settings:
        print(f"or leave out what is wrong:\n  {command}")
    elif given.sweep and given.write_skip_list is None:
        words = [str(given.sweep), *given.overrides, "--write-skip-list", "skip.txt"]
        print(f"or list the images that had better be left out:\n  {shown_command('orchestrator.doctor', shlex.join(words))}")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
