"""`coe experts`: register experts, look at them, take them out of rotation, remove them."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from composer.cli.options import announce, gateway_option

if TYPE_CHECKING:
    from collections.abc import Callable

PATH = "/admin/v1/experts"
POLL_S = 0.3
KINDS = ("model", "lora", "mixer", "prompt", "remote", "null")
COLOURS = {"ready": "green", "failed": "red", "parked": "dim", "draining": "yellow"}

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group("experts")
def command() -> None:
    """Register, list, inspect, drain and remove experts.

    \b
    Example:
      coe experts add --id mine --kind remote --url http://127.0.0.1:8000 --served-name my-model
      coe experts list
    """


@command.command("add")
@click.option("--file", type=click.Path(path_type=Path, exists=True, dir_okay=False),
              help="YAML or JSON: one specification, or a list of them.")  # fmt: skip
@click.option("--id", "expert_id", help="Its name, by which clients may ask for it.")
@click.option("--kind", type=click.Choice(KINDS))
@click.option("--base", help="The expert that an adapter or a prompt stands on.")
@click.option("--engine", help="A configured engine, where it is not the base's.")
@click.option("--url", "address", help="Address of an OpenAI-compatible server, or of a provider.")
@click.option("--served-name", help="Its model name there, if that is not the id.")
@click.option("--provider", help="A provider that LiteLLM knows, such as anthropic.")
@click.option("--api-key-env", help="Variable of Composer's environment that holds the key.")
@click.option("--system-prompt", help="What an expert of kind prompt puts first.")
@click.option("--text", help="What an expert of kind null answers.")
@click.option(
    "--adapter", type=click.Path(path_type=Path), help="Folder of a LoRA adapter, or of a mixer."
)
@click.option("--path", type=click.Path(path_type=Path), help="Folder of a model's weights.")
@click.option("--params-b", type=float, help="Billions of parameters.")
@click.option("--context-length", type=int, help="In tokens.")
@click.option("--price-in", type=float, help="USD per million prompt tokens.")
@click.option("--price-out", type=float, help="USD per million answer tokens.")
@click.option("--capabilities", help="With commas: tools, json, vision, logprobs, n.")
@click.option("--instruction", help="A sentence or two: what it is good at.")
@click.option("--no-wait", is_flag=True, help="Don't wait until it was verified.")
@click.option("--wait-s", type=float, default=300.0, show_default=True, help="Longest wait.")
@json_option
@click.option("--gateway", "url", envvar="COMPOSER_URL", default="http://127.0.0.1:8080",
              show_default=True, help="The gateway that is told.")  # fmt: skip
def add(
    file: Path | None, url: str, no_wait: bool, wait_s: float, as_json: bool, **flags: Any
) -> None:
    """Register an expert and wait until it was verified by a real completion.

    Exits with 1 and the reason if it is refused, or could not be verified.

    \b
    Example:
      coe experts add --id mine --kind remote --url http://127.0.0.1:8000 --served-name my-model
      coe experts add --id terse --kind prompt --base general --system-prompt "Be terse."
      coe experts add --file experts.yaml
    """
    from composer.cli.client import call

    views = []
    for spec in _specs(file, flags):
        view = call("POST", url, PATH, json=spec)
        if not as_json:
            announce(f"{view['id']}: registered")
        views.append(view)
    if not no_wait:
        views = [_until_settled(url, view["id"], wait_s, as_json=as_json) for view in views]
    if as_json:
        _print_json(views[0] if file is None else views)
    failed = [view for view in views if not no_wait and view["state"] != "ready"]
    for view in failed:
        click.echo(
            f"Error: {view['id']} is {view['state']}: {view['reason'] or 'it takes long'} "
            f"(it stays registered and is tried again; `coe experts rm {view['id']}` removes it)",
            err=True,
        )
    if failed:
        raise SystemExit(1)


@command.command("list")
@json_option
@gateway_option
def list_experts(url: str, as_json: bool) -> None:
    """All experts with their states.

    \b
    Example:
      coe experts list
      coe experts list --json
    """
    from composer.cli.client import call

    answer = call("GET", url, PATH)
    if as_json:
        _print_json(answer["data"])
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("expert", "kind", "stands on", "state", "compositions", "reason")
    for view in answer["data"]:
        colour = COLOURS.get(view["state"], "cyan")
        engine = (view["runs_on"] or {}).get("engine", "")
        table.add_row(
            view["id"],
            view["kind"],
            " ".join(part for part in (view.get("base"), engine and f"({engine})") if part),
            f"[{colour}]{view['state']}[/]",
            ", ".join(view["compositions"]),
            view["reason"],
        )
    Console().print(table)


@command.command("show")
@click.argument("expert")
@json_option
@gateway_option
def show(expert: str, url: str, as_json: bool) -> None:
    """One expert: its specification, state, engine, and the compositions that use it.

    \b
    Example:
      coe experts show maths
    """
    from composer.cli.client import call

    view = call("GET", url, f"{PATH}/{expert}")
    if as_json:
        _print_json(view)
        return
    for key, value in view.items():
        if key != "object" and value not in (None, "", [], {}):
            announce(f"{key:>16}  {value}")


@command.command("drain")
@click.argument("expert")
@json_option
@gateway_option
def drain(expert: str, url: str, as_json: bool) -> None:
    """Take an expert out of rotation; what it is answering is finished.

    \b
    Example:
      coe experts drain maths
    """
    _change(expert, "drain", url, as_json)


@command.command("resume")
@click.argument("expert")
@json_option
@gateway_option
def resume(expert: str, url: str, as_json: bool) -> None:
    """Put a drained expert back into rotation, once it was verified again.

    \b
    Example:
      coe experts resume maths
    """
    _change(expert, "resume", url, as_json)


@command.command("verify")
@click.argument("expert")
@json_option
@gateway_option
def verify(expert: str, url: str, as_json: bool) -> None:
    """Have an expert verified now; one that failed is tried at once.

    \b
    Example:
      coe experts verify maths
    """
    _change(expert, "verify", url, as_json)


@command.command("rm")
@click.argument("expert")
@click.option("--force", is_flag=True, help="Also if a live composition uses it.")
@click.option("--no-wait", is_flag=True, help="Don't wait until it is gone.")
@gateway_option
def remove(expert: str, url: str, force: bool, no_wait: bool) -> None:
    """Drain an expert and forget it.

    \b
    Example:
      coe experts rm mine
      coe experts rm mine --force
    """
    from composer.cli.client import GatewayError, call

    params = {"force": "true"} if force else {}
    call("DELETE", url, f"{PATH}/{expert}", params=params)
    announce(f"{expert}: draining")

    def gone() -> bool:
        try:
            call("GET", url, f"{PATH}/{expert}")
        except GatewayError as error:
            if error.status != 404:
                raise
            return True
        return False

    if not no_wait:
        _wait(f"{expert}: waiting for its last answers", gone)
        announce(f"{expert}: removed")


def _change(expert: str, what: str, url: str, as_json: bool) -> None:
    from composer.cli.client import call

    view = call("POST", url, f"{PATH}/{expert}/{what}")
    if as_json:
        _print_json(view)
    else:
        announce(f"{expert}: {what} is under way, it was {view['state']}")


def _specs(file: Path | None, flags: dict[str, Any]) -> list[dict[str, Any]]:
    """The specifications to send; folders become absolute, as the gateway wants them."""
    given = {key: value for key, value in flags.items() if value is not None}
    for name, field in (("expert_id", "id"), ("address", "url")):
        if name in given:
            given[field] = given.pop(name)
    if "capabilities" in given:
        given["capabilities"] = [c.strip() for c in given["capabilities"].split(",") if c.strip()]
    if file is None:
        if "id" not in given or "kind" not in given:
            raise click.UsageError("give --id and --kind, or --file")
        specs, folder = [given], Path.cwd()
    else:
        if given:
            raise click.UsageError(f"--file says it all: leave out --{next(iter(given))}")
        from composer.documents import read_document

        data = read_document(file, key="experts").data
        listed = data["experts"] if isinstance(data.get("experts"), list) else [data]
        specs, folder = [spec for spec in listed if isinstance(spec, dict)], file.parent
        if not specs:
            raise click.UsageError(f"{file} holds no specification")
    for spec in specs:
        for field in ("adapter", "path"):
            if spec.get(field):
                spec[field] = str((folder / Path(spec[field]).expanduser()).resolve())
    return specs


def _until_settled(url: str, expert: str, wait_s: float, *, as_json: bool) -> dict[str, Any]:
    """Wait until the expert is ready or has failed, or the time is over."""
    import time

    from composer.cli.client import call

    deadline = time.monotonic() + wait_s
    view: dict[str, Any] = {}

    def settled() -> bool:
        shown = view.get("state")
        view.update(call("GET", url, f"{PATH}/{expert}"))
        if view["state"] != shown and not as_json:
            reason = f" ({view['reason']})" if view["reason"] else ""
            announce(f"{expert}: {view['state']}{reason}")
        return view["state"] in ("ready", "failed", "parked") or time.monotonic() > deadline

    _wait(f"{expert}: waiting for its verification", settled)
    return view


def _wait(what: str, over: "Callable[[], bool]") -> None:
    """Look again and again, with a sign of life for a person who watches."""
    import time

    from rich.console import Console

    with Console(stderr=True).status(what):
        while not over():
            time.sleep(POLL_S)


def _print_json(value: Any) -> None:
    import json

    announce(json.dumps(value, indent=2))
