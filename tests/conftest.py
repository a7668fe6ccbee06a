import functools
import gc
import os
import signal
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest

# Torch reads this when it is imported. Threads wait for each other after every operation: on cores that others use as well, two
# take several times as long as one. What sets the number of threads by itself, as a trial does, still does so.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Ray runs workers at a low priority, so that a machine stays usable. Beside other tests they would get no time at all, and what
# waits for them would wait for minutes.
os.environ.setdefault("RAY_worker_niceness", "0")
# nohup, and shells that run in the background, hand on ignored signals. Tests, and what they start, take them as in a terminal.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGTERM, signal.SIG_DFL)
# Tests that track send to a store of their own.
os.environ.pop("MLFLOW_TRACKING_URI", None)


def pytest_configure(config: pytest.Config) -> None:
    """Tests run on the CPU, wherever they run, so that they compare the same numbers everywhere: a GPU is hidden from them and
    from all that they start. `-m gpu` runs those that are about the GPU, and only these.
    """
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(autouse=True, scope="module")
def _little_garbage() -> None:
    """Spares the garbage collector what imports have made, a million objects that live to the end: it would look at all of them
    again and again, and statsmodels makes it do so for every table. What earlier tests have left goes first, such as the readers
    of a set in a cycle of references: it would stay to the end.
    """
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Gives everything back to the garbage collector, so that pytest sees what nobody has closed, and ends as sweeps do."""
    gc.unfreeze()
    if sys.modules.get("ray"):
        from orchestrator.run.connection import end_without_destructors

        end_without_destructors()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Gives a test the Ctrl-C of a terminal, because Ray Tune leaves a handler of its own behind, and one thread, because reading
    a test set takes all cores and leaves torch with them. Skips a test that needs a GPU where there is none.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
    if item.get_closest_marker("gpu") and not has_gpu():
        pytest.skip("needs a GPU: python -m benchmarks.gpu --part tests")


@pytest.fixture(scope="session")
def mlflow_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without runs, to be copied: making one takes six seconds."""
    from orchestrator.tracking.mlflow_runs import connect

    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow uses what SQLAlchemy deprecates
        connect(f"sqlite:///{file}").search_experiments()
    return file


@functools.cache
def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


if find_spec("hypothesis"):  # a machine for the tests on a GPU may lack it
    from hypothesis import settings

    # The same examples in every run: what passes here passes everywhere. `pytest --hypothesis-profile=search` looks for new ones.
    settings.register_profile("repeatable", derandomize=True, deadline=None)
    settings.register_profile("search", max_examples=1000, deadline=None)
    settings.load_profile("repeatable")
