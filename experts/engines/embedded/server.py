"""The process: loads the model, serves until a signal, drains, and says by its exit code why."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import torch
import uvicorn

from experts.engines.embedded.adapters import read_adapter
from experts.engines.embedded.app import EngineApp
from experts.engines.embedded.cache import SlotCache
from experts.engines.embedded.engine import Bounds, Engine, ServedMixer
from experts.engines.embedded.lora import LoraBank
from experts.engines.embedded.metrics import Metrics
from experts.engines.embedded.mixers import MixerBank, is_mixer, load_mixers
from experts.engines.embedded.model import (
    choose_dtype,
    load_base,
    pack_linears,
    sampling_defaults,
)
from experts.engines.embedded.prompts import Prompter
from experts.engines.embedded.requests import Generation, SamplingParams
from experts.engines.embedded.runner import Runner
from experts.engines.embedded.scheduler import Limits, Scheduler
from experts.errors import SetupError

log = logging.getLogger(__name__)

_MAX_CONNECTIONS = 1024
_STOP_DEADLINE_S = 5.0
# Longer than any client keeps an idle connection, so that none is closed as it is used again.
_KEEP_ALIVE_S = 120


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """The command line; `served` are (name, adapter folder or None for the bare base)."""

    model: Path
    served: tuple[tuple[str, Path | None], ...]
    host: str
    port: int
    threads: int
    dtype: str
    max_running: int
    max_waiting: int
    max_context: int
    drain_seconds: float
    stuck_seconds: float
    log_level: str
    api_key_env: str | None = None


def serve(options: ServerOptions) -> int:
    """Run until told to stop; the exit code: 0 after a drain, 1 when the model thread died.

    Raises `SetupError` when the model, an adapter or the port can't be had.
    """
    listener = _bind(options.host, options.port)
    with contextlib.closing(listener):
        torch.set_num_threads(options.threads)
        engine = build_engine(options)
        key = os.environ.get(options.api_key_env) if options.api_key_env else None
        app = EngineApp(engine, started=int(time.time()), api_key=key)
        return uvicorn_run(app, engine, options, listener)


def build_engine(options: ServerOptions) -> Engine:
    """Load everything and warm it up; the engine's thread is not started yet."""
    dtype = choose_dtype(options.dtype)
    model, geometry = load_base(options.model, dtype)
    given = [(name, folder) for name, folder in options.served if folder is not None]
    mixing = [(name, folder) for name, folder in given if is_mixer(folder)]
    folders = [(name, folder) for name, folder in given if not is_mixer(folder)]
    mixtures = load_mixers([folder for _, folder in mixing], options.model)
    mixers = MixerBank(model, mixtures)
    bank = LoraBank(model, [read_adapter(name, folder) for name, folder in folders])
    pack_linears(model)
    prompter = Prompter(options.model)
    max_context = min(options.max_context, geometry.max_positions)
    scheduler = Scheduler(
        model,
        bank,
        mixers,
        SlotCache(geometry, max_slots=options.max_running, max_capacity=max_context),
        prompter.decoder,
        prompter.eos(model.generation_config),
        Limits(options.max_running, max_context),
    )
    numbers = {name: number for number, (name, _) in enumerate(folders, start=1)}
    names = {name: numbers.get(name, 0) for name, _ in options.served}
    served_mixers = {
        name: ServedMixer(number, len(mixture.adapters))
        for number, ((name, _), mixture) in enumerate(zip(mixing, mixtures, strict=True))
    }
    metrics = Metrics()
    runner = Runner(
        scheduler, metrics, threads=options.threads, stuck_after_s=options.stuck_seconds
    )
    bounds = Bounds(options.max_running, options.max_waiting, max_context, geometry.vocabulary)
    defaults = sampling_defaults(model.generation_config)
    return Engine(runner, prompter, names, bounds, metrics, defaults, served_mixers)


class _Server(uvicorn.Server):
    """uvicorn without its own signal handling: SIGTERM drains the engine first."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


def uvicorn_run(
    app: EngineApp, engine: Engine, options: ServerOptions, listener: socket.socket
) -> int:
    config = uvicorn.Config(
        app,
        http="httptools",
        loop="uvloop",
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        log_level=options.log_level,
        server_header=False,
        limit_concurrency=_MAX_CONNECTIONS,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=2,
    )
    server = _Server(config)
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        return runner.run(_serve(server, engine, options, listener))


async def _serve(
    server: uvicorn.Server, engine: Engine, options: ServerOptions, listener: socket.socket
) -> int:
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    dead = False

    def die() -> None:
        nonlocal dead
        dead = True
        stopping.set()

    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stopping.set)
    engine.runner.start(on_death=die)
    await _warm_up(engine)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    stopped = asyncio.create_task(stopping.wait())
    log.info("serving %s on port %d", ", ".join(engine.names), listener.getsockname()[1])
    await asyncio.wait((serving, stopped), return_when=asyncio.FIRST_COMPLETED)
    if not dead:
        await engine.drain(options.drain_seconds)
    server.should_exit = True
    await serving
    stopped.cancel()
    if not await engine.runner.stop(_STOP_DEADLINE_S):
        log.error("the model thread did not stop in time")
    return 1 if dead else 0


async def _warm_up(engine: Engine) -> None:
    """One tiny request, so that the first real one finds kernels chosen and memory touched."""
    done = asyncio.Event()
    params = SamplingParams(max_tokens=3, ignore_eos=True, temperature=0.0)
    engine.runner.submit(
        Generation((0,) * 16, params, 0, lambda p: done.set() if p.finish else None)
    )
    await done.wait()


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise SetupError(f"can't listen on {host} port {port}: {error.strerror}") from error
    return listener
