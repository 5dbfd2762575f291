"""`coe decisions`: what was decided lately, why, and what became of it."""

import json
import os
import sys
import time
from datetime import datetime
from typing import Any

import click

from composer.cli.options import announce, gateway_option

PATH = "/admin/v1/decisions"
PAGE = 1000
FOLLOW_S = 1.0

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group("decisions")
def command() -> None:
    """List, inspect and export recent decisions.

    \b
    Example:
      coe decisions list --expert maths
      coe decisions export > decisions.jsonl
    """


@command.command("list")
@click.option("--limit", type=click.IntRange(1, 500), default=20, show_default=True)
@click.option("--before", help="Only those before this cursor.")
@click.option("--expert", help="Only those that this expert answered.")
@click.option("--category", help="Only those of this category.")
@json_option
@gateway_option
def list_decisions(
    limit: int,
    before: str | None,
    expert: str | None,
    category: str | None,
    as_json: bool,
    url: str,
) -> None:
    """The newest decisions, newest first.

    \b
    Example:
      coe decisions list --limit 5
      coe decisions list --expert maths --json
    """
    from composer.cli.client import call

    asked = {"limit": str(limit), "before": before, "expert": expert, "category": category}
    params = {name: value for name, value in asked.items() if value is not None}
    views = call("GET", url, PATH, params=params)["data"]
    if as_json:
        announce(json.dumps(views, indent=2))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in ("time", "decision"):
        table.add_column(column, no_wrap=True)
    for column in ("category", "answered by"):
        table.add_column(column, overflow="fold")
    for column in ("ms", "score"):
        table.add_column(column, no_wrap=True, justify="right")
    for view in views:
        outcome, given = view["outcome"], view["feedback"]
        answered = Text(view["answered_by"] or "nobody")
        if outcome["status"] != "ok":
            answered.append(f" ({outcome['status']})", "red")
        table.add_row(
            _moment(view["at"], short=True),
            view["id"],
            Text(view["category"]),
            answered,
            f"{outcome['total_ms']:,.0f}",
            "" if given is None else f"{given['score']:.2f}",
        )
    Console().print(table)


@command.command("show")
@click.argument("decision")
@json_option
@gateway_option
def show(decision: str, as_json: bool, url: str) -> None:
    """One decision: the reason, every score, who was ruled out, what became of it.

    DECISION is the id from an answer's x-composer-decision header, or from the list.

    \b
    Example:
      coe decisions show dec-0123456789abcdef01234567
    """
    from urllib.parse import quote

    from composer.cli.client import call

    view = call("GET", url, f"{PATH}/{quote(decision, safe='')}")
    if as_json:
        announce(json.dumps(view, indent=2))
        return
    for line in _lines(view):
        announce(line)


def _lines(view: dict[str, Any]) -> list[str]:
    outcome, given = view["outcome"], view["feedback"]
    times = f"routing {view['route_ms']:.2f} ms (cache: {view['cache']})"
    if outcome["first_token_ms"] is not None:
        times += f", first token {outcome['first_token_ms']:.0f} ms"
    guessed = " (estimated)" if outcome["estimated"] else ""
    tokens = f"{outcome['prompt_tokens']} + {outcome['completion_tokens']}"
    lines = [
        f"{view['id']}  {_moment(view['at'])}",
        f"composition  {view['composition'] or '(the request named its expert)'}  "
        f"{view['version'][:12]}",
        f"reason       {view['reason']}",
        f"answered by  {view['answered_by'] or 'nobody'}: {outcome['status']}, "
        f"status {outcome['http_status']}" + (f", {outcome['error']}" if outcome["error"] else ""),
        f"time         {times}, total {outcome['total_ms']:.0f} ms",
        f"tokens       {tokens}{guessed}, ${outcome['cost_usd']:.6f}",
    ]
    lines += [f"prompt       {view['prompt']}"] if "prompt" in view else []
    lines += [f"feedback     {given['score']:.2f}  {given['comment']}".rstrip()] if given else []
    lines += ["scores"]
    lines += [f"  {e:<24} {score['quality']:.3f}" for e, score in view["scores"].items()]
    lines += [f"  {e:<24} ruled out: {reason}" for e, reason in view["ruled_out"].items()]
    lines += [f"  {e:<24} failed: {reason}" for e, reason in outcome["failed"]]
    return lines


@command.command("export")
@click.option("--cursor", default="", help="Go on after this decision's cursor.")
@click.option("--follow", is_flag=True, help="Wait for more, until Ctrl-C.")
@gateway_option
def export(cursor: str, follow: bool, url: str) -> None:
    """Write the decisions that are kept, one JSON object a line, oldest first.

    Each line has its `cursor`; an export that starts at the last one's goes on where this one
    ended, with nothing missing or repeated.

    \b
    Example:
      coe decisions export > decisions.jsonl
      coe decisions export --cursor 1764061234567-0 --follow
    """
    try:
        while True:
            *views, last = _page(url, cursor)
            for view in views:
                sys.stdout.buffer.write(view + b"\n")
            sys.stdout.buffer.flush()
            end = json.loads(last)
            if end.get("missed"):
                click.echo("some decisions were trimmed before they were read", err=True)
            cursor = end["cursor"]
            if not views and not follow:
                return
            if not views:
                time.sleep(FOLLOW_S)
    except KeyboardInterrupt:
        return
    except BrokenPipeError:
        # Who reads our output has enough; the interpreter must not try to write the rest.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _page(url: str, cursor: str) -> list[bytes]:
    """Lines of one export, the last of which holds the cursor.

    Raises:
        GatewayError: with the gateway's own words; also if the export broke off.
    """
    from composer.cli.client import GatewayError, fetch

    params = {"cursor": cursor, "limit": str(PAGE)}
    lines = fetch(url, f"{PATH}/export", params=params).splitlines()
    if not lines or "error" in json.loads(lines[-1]):
        raise GatewayError("the export broke off: try again from the last cursor")
    return lines


def _moment(at: float, *, short: bool = False) -> str:
    """Local time; `short` leaves out what is plain: the date of today, the seconds before it."""
    when = datetime.fromtimestamp(at)
    if not short:
        return f"{when:%Y-%m-%d %H:%M:%S}"
    return f"{when:%H:%M:%S}" if when.date() == datetime.now().date() else f"{when:%m-%d %H:%M}"
