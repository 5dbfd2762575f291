"""`coe state`: the whole state as one file."""

import json
from pathlib import Path
from typing import Any

import click

from composer.cli.options import announce, gateway_option


@click.group("state")
def command() -> None:
    """Export the whole state of a running Composer to a file, or import one.

    \b
    Example:
      coe state export composer.tar.gz
      coe state import composer.tar.gz
    """


@command.command("export")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@gateway_option
@click.option("--json", "as_json", is_flag=True, help="The archive's manifest as JSON.")
def export_command(file: Path, url: str, as_json: bool) -> None:
    """Write everything that Composer knows to FILE, which only its owner may read.

    Experts, compositions with all versions and artefacts, keys (hashed), datasets, trainings and
    statistics. An existing FILE is replaced, once the new one is whole.

    \b
    Example:
      coe state export backups/composer.tar.gz
    """
    from composer.backup import inspect_archive
    from composer.cli.transfer import download

    manifest = download(url, "/admin/v1/export", file, check=inspect_archive, show=not as_json)
    if as_json:
        announce(json.dumps(manifest.model_dump(exclude={"members"}), indent=2))
        return
    announce(f"{file}: {file.stat().st_size} bytes, {_counted(manifest.counts)}")
    for text in manifest.left_out:
        announce(f"  not exported: {text}")


@command.command("import")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@gateway_option
@click.option("--replace", is_flag=True, help="The archive's records replace those of the same id.")
@click.option("--json", "as_json", is_flag=True, help="What was done, as JSON.")
def import_command(file: Path, url: str, replace: bool, as_json: bool) -> None:
    """Take over what is in FILE: all of it, or nothing if it contradicts what is there.

    \b
    Example:
      coe state import backups/composer.tar.gz
    """
    from composer.cli.transfer import upload

    query = "?replace=true" if replace else ""
    report: dict[str, Any] = upload(url, f"/admin/v1/import{query}", file, show=not as_json)
    if as_json:
        announce(json.dumps(report, indent=2))
        return
    for fate in ("added", "replaced", "unchanged"):
        if report[fate]:
            announce(f"{fate}: {_counted(report[fate])}")
    for note in report["notes"]:
        announce(f"note: {note}")


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{n} {table}" for table, n in counts.items() if n) or "nothing"
