"""`coe keys`: make, list and remove API keys."""

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from composer.cli.options import KEY_VARIABLE, announce, config_option, gateway_option, load

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from composer.config import Config
    from composer.state import State

PATH = "/admin/v1/keys"


def direct_option(function: Any) -> Any:
    """`--direct` and the configuration that says where the state is."""
    function = click.option(
        "--direct", is_flag=True, help="Work on this machine's state itself, without a gateway."
    )(function)
    return config_option(function)


@click.group("keys")
def command() -> None:
    """Make, list and remove API keys.

    \b
    Example:
      export COMPOSER_API_KEY=$(coe keys create --admin)
      coe keys list
    """


@command.command("create")
@click.option("--name", help="Whose key it is, or what for.")
@click.option("--admin", is_flag=True, help="It may use /admin and /metrics too.")
@click.option("--json", "as_json", is_flag=True, help="The key as JSON.")
@direct_option
@gateway_option
@click.pass_context
def create(
    context: click.Context,
    name: str | None,
    admin: bool,
    as_json: bool,
    direct: bool,
    config_file: Path | None,
    url: str,
) -> None:
    """Make a key and print its secret, which is shown this once.

    The first one needs neither a key nor a gateway: where no gateway answers, or it wants a key and
    COMPOSER_API_KEY is not set, the key is written to the state of this machine's configuration.

    \b
    Example:
      export COMPOSER_API_KEY=$(coe keys create --admin)
      coe keys create --name "the website"
    """
    name = name or ("admin" if admin else "user")
    scopes = ["admin", "user"] if admin else ["user"]
    chosen = context.get_parameter_source("url") != click.core.ParameterSource.DEFAULT
    key = None if direct else _create_by_gateway(name, scopes, url, chosen)
    if key is None:
        key = _create_directly(name, scopes, config_file)
    if as_json:
        announce(json.dumps(key, indent=2))
        return
    told = f"{key['id']} '{key['name']}' ({', '.join(key['scopes'])}); its secret, shown this once:"
    click.echo(told, err=True)
    announce(key["secret"])


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="The keys as JSON.")
@direct_option
@gateway_option
def list_keys(as_json: bool, direct: bool, config_file: Path | None, url: str) -> None:
    """List the keys, newest first. Secrets are not kept, so they can't be shown.

    \b
    Example:
      coe keys list
    """
    from composer.cli.client import call
    from composer.keys import key_view

    async def read(state: "State") -> list[dict[str, Any]]:
        keys = (await state.keys.all()).values()
        return [key_view(key) for key in sorted(keys, key=lambda key: -key.created_at)]

    keys = _directly(config_file, read) if direct else call("GET", url, PATH)["data"]
    if as_json:
        announce(json.dumps(keys, indent=2))
        return
    if not keys:
        announce("there are no keys: `coe keys create --admin` makes the first")
        return
    _show(keys)


@command.command("rm")
@click.argument("key_id")
@direct_option
@gateway_option
def remove(key_id: str, direct: bool, config_file: Path | None, url: str) -> None:
    """Remove a key: within a second nobody can use it.

    \b
    Example:
      coe keys rm key-0123456789ab
    """
    from urllib.parse import quote

    from composer.cli.client import call
    from composer.keys import remove_key

    if direct:
        required = load(config_file).keys_required
        _directly(config_file, lambda state: remove_key(state, key_id, required=required))
    else:
        call("DELETE", url, f"{PATH}/{quote(key_id, safe='')}")
    announce(f"removed {key_id}")


def _create_by_gateway(
    name: str, scopes: list[str], url: str, chosen: bool
) -> dict[str, Any] | None:
    """None if no gateway answers at the default URL, or one there wants a key and we have none."""
    import os

    from composer.cli.client import GatewayError, call

    try:
        key: dict[str, Any] = call("POST", url, PATH, json={"name": name, "scopes": scopes})
    except GatewayError as error:
        refused = error.status == 401 and not os.environ.get(KEY_VARIABLE)
        if chosen or (error.status is not None and not refused):
            raise
        return None
    return key


def _create_directly(name: str, scopes: list[Any], config_file: Path | None) -> dict[str, Any]:
    from composer.keys import create_key, key_view

    async def make(state: "State") -> dict[str, Any]:
        record, secret = await create_key(state, name, scopes)
        return {**key_view(record), "secret": secret}

    key: dict[str, Any] = _directly(config_file, make)
    return key


def _directly(config_file: Path | None, work: "Callable[[State], Awaitable[Any]]") -> Any:
    """Do something with the state itself, and say where it is."""
    from composer.local_state import local_state
    from composer.logs import configure_logs

    config = load(config_file)
    configure_logs("error", config.log.format, "keys")
    click.echo(f"working on the state {_place(config)}", err=True)

    async def run() -> Any:
        async with local_state(config) as state:
            return await work(state)

    return asyncio.run(run())


def _place(config: "Config") -> str:
    return f"in {config.state_dir}" if config.redis_url is None else "at redis_url"


def _show(keys: list[dict[str, Any]]) -> None:
    from datetime import datetime

    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("id", "name", "scopes", "secret", "made"):
        table.add_column(column, overflow="fold")
    for key in keys:
        made = datetime.fromtimestamp(key["created_at"]).strftime("%Y-%m-%d %H:%M")
        table.add_row(key["id"], key["name"], ", ".join(key["scopes"]), key["hint"], made)
    Console().print(table, markup=False)
