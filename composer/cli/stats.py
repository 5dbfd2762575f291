"""`coe stats`: what was asked and answered, by whom, how fast and for how much."""

import json
import re
import time
from typing import TYPE_CHECKING, Any

import click

from composer.cli.options import announce, gateway_option
from experts.errors import ComposerError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

PATH = "/admin/v1/stats"
WATCH_S = 2.0
GROUPS = ("expert", "category", "composition")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_BARS = " ▁▂▃▄▅▆▇█"
_WIDTH = 72


def duration(ctx: click.Context, param: click.Parameter, value: str) -> int:
    """`90s`, `30m`, `1h`, `7d` as seconds; `all` as 0."""
    if value == "all":
        return 0
    found = re.fullmatch(r"([1-9]\d{0,5})([smhd])", value)
    if found is None:
        raise click.BadParameter(f"'{value}' is no duration: write 30m, 1h, 7d or all")
    return int(found[1]) * _UNITS[found[2]]


@click.command("stats")
@click.option("--last", callback=duration, metavar="TIME", default="1h", show_default=True,
              help="How far to look back: 30m, 1h, 7d, all.")  # fmt: skip
@click.option("--by", type=click.Choice(GROUPS), help="Only this table; without it, all three.")
@click.option("--watch", is_flag=True, help="Show it anew every two seconds, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="What the API says, as JSON.")
@gateway_option
def command(last: int, by: str | None, watch: bool, as_json: bool, url: str) -> None:
    """Requests, tokens, cost, latency, cache and feedback by expert, category and composition.

    \b
    Example:
      coe stats --last 1h
      coe stats --by expert --watch
      coe stats --last 7d --json
    """
    if as_json:
        _print_json(url, last, watch)
    elif watch:
        _watch(url, last, by)
    else:
        from rich.console import Console

        Console().print(_page(_fetch(url, last), by))


def _fetch(url: str, last: int) -> dict[str, Any]:
    from composer.cli.client import call

    found: dict[str, Any] = call("GET", url, PATH, params={"from": str(-last)}, timeout_s=30)
    return found


def _print_json(url: str, last: int, watch: bool) -> None:
    if not watch:
        announce(json.dumps(_fetch(url, last), indent=2))
        return
    try:
        while True:
            announce(json.dumps(_fetch(url, last)))
            time.sleep(WATCH_S)
    except KeyboardInterrupt:
        return


def _watch(url: str, last: int, by: str | None) -> None:
    """A gateway that does not answer for a while is said so, and asked again."""
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    page: RenderableType = _page(_fetch(url, last), by)
    try:
        with Live(page, console=Console(), auto_refresh=False, vertical_overflow="visible") as live:
            while True:
                time.sleep(WATCH_S)
                shown = page
                try:
                    shown = page = _page(_fetch(url, last), by)
                except ComposerError as error:
                    shown = Group(page, Text(error.message, "red"))
                live.update(shown, refresh=True)
    except KeyboardInterrupt:
        return


def _page(found: dict[str, Any], by: str | None) -> "RenderableType":
    from rich.console import Group
    from rich.text import Text

    tables = [_table(group, found[f"by_{group}"]) for group in GROUPS if by in (None, group)]
    return Group(Text(_summary(found)), Text(_traffic(found)), *tables)


def _summary(found: dict[str, Any]) -> str:
    whole = found["totals"]
    cache, tokens, total = whole["cache"], whole["tokens"], whole["latency_ms"]["total"]
    parts = [
        f"{whole['requests']:,} requests since {_moment(found['from'])}",
        f"{whole['errors']:,} errors, {whole['cancelled']:,} cancelled, "
        f"{whole['fallbacks']:,} fallbacks",
        f"total p50 {_ms(total['p50'])}, p95 {_ms(total['p95'])}",
        f"{tokens['prompt']:,} + {tokens['completion']:,} tokens, ${whole['cost_usd']:,.4f}",
        f"cache hits {_percent(cache['hit_rate'])}, {_ms(cache['saved_ms'])} saved",
    ]
    return "\n".join(parts)


def _traffic(found: dict[str, Any]) -> str:
    """Requests over time, a character for each step or for several."""
    counts = [point["requests"] for point in found["series"]]
    size = -(-len(counts) // _WIDTH) or 1
    sums = [sum(counts[at : at + size]) for at in range(0, len(counts), size)]
    top = max(sums, default=0)
    if not top:
        return ""
    bars = "".join(_BARS[-(-count * (len(_BARS) - 1) // top)] for count in sums)
    minutes = size * found["step_s"] // 60
    return f"{bars}  (up to {top:,} in {minutes} min)"


def _table(group: str, figures: dict[str, Any]) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(title_justify="left")
    table.add_column(group, overflow="fold")
    for column in ("requests", "share", "ok", "fallbacks", "tokens", "cost"):
        table.add_column(column, justify="right")
    for column in ("first p50", "total p50", "p95", "feedback"):
        table.add_column(column, justify="right")
    for name, f in figures.items():
        first, total = f["latency_ms"]["first_token"], f["latency_ms"]["total"]
        table.add_row(
            Text(name),
            f"{f['requests']:,}",
            _percent(f["share"]),
            _percent(f["ok"] / f["requests"] if f["requests"] else None),
            f"{f['fallbacks']:,}",
            f"{f['tokens']['prompt'] + f['tokens']['completion']:,}",
            f"${f['cost_usd']:,.4f}",
            _ms(first["p50"]),
            _ms(total["p50"]),
            _ms(total["p95"]),
            "" if f["feedback"]["mean"] is None
            else f"{f['feedback']['mean']:.2f} ({f['feedback']['n']})",
        )  # fmt: skip
    return table


def _ms(ms: float | None) -> str:
    if ms is None:
        return ""
    return f"{ms:.1f} ms" if ms < 1000 else f"{ms / 1000:,.1f} s"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _moment(at: float) -> str:
    from datetime import datetime

    return datetime.fromtimestamp(at).strftime("%Y-%m-%d %H:%M")
