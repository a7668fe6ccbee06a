"""The sharded step over a backend of torch.distributed: in a group of one, where every message is sent, and in one of all GPUs.

On a GPU (`-m gpu`) the backend is NCCL. The same group of one over gloo shows on a CPU that the comparison itself is right.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing

from trainables.classifier_config import SmallCNNConfig
from trainables.collectives import ALONE, Collectives
from trainables.config import BilevelConfig, ComputeConfig, TrialConfig
from trainables.data_config import GeneratedConfig
from trainables.engine.cuda_graph import CapturedStep
from trainables.method_config import DifficultyNetConfig
from trainables.optim_config import OptimConfig
from trainables.trial_run import TrialRun

EPOCHS = 2
TOLERANCE = 1e-9
"""In float64, where only the order of sums differs."""


class Talkative(Collectives):
    """Sends its messages in a group of one, too."""

    sent = 0

    @property
    def alone(self) -> bool:
        """Never, and each question comes before a message."""
        Talkative.sent += 1
        return False


def config_of(device: str, cuda_graphs: bool) -> TrialConfig:
    return TrialConfig(
        epochs=20,
        device=device,
        data=GeneratedConfig(num_classes=3, images_per_class=40, image_size=8, n_max=20, meta_per_class=4, val_per_class=4),
        classifier=SmallCNNConfig(widths=[3, 4]),
        method=DifficultyNetConfig(hidden_width=5, refresh_interval=0.5, meta_lr=0.3, meta_optimizer="sgd"),
        optim=OptimConfig(batch_size=5),
        bilevel=BilevelConfig(meta_batch_size=6),
        compute=ComputeConfig(precision="float64", batch_norm="sync", deterministic=True, cuda_graphs=cuda_graphs),
    )


def trained(collectives: Collectives, config: TrialConfig) -> tuple[TrialRun, dict[str, torch.Tensor], dict[str, float]]:
    run = TrialRun(collectives)
    run.start(config)
    metrics = [run.run_epoch() for _ in range(EPOCHS)][-1]
    state = {f"{name}.{key}": value for name in ("phi", "theta") for key, value in run.state()[name].items()}
    return run, state, {key: value for key, value in metrics.items() if not key.startswith(("time/", "system/"))}


def compare(collectives: Collectives, device: str, cuda_graphs: bool) -> None:
    """A trial of the group equals the same trial in this process alone."""
    config = config_of(device, cuda_graphs)
    run, state, metrics = trained(collectives, config)
    assert isinstance(run._run_step, CapturedStep) == (cuda_graphs and device == "cuda" and collectives.size == 1)
    _, expected, of_one = trained(ALONE, config_of(device, cuda_graphs=False))
    for name, value in expected.items():
        torch.testing.assert_close(state[name], value, rtol=0, atol=TOLERANCE, msg=name)
    assert metrics == pytest.approx(of_one, abs=TOLERANCE, nan_ok=True)


@contextmanager
def group_of_one(backend: str) -> Iterator[Talkative]:
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group(backend, init_method=f"file://{folder}/meeting", rank=0, world_size=1)
        try:
            yield Talkative(0, 1)
        finally:
            dist.destroy_process_group()


def test_a_group_of_one_over_gloo_is_a_trial_alone() -> None:
    with group_of_one("gloo") as collectives:
        before = Talkative.sent
        compare(collectives, "cpu", cuda_graphs=False)
        assert Talkative.sent > before + EPOCHS


@pytest.mark.gpu
@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_a_group_of_one_over_nccl_is_a_trial_alone(cuda_graphs: bool) -> None:
    with group_of_one("nccl") as collectives:
        compare(collectives, "cuda", cuda_graphs)


def work(rank: int, size: int, meeting: str) -> None:
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", init_method=meeting, rank=rank, world_size=size)
    compare(Collectives(rank, size), "cuda", cuda_graphs=False)
    dist.destroy_process_group()


@pytest.mark.gpu
def test_all_gpus_together_are_a_trial_alone() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU, which the group of one tests")
    with tempfile.TemporaryDirectory() as folder:
        size = torch.cuda.device_count()
        multiprocessing.spawn(work, (size, f"file://{folder}/meeting"), size)
