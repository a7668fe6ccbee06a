"""Measures the report of a large sweep: seconds and memory to write it, its size, and seconds until a browser has drawn it.

    python -m benchmarks.report [--trials 1000] [--epochs 100] [--classes 10] [--json]

The sweep runs in virtual time first, which is not measured. The report is written by `python -m orchestrator.report` in a process
of its own, whose peak memory (resident set) and seconds include the imports. The page is opened in Chromium, if there is one:
`summary_s` is when a person can read, `drawn_s` is when every figure is there.
"""

import argparse
import json
import queue
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks.virtual_folder import lively, record, repeated
from orchestrator.config.sweep_config import SweepConfig
from orchestrator.decide.virtual_sweep import run
from trainables.config_file import Origin, check

SEARCHED = 40
"""Trials of a sweep that is repeated until there are enough."""
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def sweep_of(trials: int, epochs: int) -> SweepConfig:
    """Random search over six settings; every trial runs all its epochs."""
    lr = {"type": "float", "low": 1e-5, "high": 1e-1, "log": True}
    tree = {
        "trial": {"epochs": epochs},
        "space": {
            "method.meta_lr": lr,
            "optim.lr": lr,
            "method.driver_weight": {**lr, "or_exactly": 0.0},
            "method.hidden_width": {"type": "int", "low": 4, "high": 256, "log": True},
            "method.refresh_interval": {"type": "float", "low": 0.25, "high": 4.0, "log": True},
            "optim.schedule": {"type": "categorical", "choices": ["cosine", "constant"]},
        },
        "search": {"trials": trials, "sampler": "random", "references": {"cross_entropy": {"method.name": "cross_entropy"}}},
        "scheduler": {"name": "none"},
        "resources": {"max_concurrent": 8},
        "tracking": {"mlflow": False},
    }
    return check(SweepConfig, tree, Origin("benchmark"))


def write(folder: Path) -> dict[str, float]:
    """Writes the report in another process."""
    began, used = time.perf_counter(), _cpu_s()
    subprocess.run([sys.executable, "-m", "orchestrator.report", str(folder)], check=True, stdout=sys.stderr)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    size = (folder / "report.html").stat().st_size / 1e6
    return {"seconds": round(seconds, 1), "cpu_s": round(_cpu_s() - used, 1), "peak_mb": round(peak), "page_mb": round(size, 2)}


def _cpu_s() -> float:
    """Seconds of a core that child processes have taken: unlike the time on the clock, no matter what else the machine does."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def opened(page: Path, place: Path) -> dict[str, float]:
    """Seconds from the start of the navigation, as the page itself measures them; nothing without a browser."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        return {}
    script = """<script>
      const read = performance.now();
      const wait = () => document.body.dataset.drawn === "yes"
        ? fetch("/measured?" + read + "&" + performance.now()) : setTimeout(wait, 20);
      wait();
    </script></body>"""
    measured: queue.Queue[list[float]] = queue.Queue()
    text = page.read_text(encoding="utf-8").replace("</body>", script).encode()

    class Server(BaseHTTPRequestHandler):
        """Hands out the page, and takes what it has measured."""

        def do_GET(self) -> None:
            if "measured" in self.path:
                measured.put([float(number) / 1000 for number in self.path.partition("?")[2].split("&")])
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(text if self.path == "/" else b"")

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={place / 'profile'}"]
        command += ["--window-size=1280,1000", f"http://127.0.0.1:{server.server_port}/"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                read, drawn = measured.get(timeout=120)
            finally:
                process.terminate()
        server.shutdown()
    return {"summary_s": round(read, 2), "drawn_s": round(drawn, 2)}


def main(arguments: list[str]) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--json", action="store_true", help="print one object")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as place:
        config = sweep_of(SEARCHED, given.epochs)
        done = repeated(run(config, lively, slots=8), max(1, round(given.trials / (SEARCHED + 1))))
        folder = record(Path(place, "sweep"), config, done, num_classes=given.classes)
        number = pq.read_metadata(folder / "trials.parquet").num_rows
        shape: dict[str, Any] = {"trials": number, "epochs": given.epochs, "classes": given.classes}
        found = {**shape, **write(folder), **opened(folder / "report.html", Path(place))}
    if given.json:
        print(json.dumps(found))
    else:
        print("\n".join(f"{name:12} {value}" for name, value in found.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
