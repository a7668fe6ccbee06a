"""CPU cores, GPUs, memory and temporary folders of this machine."""

import ctypes
import os
import platform
import re
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

SOCKET_NAME_MAX = 107 if sys.platform == "linux" else 103
"""Bytes that the name of a Unix socket may have."""
RAY_NAMES = 82
"""Bytes by which the sockets of a Ray session are longer than the temporary folder:
/tt-ray-xxxxxxxx/session_2026-11-26_21-24-23_123456_1234567/sockets/plasma_store, and two to spare."""
READER_NAMES = 32
"""The same for processes that hand batches over: /pymp-xxxxxxxx/listener-xxxxxxxx."""
SIOCGIFADDR = 0x8915
"""The request for an interface's address, on Linux."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Settings of glibc's malloc, from its malloc.h."""


def num_cores() -> int:
    """CPU cores that this process may use: those it is bound to, and no more than its container's quota of CPU time."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return bound if quota is None else max(1, min(bound, int(quota)))


def cpu_quota(groups: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> float | None:
    """The cores whose time this process and its neighbours in a control group may use, as `docker run --cpus` sets it.

    Args:
        groups: where the control groups are mounted.
        membership: the file with the groups of this process.

    Returns: a number such as 1.5; None without a limit.
    """
    limits = []
    for line in _text(membership).splitlines():
        number, controllers, group = line.split(":", 2)
        parts = Path(group.lstrip("/"))
        # Each group around ours limits it too. Inside a container the outer names may be missing: then the mount itself is ours.
        places = [parts, *parts.parents]
        if number == "0":  # version 2: "150000 100000" or "max 100000", in microseconds
            limits += [_ratio(_text(root / place / "cpu.max")) for root in (groups, groups / "unified") for place in places]
        elif "cpu" in controllers.split(","):
            for root in (groups / controllers, groups / "cpu"):
                quotas = [(root / place / "cpu.cfs_quota_us", root / place / "cpu.cfs_period_us") for place in places]
                limits += [_ratio(f"{_text(quota)} {_text(period)}") for quota, period in quotas]
    return min((limit for limit in limits if limit is not None), default=None)


def _ratio(text: str) -> float | None:
    """The quota of "QUOTA PERIOD"; None where there is none, which is "max", -1 or nothing."""
    words = text.split()
    if len(words) != 2 or not all(word.isdecimal() for word in words) or not int(words[1]):
        return None
    return int(words[0]) / int(words[1])


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def num_gpus() -> int:
    """GPUs that torch sees in this process."""
    import torch  # imported here, because the import takes seconds and counting cores does not need it

    return torch.cuda.device_count()


def ray_folder() -> str:
    """Where the folder for Ray's session is: in the temporary folder, or in a short one where socket names would be too long.

    Raises:
        ValueError: when there is no folder that is short enough.
    """
    given = os.environ.get("RAY_TMPDIR")
    return socket_folder(RAY_NAMES, os.path.abspath(given) if given else tempfile.gettempdir())


def socket_folder(names: int, usual: str) -> str:
    """A folder for sockets whose names have `names` more bytes: `usual`, or a short one.

    Raises:
        ValueError: when there is no folder that is short enough.
    """
    for place in (usual, "/tmp", "/var/tmp", "/dev/shm"):
        fits = len(os.fsencode(place)) + names <= SOCKET_NAME_MAX
        if fits and (place == usual or os.access(place, os.W_OK | os.X_OK)):
            return place
    raise ValueError(
        f"TMPDIR is {usual}, {len(os.fsencode(usual))} bytes; allowed: at most {SOCKET_NAME_MAX - names}, because the names of "
        f"sockets in it may have {SOCKET_NAME_MAX}; /tmp, /var/tmp and /dev/shm cannot be written; set TMPDIR to a shorter folder"
    )


def keep_sockets_short() -> None:
    """Lets the processes that this one starts use a short folder for their sockets where TMPDIR is too long for the names.

    Otherwise a thread in such a process fails to open a socket, and this process waits for a batch for ever.

    Raises:
        ValueError: when there is no folder that is short enough.
    """
    usual = tempfile.gettempdir()
    folder = socket_folder(READER_NAMES, usual)
    if folder == usual:
        return
    from multiprocessing import util

    tempfile.tempdir = folder
    try:
        util.get_temp_dir()  # created once for a process and all that it starts, and removed when it ends
    finally:
        tempfile.tempdir = usual


def peak_resident() -> int:
    """The peak resident memory of this process so far, in bytes."""
    import resource  # imported here, because not every system has it and only out-of-memory messages need it

    # macOS reports bytes, Linux KiB.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def keep_freed_memory() -> None:
    """Lets this process keep the memory that tensors on the CPU have freed, for the next ones, instead of giving it back to the
    system at once: a step allocates and frees the same megabytes again and again, and each new page costs a fault. What earlier
    trials have left is given back now.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # of glibc
        libc.malloc_trim(0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(M_MMAP_THRESHOLD, 2**25)  # the most that it takes


def system_metrics(cpu_s: float, wall_s: float, device: "torch.device") -> dict[str, float]:
    """What a trial takes of this machine, under the names of metrics.

    Args:
        cpu_s: CPU time of this process in a period.
        wall_s: the period, in seconds.
        device: of the trial.

    Returns: cores, and GiB.
    """
    import torch

    metrics = {"system/cpu_cores": cpu_s / wall_s, "system/memory_gib": peak_resident() / 2**30}
    if device.type == "cuda":
        metrics["system/gpu_memory_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    return metrics


def choose_device(name: str) -> "torch.device":
    """The device for `auto`, `cpu` or `cuda`.

    Raises:
        ValueError: when a GPU is asked for and there is none.
    """
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda, but torch sees no GPU here; allowed: auto, cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def gpu_problem() -> str:
    """Why torch cannot use this machine's GPU; empty when it can."""
    import torch

    if torch.cuda.is_available():
        return ""
    built = torch.version.cuda
    if built is None:
        return f"torch {torch.__version__} is built without CUDA; allowed: the torch of requirements.lock"
    driver = "version 580 or later" if built.split(".")[0] == "13" else f"that fits CUDA {built}"
    return f"torch {torch.__version__} sees no GPU; allowed: an NVIDIA driver of {driver} (the machine's image)"


def interface_of(address: str) -> str:
    """The name of the network interface with this IPv4 address, as `eth0`; empty when there is none, or the system cannot say."""
    import fcntl  # not every system has it

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(asking, SIOCGIFADDR, name.encode().ljust(256, b"\0"))
            except OSError:  # an interface without an address
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return ""


NUMERIC_VARIABLES = (
    "ATEN_CPU_CAPABILITY",
    "CUBLAS_WORKSPACE_CONFIG",
    "DNNL_MAX_CPU_ISA",
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "NVIDIA_TF32_OVERRIDE",
    "ONEDNN_MAX_CPU_ISA",
)
"""Variables of the environment that choose instructions or precision, and so change the last digits of numbers."""


def process_began(stat: Path = Path("/proc/self/stat"), uptime: Path = Path("/proc/uptime")) -> float:
    """When this process was started, in seconds since 1970; now, where the system does not say it."""
    try:
        ticks = int(_text(stat).rpartition(")")[2].split()[19])  # since the machine was started; see proc(5)
        return time.time() - (float(_text(uptime).split()[0]) - ticks / os.sysconf("SC_CLK_TCK"))
    except (IndexError, ValueError, OSError):
        return time.time()


def this_machine() -> dict[str, Any]:
    """This machine, in words and numbers."""
    return {
        "system": platform.platform(),
        "python": platform.python_version(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "usable_cores": num_cores(),
        "memory_gib": round(memory_bytes() / 2**30, 1),
        "gpus": gpu_names(),
        "variables": " ".join(f"{name}={os.environ[name]}" for name in NUMERIC_VARIABLES if name in os.environ) or "none",
    }


def gpu_names(drivers: Path = Path("/proc/driver/nvidia/gpus")) -> list[str]:
    """The NVIDIA GPUs of this machine, as the driver calls them; none where the system does not tell."""
    found = (re.search(r"^Model:\s*(.+)$", _text(file), re.MULTILINE) for file in sorted(drivers.glob("*/information")))
    return [match[1].strip() for match in found if match]


def memory_bytes() -> int:
    """This machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def memory_limit(groups: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> int:
    """Bytes of memory that this process and its neighbours in a control group may use, as `docker run --memory` sets it; the
    machine's memory without a limit. The arguments are those of `cpu_quota`.
    """
    limits = [memory_bytes()]
    for line in _text(membership).splitlines():
        number, controllers, group = line.split(":", 2)
        parts = Path(group.lstrip("/"))
        if number == "0" or "memory" in controllers.split(","):
            for place in [parts, *parts.parents]:
                files = (
                    groups / place / "memory.max",
                    groups / "unified" / place / "memory.max",
                    groups / "memory" / place / "memory.limit_in_bytes",
                )
                limits += [int(given) for file in files if (given := _text(file)).isdecimal()]
    return min(limits)


def processor(info: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name, or its architecture where the system does not tell."""
    found = re.search(r"^model name\s*: (.+)$", _text(info), re.MULTILINE)
    return found[1] if found else platform.machine()
