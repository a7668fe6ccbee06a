"""Weights that cannot be had are refused in seconds; what is in the cache, or comes late, is had all the same."""

import os
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler
from importlib.util import find_spec
from pathlib import Path
from socket import create_server

import pytest
from http_server import http_server
from safetensors.torch import save_file

from trainables.classifier_config import TimmConfig
from trainables.models import build_classifier

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not find_spec("timm"), reason="timm is an optional package, which brings the hub's client"),
]
REPO = "timm/test_vit.r160_in1k"
CREATED = """
import sys
from trainables.classifier_config import TimmConfig
from trainables.models import build_classifier
try:
    classifier = build_classifier(TimmConfig(model="test_vit", pretrained=True), (3, 160, 160), 2, seed=0)
    print(classifier.backbone.cls_token.sum().item())
except ValueError as error:
    print(error, file=sys.stderr)
"""


def python(program: str, cache: Path, endpoint: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Runs a program whose hub is at `endpoint`; the address is read when the client is imported."""
    env = {**os.environ, "HF_HOME": str(cache), "HF_ENDPOINT": endpoint, "NO_PROXY": "127.0.0.1", **variables}
    env.pop("HF_HUB_OFFLINE", None)
    return subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=300)


@pytest.fixture
def closed() -> str:
    """An address that refuses connections."""
    with create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return f"http://127.0.0.1:{port}"


def test_without_a_connection_the_clients_long_pauses_are_left_out(closed: str, tmp_path: Path) -> None:
    done = python(CREATED, tmp_path, closed)
    assert "classifier.pretrained is true, but the weights of test_vit cannot be had (no connection to the hub" in done.stderr
    assert "allowed: classifier.pretrained=false with classifier.weights=FILE" in done.stderr
    assert "Retrying in" not in done.stderr  # as the client says before its pauses, which take 46 s together


def test_without_a_connection_the_weights_of_the_cache_are_taken(closed: str, tmp_path: Path) -> None:
    backbone = build_classifier(TimmConfig(model="test_vit"), (3, 160, 160), 2, seed=3).backbone
    folder, commit = tmp_path / "hub" / f"models--{REPO.replace('/', '--')}", "0" * 40
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    (folder / "snapshots" / commit).mkdir(parents=True)
    state = {name: tensor.contiguous() for name, tensor in backbone.state_dict().items()}
    save_file(state, folder / "snapshots" / commit / "model.safetensors")
    done = python(CREATED, tmp_path, closed)
    assert float(done.stdout) == pytest.approx(state["cls_token"].sum().item()), done.stderr


def late(request: BaseHTTPRequestHandler, status: int, after_s: float) -> None:
    time.sleep(after_s)
    request.send_response(status)
    request.end_headers()


@pytest.mark.parametrize(("status", "after_s"), [(404, 0.0), (503, 0.0), (200, 3.0)])
def test_a_hub_that_answers_late_or_with_an_error_is_reachable(status: int, after_s: float, tmp_path: Path) -> None:
    program = f"from trainables.models.hub import unreachable\nprint(unreachable({REPO!r}, ['model.safetensors']))"
    with http_server(lambda request: late(request, status, after_s)) as endpoint:
        done = python(program, tmp_path, endpoint, HF_HUB_ETAG_TIMEOUT="1")
    assert done.stdout == "None\n", done.stderr
