"""The command lines of the processes that a supervisor starts."""

import json
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

from composer.config import Config
from composer.processes import Command, child_environment
from composer.setup import model_folder
from experts.engine_spec import EmbeddedEngineSpec
from experts.spec import ExpertSpec


def engine_command(
    config: Config, engine: EmbeddedEngineSpec, experts: Mapping[str, ExpertSpec], port: int
) -> Command:
    """An embedded engine that serves every expert placed on it under the expert's id."""
    served = [
        spec.id if spec.adapter is None else f"{spec.id}={spec.adapter}"
        for spec in experts.values()
        if spec.engine == engine.name
    ]
    options: dict[str, object] = {
        "--model": model_folder(config, engine),
        "--host": "127.0.0.1",
        "--port": port,
        "--threads": engine.threads or _fair_share(config),
        "--dtype": engine.dtype,
        "--max-running": engine.max_running,
        "--max-waiting": engine.max_waiting,
        "--max-context": engine.max_context,
        "--log-level": config.log.level,
    }
    argv = [sys.executable, "-m", "experts.engines.embedded"]
    argv += [str(part) for option in options.items() for part in option]
    argv += [part for name in served for part in ("--serve", name)]
    log = config.state_dir / "logs" / f"{engine.name}.log"
    return Command(engine.name, argv, env=child_environment(), log=log)


def _fair_share(config: Config) -> int:
    """Threads of an embedded engine that names no number: the cores, shared among the engines.

    Engines that each take every core slow one another down, and the gateway with them.
    """
    engines = sum(isinstance(engine, EmbeddedEngineSpec) for engine in config.engines)
    return max(1, (os.cpu_count() or 1) // engines)


def worker_command(config: Config, redis_url: str, listener: socket.socket) -> Command:
    """A gateway worker on a socket that the supervisor has bound; it logs where we log."""
    argv = [sys.executable, "-m", "composer.cli", "serve"]
    argv += ["--config", str(write_child_config(config)), "--fd", str(listener.fileno())]
    env = child_environment([("COMPOSER_REDIS_URL", redis_url)])
    return Command("gateway", argv, env=env, inherit=(listener.fileno(),))


def setup_argv(config: Config) -> list[str]:
    """`coe setup` under the same configuration."""
    file = write_child_config(config)
    return [sys.executable, "-m", "composer.cli", "setup", "--config", str(file)]


def write_child_config(config: Config) -> Path:
    """The configuration in force as a file for our children; secrets are not in it."""
    file = config.state_dir / "run" / "config.json"
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    values = config.model_dump(mode="json", exclude={"redis_url"})
    file.write_text(json.dumps(values, indent=2))
    return file


def free_port() -> int:
    """A loopback port that is free at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
