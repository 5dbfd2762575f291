"""`coe serve`: one gateway worker."""

import socket
from pathlib import Path

import click

from composer.cli.options import load, server_options


@click.command("serve")
@server_options
@click.option("--fd", type=int, multiple=True, hidden=True, help="A socket that is already bound.")
def command(
    config_file: Path | None, host: str | None, port: int | None, fd: tuple[int, ...]
) -> None:
    """Run a gateway alone, on a Redis that is there (`redis_url`), until SIGTERM.

    \b
    Example:
      COMPOSER_REDIS_URL=redis://localhost:6379/0 coe serve --port 9000
    """
    from contextlib import ExitStack

    import uvloop

    from composer.listening import listen
    from composer.logs import configure_logs
    from experts.errors import ConfigError
    from gateway.server import serve

    config = load(config_file, host=host, port=port)
    configure_logs(config.log.level, config.log.format, "gateway")
    if config.redis_url is None:
        raise ConfigError("a gateway alone needs redis_url; `coe up` starts a server of its own")
    with ExitStack() as stack:
        bound = [socket.socket(fileno=number) for number in fd]
        listeners = [
            stack.enter_context(listener)
            for listener in bound or [listen(config.host, config.port)]
        ]
        uvloop.run(serve(config, config.redis_url.get_secret_value(), listeners))
