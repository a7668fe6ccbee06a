"""The switches can be read without a GPU; what they do is seen on one."""

import os
from typing import Any

import pytest
import torch

from trainables.classifier_config import SmallCNNConfig
from trainables.config import ComputeConfig, TrialConfig
from trainables.engine.numerics import WORKSPACE, deterministic, numerics, tf32
from trainables.method_config import DifficultyNetConfig
from trainables.settings import flatten
from trainables.trial_run import TrialRun

GPU = torch.device("cuda")
MATMUL, CONV = torch.backends.cuda.matmul, torch.backends.cudnn.conv


@pytest.fixture(autouse=True)
def workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Afterwards the environment is as before."""
    monkeypatch.setenv(WORKSPACE, "x")
    monkeypatch.delenv(WORKSPACE)


def switches() -> list[Any]:
    cudnn = torch.backends.cudnn
    return [
        MATMUL.fp32_precision,
        CONV.fp32_precision,
        cudnn.rnn.fp32_precision,
        MATMUL.allow_tf32,
        cudnn.allow_tf32,
        cudnn.benchmark,
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    ]


@pytest.mark.parametrize(("precision", "rounded"), [("float32", False), ("tf32", True), ("bf16", False), ("float64", False)])
def test_only_tf32_rounds_the_factors_of_products_and_convolutions(precision: str, rounded: bool) -> None:
    before = switches()
    with numerics(ComputeConfig.model_validate({"precision": precision}), GPU):
        assert [part.fp32_precision == "tf32" for part in (MATMUL, CONV)] == [rounded, rounded]
    assert switches() == before


def test_deterministic_holds_for_the_trial_and_not_for_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    before = switches()
    with numerics(ComputeConfig(deterministic=True), GPU):
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.backends.cudnn.benchmark
        assert os.environ[WORKSPACE] == ":4096:8"
    assert switches() == before
    with numerics(ComputeConfig(), GPU):
        assert not torch.are_deterministic_algorithms_enabled()
        assert os.environ[WORKSPACE] == ":4096:8"  # read once by a process, and the next trial may be deterministic


def test_the_switches_are_put_back_after_an_error_and_after_newer_names_were_used() -> None:
    before = switches()
    with pytest.raises(RuntimeError, match="another"), numerics(ComputeConfig(precision="tf32", deterministic=True), GPU):
        raise RuntimeError("another error")
    assert switches() == before
    MATMUL.fp32_precision, precision = "tf32", MATMUL.fp32_precision
    try:
        with tf32(False):
            assert MATMUL.fp32_precision == "ieee"
        assert MATMUL.fp32_precision == "tf32"
    finally:
        MATMUL.fp32_precision = precision
    assert switches() == before


def test_on_a_cpu_nothing_changes() -> None:
    before = switches()
    with numerics(ComputeConfig(precision="tf32", deterministic=True), torch.device("cpu")):
        assert switches() == before
    assert WORKSPACE not in os.environ


def test_an_environment_that_forbids_it_and_an_operation_that_cannot_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    words = "f_cuda does not have a deterministic implementation, but you set 'torch.use_deterministic_algorithms(True)'. You can"
    with (
        pytest.raises(ValueError, match=r"deterministic is true, but f_cuda does not .* implementation; allowed"),
        deterministic(True),
    ):
        raise RuntimeError(words)
    monkeypatch.setenv(WORKSPACE, ":0:0")
    with (
        pytest.raises(ValueError, match=f"{WORKSPACE} is ':0:0'; allowed: :4096:8 or :16:8"),
        numerics(ComputeConfig(deterministic=True), GPU),
    ):
        pass
    with numerics(ComputeConfig(), GPU):
        pass


def test_all_that_a_trial_computes_is_under_its_switches(monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as it can be told without a GPU: the device is taken for one."""
    seen: list[tuple[str, str]] = []
    run = TrialRun()
    monkeypatch.setattr("trainables.trial_run.numerics", lambda compute, device: numerics(compute, GPU))
    step, predicted = TrialRun._step, TrialRun._predicted_classes

    def noting(name: str, call: Any) -> Any:
        def noted(*arguments: Any, **more: Any) -> Any:
            seen.append((name, CONV.fp32_precision))
            return call(*arguments, **more)

        return noted

    monkeypatch.setattr(TrialRun, "_step", noting("step", step))
    monkeypatch.setattr(TrialRun, "_predicted_classes", noting("predictions", predicted))
    for precision in ("tf32", "float32"):
        compute = ComputeConfig.model_validate({"precision": precision})
        run.start(TrialConfig(epochs=1, device="cpu", classifier=SmallCNNConfig(widths=[2, 2]), compute=compute))
        run.run_epoch()
    names, found = zip(*seen, strict=True)
    assert set(names) == {"step", "predictions"}
    half = len(found) // 2
    assert ({*found[:half]}, "tf32" in found[half:]) == ({"tf32"}, False)


@pytest.mark.gpu
def test_on_a_gpu_a_deterministic_trial_is_repeated_and_resumed_bit_for_bit() -> None:
    compute = ComputeConfig(deterministic=True)
    config = TrialConfig(epochs=3, device="cuda", method=DifficultyNetConfig(hidden_width=8), compute=compute)
    runs = [TrialRun(), TrialRun(), TrialRun()]
    for run in runs[:2]:
        run.start(config)
        for _ in range(3):
            run.run_epoch()
    half = TrialRun()
    half.start(config)
    half.run_epoch()
    runs[2].resume(half.state(), config, "half")
    for _ in range(2):
        runs[2].run_epoch()
    first, *others = [flatten({"phi": run.classifier.state_dict(), "theta": run.method.state_dict()}) for run in runs]
    for other in others:
        assert all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.gpu
def test_on_a_gpu_float32_convolutions_and_products_are_float32_and_tf32_ones_are_not() -> None:
    generator = torch.Generator().manual_seed(0)
    images, kernels = torch.randn(8, 64, 16, 16, generator=generator), torch.randn(64, 64, 3, 3, generator=generator)
    square = torch.randn(256, 256, generator=generator)
    exact = torch.nn.functional.conv2d(images.double(), kernels.double()), square.double() @ square.double()

    def errors(precision: str) -> list[float]:
        with numerics(ComputeConfig.model_validate({"precision": precision}), GPU):
            found = torch.nn.functional.conv2d(images.cuda(), kernels.cuda()), square.cuda() @ square.cuda()
        return [((x.cpu() - y).norm() / y.norm()).item() for x, y in zip(found, exact, strict=True)]

    assert max(errors("float32")) < 1e-5
    assert min(errors("tf32")) > 1e-5
