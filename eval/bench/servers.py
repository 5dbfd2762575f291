"""The servers of the benchmark as child processes: started, watched for CPU time, stopped."""

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO

import psutil

from composer.config import ENV_PREFIX

DIRECT, RELAY, GATEWAY = "direct", "relay", "gateway"
"""The targets; `direct` is the upstream itself."""

_CACHE = f"{ENV_PREFIX}CACHE_DIR"
"""The only setting of the user's that the benchmark shares: it runs on a state of its own."""

_START_S = 20.0
_STOP_S = 30.0


@dataclass(frozen=True)
class Server:
    """A running server; `url` has no path."""

    name: str
    url: str
    process: subprocess.Popen[bytes]

    def cpu_s(self) -> float:
        """CPU time that the server and its children have taken, in seconds."""
        server = psutil.Process(self.process.pid)
        times = [process.cpu_times() for process in (server, *server.children(recursive=True))]
        return sum(time.user + time.system for time in times)


@contextmanager
def upstream() -> Iterator[Server]:
    """The mock upstream; loaded directly, it is the target `direct`."""
    with _announced(DIRECT, ["-m", "eval.bench.upstream"]) as server:
        yield server


@contextmanager
def relay(upstream_url: str) -> Iterator[Server]:
    """The bare relay in front of the upstream."""
    with _announced(RELAY, ["-m", "eval.bench.relay", upstream_url]) as server:
        yield server


@contextmanager
def child(
    arguments: Sequence[str], output: int | IO[bytes], errors: IO[bytes] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A Python process in a session of its own, of which nothing is left afterwards."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=output,
        env={k: v for k, v in os.environ.items() if not k.startswith(ENV_PREFIX) or k == _CACHE},
        stderr=errors,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        _stop(process)


@contextmanager
def _announced(name: str, arguments: Sequence[str]) -> Iterator[Server]:
    with child(arguments, subprocess.PIPE) as process:
        yield Server(name, _announced_url(name, process), process)


def _announced_url(name: str, process: subprocess.Popen[bytes]) -> str:
    """The address that the process prints as its first line."""
    assert process.stdout is not None
    deadline = time.monotonic() + _START_S
    line = b""
    while not line.endswith(b"\n"):
        ready, _, _ = select.select([process.stdout], [], [], max(0, deadline - time.monotonic()))
        piece = os.read(process.stdout.fileno(), 4096) if ready else b""
        if not piece:
            raise RuntimeError(f"the {name} did not say its address within {_START_S:.0f} s")
        line += piece
    return str(json.loads(line)["url"])


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        server = psutil.Process(process.pid)
        for stubborn in (*server.children(recursive=True), server):
            with suppress(psutil.NoSuchProcess):
                stubborn.kill()
        process.wait()
    finally:
        if process.stdout is not None:
            process.stdout.close()
