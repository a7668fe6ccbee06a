"""A PostgreSQL of a test's own. Needs Debian's package postgresql, and root."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SERVERS = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))


def unavailable() -> str:
    """Why there can be none here; empty when there can."""
    if not SERVERS or shutil.which("runuser") is None:
        return "no PostgreSQL here (Debian: apt install postgresql)"
    return "" if os.getuid() == 0 else "PostgreSQL runs as a user of its own, which only root can give it"


@contextmanager
def postgres(auth: str = "peer") -> Iterator[dict[str, str]]:
    """The environment that leads to an empty PostgreSQL, which only a socket reaches; `auth` is how it knows who connects."""
    folder = Path(tempfile.mkdtemp(prefix="tt-pg-", dir="/tmp"))  # sockets need a short name
    shutil.chown(folder, "postgres")

    def as_postgres(program: str, *words: str) -> None:
        command = ["runuser", "-u", "postgres", "--", str(SERVERS[-1].parent / program), "-D", str(folder / "data"), *words]
        subprocess.run(command, cwd="/", check=True, stdout=subprocess.DEVNULL, timeout=120)

    as_postgres("initdb", f"--auth-local={auth}", "--auth-host=reject", "--no-sync")
    as_postgres("pg_ctl", "-w", "-l", str(folder / "log"), "-o", f"-k {folder} -p 5499 -c listen_addresses=''", "start")
    try:
        yield {"PGHOST": str(folder), "PGPORT": "5499"}
    finally:
        as_postgres("pg_ctl", "-w", "-m", "immediate", "stop")
        shutil.rmtree(folder)
