"""The command lines of the processes that a supervisor starts."""

import json
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from composer.config import Config
from composer.processes import Command, child_environment
from composer.setup import model_folder
from composer.workers import FOLDER_VARIABLE, NAME_VARIABLE
from experts.engine_spec import EmbeddedEngineSpec


def engine_command(
    config: Config,
    engine: EmbeddedEngineSpec,
    served: Mapping[str, Path | None],
    port: int,
    *,
    name: str,
    engines: int,
) -> Command:
    """An embedded engine that serves experts under their ids: bare, or by an adapter's folder.

    `name` is the process's; an engine that names no number of threads gets its share of the cores
    among `engines`: engines that each take every core slow one another down, and the gateway.
    """
    options: dict[str, object] = {
        "--model": model_folder(config, engine),
        "--host": "127.0.0.1",
        "--port": port,
        "--threads": engine.threads or max(1, (os.cpu_count() or 1) // max(1, engines)),
        "--dtype": engine.dtype,
        "--max-running": engine.max_running,
        "--max-waiting": engine.max_waiting,
        "--max-context": engine.max_context,
        "--log-level": config.log.level,
    }
    argv = [sys.executable, "-m", "experts.engines.embedded"]
    argv += [str(part) for option in options.items() for part in option]
    for expert, folder in served.items():
        argv += ["--serve", expert if folder is None else f"{expert}={folder}"]
    log = config.state_dir / "logs" / f"{engine.name}.log"
    return Command(name, argv, env=child_environment(), log=log)


def bridge_command(config: Config, port: int) -> Command:
    """The bridge to other providers, in an environment that has LiteLLM."""
    argv = [_litellm_python(config), "-m", "experts.engines.bridge", "--port", str(port)]
    log = config.state_dir / "logs" / "bridge.log"
    return Command("bridge", argv, env=child_environment(), log=log)


def _litellm_python(config: Config) -> str:
    """The configured interpreter, else that of `make providers` beside our own environment."""
    if config.litellm_python is not None:
        return str(config.litellm_python)
    made = Path(sys.prefix).parent / ".venv-litellm" / "bin" / "python"
    return str(made) if made.exists() else sys.executable


def worker_command(
    config: Config, redis_url: str, name: str, listeners: Sequence[socket.socket]
) -> Command:
    """A gateway worker on sockets that the supervisor has bound; it logs where we log."""
    argv = [sys.executable, "-m", "composer.cli", "serve"]
    argv += ["--config", str(write_child_config(config))]
    descriptors = tuple(listener.fileno() for listener in listeners)
    argv += [part for fd in descriptors for part in ("--fd", str(fd))]
    extra = [("COMPOSER_REDIS_URL", redis_url), (NAME_VARIABLE, name)]
    if config.workers > 1:
        extra.append((FOLDER_VARIABLE, str(metrics_folder(config))))
    return Command(name, argv, env=child_environment(extra), inherit=descriptors)


def metrics_folder(config: Config) -> Path:
    """Where the gateway workers of this host sum up their metrics."""
    return config.state_dir / "run" / "metrics"


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
