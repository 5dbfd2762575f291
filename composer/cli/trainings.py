"""`coe trainings`: trainings on uploaded data, as jobs of a running Composer."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import click

from composer.cli.options import announce, gateway_option

POLL_S = 0.5
ENDED = ("succeeded", "failed", "cancelled")


@click.group("trainings")
def command() -> None:
    """Train on uploaded data: start, follow, cancel.

    \b
    Example:
      coe trainings start --dataset configured --dataset ds-1f6c20b1a0de --wait
    """


@command.command("start")
@click.option(
    "--dataset",
    "datasets",
    multiple=True,
    help="Id of a dataset; may be given many times. `configured`: the configuration's data.",
)
@click.option(
    "--upload",
    "files",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A file to upload as a dataset first; may be given many times.",
)
@click.option("--composition", default="auto", show_default=True, help="What gets a new version.")
@click.option(
    "--expert",
    "experts",
    multiple=True,
    help="An expert to route between; without it, all registered ones that have outcomes.",
)
@click.option(
    "--quality-weight",
    type=click.FloatRange(0, 1),
    default=1.0,
    show_default=True,
    help="Weight of quality against price.",
)
@click.option("--promote", is_flag=True, help="Make the version live when it is done.")
@click.option("--wait", is_flag=True, help="Follow the training to its end.")
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON.")
@gateway_option
def start(
    datasets: tuple[str, ...],
    files: tuple[Path, ...],
    composition: str,
    experts: tuple[str, ...],
    quality_weight: float,
    promote: bool,
    wait: bool,
    as_json: bool,
    url: str,
) -> None:
    """Queue a training on uploaded datasets, which are read as one.

    \b
    Example:
      coe trainings start --dataset configured --dataset ds-1f6c20b1a0de --promote --wait
      coe trainings start --dataset configured --upload outcomes.jsonl
    """
    from composer.cli.client import call
    from composer.cli.datasets import send_file

    if not datasets and not files:
        raise click.UsageError("give --dataset or --upload")
    uploaded = [send_file(url, f, f.name, "", show=not as_json)["id"] for f in files]
    record = call(
        "POST",
        url,
        "/admin/v1/trainings",
        json={
            "composition": composition,
            "datasets": [*datasets, *uploaded],
            "experts": list(experts),
            "quality_weight": quality_weight,
            "promote": promote,
        },
    )
    if wait:
        record = _follow(url, record, show=not as_json)
    if as_json:
        announce(json.dumps(record, indent=2))
    else:
        _tell(record)
    if record["state"] in ("failed", "cancelled"):
        sys.exit(1)


@command.command("list")
@gateway_option
@click.option("--json", "as_json", is_flag=True, help="Print the records as JSON.")
def list_all(url: str, as_json: bool) -> None:
    """List the trainings, newest first.

    \b
    Example:
      coe trainings list
    """
    from composer.cli.client import call
    from composer.cli.tables import print_table

    records = call("GET", url, "/admin/v1/trainings")["data"]
    if as_json:
        announce(json.dumps(records, indent=2))
        return
    print_table(
        ("id", "composition", "state", "done", "version", "routed", "best single", "asked for"),
        [
            (
                r["id"],
                r["composition"],
                r["state"],
                f"{r['progress']['share']:.0%}",
                r["version"] or "",
                _figure(r["report"].get("routed")),
                _figure(r["report"].get("best_single")),
                time.strftime("%Y-%m-%d %H:%M", time.localtime(r["created_at"])),
            )
            for r in records
        ],
    )


@command.command("show")
@click.argument("training")
@gateway_option
@click.option("--wait", is_flag=True, help="Follow it to its end.")
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON.")
def show(training: str, url: str, wait: bool, as_json: bool) -> None:
    """Show the progress of TRAINING, and at its end the report or why it failed.

    \b
    Example:
      coe trainings show tr-5d7c1b0f9a3e --wait
    """
    from composer.cli.client import call, quoted

    record = call("GET", url, f"/admin/v1/trainings/{quoted(training)}")
    if wait:
        record = _follow(url, record, show=not as_json)
    if as_json:
        announce(json.dumps(record, indent=2))
    else:
        _tell(record)


@command.command("cancel")
@click.argument("training")
@gateway_option
def cancel(training: str, url: str) -> None:
    """Call TRAINING off. One that runs is ended within seconds.

    \b
    Example:
      coe trainings cancel tr-5d7c1b0f9a3e
    """
    from composer.cli.client import call, quoted

    record = call("POST", url, f"/admin/v1/trainings/{quoted(training)}/cancel")
    announce(f"{training}: {'cancelled' if record['state'] == 'cancelled' else 'being ended'}")


def _follow(url: str, record: dict[str, Any], *, show: bool) -> dict[str, Any]:
    """Wait until a training has ended, with its progress on standard error."""
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    from composer.cli.client import call, quoted

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    said = ""
    with Progress(*columns, console=console, transient=True, disable=not show) as bar:
        task = bar.add_task("waiting", total=1.0)
        while record["state"] not in ENDED:
            lines = record["progress"]["lines"]
            doing = lines[-1] if lines else record["state"]
            bar.update(task, completed=record["progress"]["share"], description=escape(doing))
            if show and not console.is_terminal and doing != said:
                said = doing
                click.echo(doing, err=True)
            time.sleep(POLL_S)
            record = call("GET", url, f"/admin/v1/trainings/{quoted(record['id'])}")
    return record


def _tell(record: dict[str, Any]) -> None:
    announce(f"training           {record['id']} of '{record['composition']}': {record['state']}")
    if record["error"]:
        announce(f"because            {record['error']}")
    for note in record["notes"]:
        announce(f"note: {note}")
    if record["state"] == "running":
        lines = record["progress"]["lines"]
        announce(
            f"progress           {record['progress']['share']:.0%} {lines[-1] if lines else ''}"
        )
    if record["report"]:
        from composer.cli.report import report_lines

        for line in report_lines(record["report"]):
            announce(line)
    if record["version"]:
        announce(f"version            {record['version']}")
        if not record["promote"]:
            announce(
                f"make it live with  coe compositions promote {record['composition']} "
                f"{record['version']}"
            )


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
