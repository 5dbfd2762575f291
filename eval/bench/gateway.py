"""Composer itself in front of the upstream, as an operator would start it."""

import http.client
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import yaml

from composer.config import Config, load_config
from eval.bench.load import request_body
from eval.bench.servers import GATEWAY, Server, child
from routers.artefact import save_artefact
from routers.category import linear_category_router
from routers.encoders.weights import encoder_id, find_model, weights_digest
from routers.mapping import Mapping
from routers.two_step import TwoStepRouter

EXPERTS = tuple(f"expert-{number}" for number in range(8))

_CATEGORIES = tuple(f"category-{number}" for number in range(12))
_READY_S = 60.0
_ANSWER_S = 10.0


@contextmanager
def start_gateway(upstream_url: str) -> Iterator[Server]:
    """One gateway worker with the default settings, its decision for the load's prompt cached.

    Its eight experts are all served by the upstream; its router has twelve categories and random
    weights. Raises `RuntimeError`, with the end of its log, when it does not come up or its
    decisions do not come from the cache.
    """
    with tempfile.TemporaryDirectory(prefix="composer-bench-") as name:
        folder = Path(name)
        port = _free_port()
        file = _write_config(folder, port, upstream_url)
        with (
            (folder / "log").open("w+b") as log,
            child(["-m", "composer.cli", "up", "--config", str(file)], log, log) as process,
        ):
            try:
                _until_ready(port, process)
                _require_cached(port)
            except RuntimeError as error:
                log.seek(0)
                end = log.read()[-4000:].decode(errors="replace")
                raise RuntimeError(f"{error}; its log ends:\n{end}") from error
            yield Server(GATEWAY, f"http://127.0.0.1:{port}", process)


def _until_ready(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _READY_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the gateway ended with status {process.returncode}")
        try:
            if _status(port, "GET", "/health/ready")[0] == 200:
                return
        except (OSError, http.client.HTTPException):
            pass
        time.sleep(0.1)
    raise RuntimeError(f"the gateway was not ready within {_READY_S:.0f} s")


def _require_cached(port: int) -> None:
    """Send the load's prompt twice: the second decision must come from the cache."""
    body = request_body(stream=False)
    for _ in range(2):
        status, cache = _status(port, "POST", "/v1/chat/completions", body)
        if status != 200:
            raise RuntimeError(f"the gateway answered a prompt with status {status}")
    if cache != "hit":
        raise RuntimeError(f"the gateway's decision is not cached (x-composer-cache: {cache})")


def _status(port: int, method: str, path: str, body: bytes | None = None) -> tuple[int, str | None]:
    """Status of an answer, and whether its decision was cached."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_ANSWER_S)
    with closing(connection):
        connection.request(method, path, body, {"content-type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.headers.get("x-composer-cache")


def _write_config(folder: Path, port: int, upstream_url: str) -> Path:
    file = folder / "composer.yaml"
    settings = {
        "port": port,
        "state_dir": "state",
        "engines": [{"name": "upstream", "kind": "remote", "url": upstream_url}],
        "experts": [
            {
                "id": expert,
                "kind": "remote",
                "engine": "upstream",
                "context_length": 8192,
            }
            for expert in EXPERTS
        ],
        "composition": {"name": "auto", "artefact": "router"},
    }
    file.write_text(yaml.safe_dump(settings))
    _write_router(folder / "router", load_config(file))
    return file


def _write_router(folder: Path, config: Config) -> None:
    model = find_model()
    random = np.random.default_rng(0)
    shape = len(_CATEGORIES), model.dimension()
    router = TwoStepRouter(
        linear_category_router(
            categories=_CATEGORIES,
            coefficients=random.normal(size=shape).astype(np.float32),
            intercepts=np.zeros(len(_CATEGORIES), dtype=np.float32),
            temperature=1.0,
            anchors=np.eye(*shape, dtype=np.float32),
            min_probability=0.0,
            min_similarity=-1.0,
        ),
        Mapping(
            categories=_CATEGORIES,
            experts=EXPERTS,
            by_category=random.uniform(size=(len(_CATEGORIES), len(EXPERTS))),
            overall=random.uniform(size=len(EXPERTS)),
        ),
    )
    encoder = encoder_id(weights_digest(model, config.cache_dir))
    save_artefact(folder, router, name="bench", encoder=encoder)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
