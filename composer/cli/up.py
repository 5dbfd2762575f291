"""`coe up`: everything on this machine."""

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from composer.cli.options import announce, load, server_options
from composer.cli.running import run_until_stopped

if TYPE_CHECKING:
    from composer.config import Config


@click.command("up")
@server_options
@click.option("--workers", type=int, help="How many gateway processes answer on the port.")
def command(
    config_file: Path | None, host: str | None, port: int | None, workers: int | None
) -> None:
    """Run everything on this machine: state, engines and the gateway, until Ctrl-C.

    The first start prepares the models and trains the router; later ones find them ready.

    \b
    Example:
      coe up
      coe up --config composer.yaml --port 9000 --workers 2
    """
    from composer.logs import configure_logs

    config = load(config_file, host=host, port=port, workers=workers)
    configure_logs(config.log.level, config.log.format, "supervisor")
    sys.exit(run_until_stopped(_up(config)))


async def _up(config: "Config") -> int:
    from composer.supervisor import Supervisor

    async with Supervisor(config, announce) as supervisor:
        await supervisor.wait_ready()
        announce(f"Composer answers at {supervisor.url}/v1 (Ctrl-C stops it)")
        await asyncio.Event().wait()
    return 0
