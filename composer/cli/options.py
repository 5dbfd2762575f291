"""Options and the loading of the configuration that several commands share."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from composer.config import Config

KEY_VARIABLE = "COMPOSER_API_KEY"


def config_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--config FILE`."""
    return click.option(
        "--config",
        "config_file",
        type=click.Path(path_type=Path),
        help="Configuration file; without it, composer.yaml of this folder if there is one.",
    )(function)


def server_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--config`, `--host`, `--port`."""
    function = click.option("--port", type=int, help="Port of the gateway; 0 takes a free one.")(
        function
    )
    function = click.option("--host", help="Address of the gateway.")(function)
    return config_option(function)


def gateway_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--url`: the gateway that a command talks to. Its key is read from the environment alone, so
    that it stands in no list of processes."""
    return click.option(
        "--url",
        envvar="COMPOSER_URL",
        default="http://127.0.0.1:8080",
        show_default=True,
        help=f"The gateway. Its key, if it wants one, is taken from {KEY_VARIABLE}.",
    )(function)


def load(config_file: Path | None, **flags: Any) -> "Config":
    """The configuration in force."""
    from composer.config import load_config

    return load_config(config_file, flags=flags)


def announce(line: str) -> None:
    """A line for a person."""
    with suppress(OSError):
        click.echo(line)
