"""`coe datasets`: labelled task data that is kept for trainings."""

import json
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import click

from composer.cli.options import announce, gateway_option

UPLOAD_S = 1200.0
PIECE_BYTES = 1 << 18


@click.group("datasets")
def command() -> None:
    """Upload, list and remove labelled task data.

    \b
    Example:
      coe datasets upload outcomes.jsonl
      coe datasets list
    """


@command.command("upload")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@gateway_option
@click.option("--name", help="What to call it; without it, the file's name.")
@click.option("--source", default="", help="Where it comes from.")
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON.")
def upload(file: Path, url: str, name: str | None, source: str, as_json: bool) -> None:
    """Upload FILE, JSONL or parquet of prompts with categories, outcomes or preferences.

    \b
    Example:
      coe datasets upload outcomes.jsonl --source "graded by hand, November"
    """
    record = send_file(url, file, name or file.name, source, show=not as_json)
    if as_json:
        announce(json.dumps(record, indent=2))
        return
    _tell(record)


@command.command("list")
@gateway_option
@click.option("--json", "as_json", is_flag=True, help="Print the records as JSON.")
def list_all(url: str, as_json: bool) -> None:
    """List the datasets, newest first.

    \b
    Example:
      coe datasets list
    """
    from composer.cli.client import call
    from composer.cli.tables import print_table

    records = call("GET", url, "/admin/v1/datasets")["data"]
    if as_json:
        announce(json.dumps(records, indent=2))
        return
    print_table(
        ("id", "name", "prompts", "outcomes", "preferences", "uploaded"),
        [
            (
                r["id"],
                r["name"],
                str(r["n_prompts"]),
                str(r["n_outcomes"]),
                str(r["n_preferences"]),
                _when(r["uploaded_at"]),
            )
            for r in records
        ],
    )


@command.command("show")
@click.argument("dataset")
@gateway_option
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON.")
def show(dataset: str, url: str, as_json: bool) -> None:
    """Show what is in DATASET and where it came from.

    \b
    Example:
      coe datasets show configured
    """
    from composer.cli.client import call, quoted

    record = call("GET", url, f"/admin/v1/datasets/{quoted(dataset)}")
    if as_json:
        announce(json.dumps(record, indent=2))
        return
    _tell(record)


@command.command("rm")
@click.argument("dataset")
@gateway_option
def remove(dataset: str, url: str) -> None:
    """Remove DATASET. Refused while a training needs it.

    \b
    Example:
      coe datasets rm ds-1f6c20b1a0de
    """
    from composer.cli.client import call, quoted

    call("DELETE", url, f"/admin/v1/datasets/{quoted(dataset)}")
    announce(f"removed {dataset}")


def send_file(url: str, file: Path, name: str, source: str, *, show: bool) -> dict[str, Any]:
    """Upload a file; returns the dataset's record.

    Raises:
        GatewayError: with the gateway's own words.
    """
    from composer.cli.client import call

    record: dict[str, Any] = call(
        "POST",
        url,
        "/admin/v1/datasets",
        data=_pieces(file, show=show),
        params={"name": name, "source": source},
        timeout_s=UPLOAD_S,
    )
    return record


async def _pieces(file: Path, *, show: bool) -> AsyncIterator[bytes]:
    """The file piece by piece, with a bar for a person."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    console = Console(stderr=True)
    columns = (TextColumn("uploading"), BarColumn(), DownloadColumn())
    with (
        file.open("rb") as stream,
        Progress(
            *columns, console=console, transient=True, disable=not (show and console.is_terminal)
        ) as bar,
    ):
        task = bar.add_task("", total=os.fstat(stream.fileno()).st_size)
        while piece := stream.read(PIECE_BYTES):
            yield piece
            bar.advance(task, len(piece))


def _tell(record: dict[str, Any]) -> None:
    announce(f"dataset      {record['id']} ({record['name']}, {record['format']})")
    announce(f"prompts      {record['n_prompts']}")
    announce(f"outcomes     {record['n_outcomes']}")
    announce(f"preferences  {record['n_preferences']}")
    for category, n in record["categories"].items():
        announce(f"  category {category:<24} {n} prompts")
    for expert, n in record["experts"].items():
        mean = record["means"].get(expert, {}).get("score")
        tail = f", mean score {mean:.3f}" if mean is not None else ""
        announce(f"  expert   {expert:<24} {n} outcomes{tail}")
    if record["n_bad"]:
        announce(f"bad lines    {record['n_bad']}, which are left out:")
        for line in record["bad_lines"]:
            announce(f"  {line}")


def _when(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at))
