"""What can be told without a GPU, and, where there is one, that a replayed step is the step."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from trainables.config import ComputeConfig, TrialConfig
from trainables.data.loader import Request
from trainables.engine.cuda_graph import CapturedStep, untouched
from trainables.method_config import DifficultyNetConfig
from trainables.optim_config import OptimConfig
from trainables.trial_run import TrialRun

ADAM = DifficultyNetConfig(hidden_width=8)
SGD = DifficultyNetConfig(hidden_width=8, meta_optimizer="sgd", meta_lr=0.3)


def started(method: DifficultyNetConfig = ADAM, ema: float | None = None, **compute: bool) -> TrialRun:
    run, optim = TrialRun(), OptimConfig(ema=ema)
    run.start(TrialConfig(epochs=3, method=method, optim=optim, compute=ComputeConfig.model_validate(compute)))
    return run


def state_of(run: TrialRun) -> list[torch.Tensor]:
    optimizers = [run.optimizer, run.meta_optimizer]
    states = [value for o in optimizers for state in o.state.values() for value in state.values() if torch.is_tensor(value)]
    average = run.stage.average.state().values() if run.stage.average else []
    return [*run.classifier.state_dict().values(), *run.method.state_dict().values(), *states, *average]


def take(run: TrialRun, step: int, first: int = 0) -> None:
    """A step with 32 images of the training set, from `first` on."""
    batch, meta_batch = (
        run._batch(next(part.batches([Request(positions)])))
        for part, positions in ((run.loaded.train, torch.arange(first, first + 32)), (run.loaded.meta, torch.arange(100)))
    )
    run._step(batch, meta_batch, step)


def no_graph() -> None:
    raise RuntimeError("no graph here")


@pytest.mark.parametrize("method", [ADAM, SGD])
@pytest.mark.parametrize("steps_before", [0, 3])
def test_warming_up_leaves_no_trace(steps_before: int, method: DifficultyNetConfig) -> None:
    run, other = started(method), started(method)
    for trial in (run, other):
        for step in range(steps_before):
            take(trial, step)
    with untouched(run.bilevel_step):
        for step in range(4):
            take(run, step, first=32)
    for step in range(steps_before, steps_before + 3):
        take(run, step)
        take(other, step)
    assert all(map(torch.equal, state_of(run), state_of(other)))


def test_a_step_that_cannot_be_captured_runs_as_it_is_after_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps that warm up do run; the capture itself fails."""
    stream = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda which: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", no_graph)
    run, other = started(ema=0.9), started(ema=0.9)
    run._run_step = CapturedStep(run.bilevel_step)
    with pytest.warns(UserWarning, match=r"compute\.cuda_graphs: going on without") as caught:
        take(run, 0)
    for step in (1, 2):
        take(run, step)  # a second warning would be an error here
    assert len(caught) == 1
    for step in range(3):
        take(other, step)
    assert all(map(torch.equal, state_of(run), state_of(other)))


@pytest.mark.gpu
@pytest.mark.parametrize("method", [ADAM, SGD])
def test_on_a_gpu_replayed_epochs_are_those_of_plain_steps(method: DifficultyNetConfig) -> None:
    plain, captured = started(method), started(method, cuda_graphs=True)
    assert isinstance(captured._run_step, CapturedStep)
    for _ in range(3):
        expected, found = plain.run_epoch(), captured.run_epoch()
        for name in ("train/loss", "meta/loss", "meta/grad_norm"):
            assert found[name] == pytest.approx(expected[name], rel=1e-3)


@pytest.mark.gpu
def test_on_a_gpu_the_average_follows_replayed_steps() -> None:
    run = started(ema=0.9, cuda_graphs=True)
    assert run.stage.average is not None
    expected = {name: value.clone() for name, value in run.stage.average.state().items()}
    phi = dict(run.classifier.named_parameters())

    def average(_: int) -> None:
        for name, value in expected.items():
            value.lerp_(phi[name].detach(), 0.1)

    run.run_epoch(average)
    for name, value in run.stage.average.state().items():
        torch.testing.assert_close(value, expected[name])
