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
_WIDTH = 61


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

    `failed` are attempts that failed and moved on to the next expert; `first` is the time to the
    first token of streams, p50 and p95 that of whole answers; `score` is the mean of feedback.

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

    console = Console()
    page: RenderableType = _page(_fetch(url, last), by)
    try:
        with Live(page, console=console, auto_refresh=False, screen=console.is_terminal) as live:
            while True:
                time.sleep(WATCH_S)
                shown = page
                try:
                    shown = page = _page(_fetch(url, last), by)
                except ComposerError as error:
                    shown = Group(page, Text(error.message, "red"))
                live.update(shown, refresh=True)
    except KeyboardInterrupt:
        console.print(page)


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
        f"{whole['fallbacks']:,} failed attempts",
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
    return f"{bars} {top:,} in {minutes} min"


def _table(group: str, figures: dict[str, Any]) -> "Table":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(group, no_wrap=True, overflow="ellipsis", min_width=10)
    cells = {name: _cells(f) for name, f in figures.items()}
    shown = [column for column in _COLUMNS if any(row[column] for row in cells.values())]
    for column in shown:
        table.add_column(column, justify="right", no_wrap=True)
    for name, row in cells.items():
        table.add_row(Text(name), *(row[column] for column in shown))
    return table


_COLUMNS = ("requests", "share", "ok", "failed", "tokens", "cost", "first", "p50", "p95", "score")


def _cells(f: dict[str, Any]) -> dict[str, str]:
    """What stands in each column; one that is empty for all is not shown."""
    latency, score = f["latency_ms"], f["feedback"]["mean"]
    cells = (
        f"{f['requests']:,}",
        _percent(f["share"]),
        _percent(f["ok"] / f["requests"]) if f["requests"] else "",
        f"{f['fallbacks']:,}" if f["fallbacks"] else "",
        _short(f["tokens"]["prompt"] + f["tokens"]["completion"]),
        f"${f['cost_usd']:,.4f}" if f["cost_usd"] else "",
        _ms(latency["first_token"]["p50"]),
        _ms(latency["total"]["p50"]),
        _ms(latency["total"]["p95"]),
        "" if score is None else f"{score:.2f}",
    )
    return dict(zip(_COLUMNS, cells, strict=True))


def _short(number: float) -> str:
    for unit in ("", "k", "M"):
        if number < 1000:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:,.3g}G"


def _ms(ms: float | None) -> str:
    if ms is None:
        return ""
    if ms < 1000:
        return f"{ms:.3g}ms" if ms < 100 else f"{ms:.0f}ms"
    return f"{ms / 1000:,.1f}s"


def _percent(share: float | None) -> str:
    if share is None:
        return "-"
    return f"{share:.0%}" if share in (0, 1) or 0.1 < share < 0.9 else f"{share:.1%}"


def _moment(at: float) -> str:
    from datetime import datetime

    return datetime.fromtimestamp(at).strftime("%Y-%m-%d %H:%M")
