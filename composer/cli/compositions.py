"""`coe compositions`: versions of compositions, import, promotion and rollback."""

import json
import tarfile
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import click

from composer.cli.options import announce, gateway_option

IMPORT_S = 1200.0
PIECE_BYTES = 1 << 18


@click.group("compositions")
def command() -> None:
    """List, import, promote and roll back versions of compositions.

    \b
    Example:
      coe compositions list
      coe compositions rollback auto
    """


@command.command("list")
@gateway_option
@click.option("--json", "as_json", is_flag=True, help="Print the compositions as JSON.")
def list_all(url: str, as_json: bool) -> None:
    """List the compositions and what is live.

    \b
    Example:
      coe compositions list
    """
    from composer.cli.client import call
    from composer.cli.tables import print_table

    found = call("GET", url, "/admin/v1/compositions")["data"]
    if as_json:
        announce(json.dumps(found, indent=2))
        return
    print_table(
        ("name", "live", "from", "experts", "versions", "before"),
        [
            (
                c["name"],
                c["live"]["version"] if c["live"] else "",
                c["live"]["source"] if c["live"] else "",
                str(len(c["live"]["experts"])) if c["live"] else "",
                str(c["versions"]),
                c["former"][0] if c["former"] else "",
            )
            for c in found
        ],
    )


@command.command("show")
@click.argument("name")
@gateway_option
@click.option("--json", "as_json", is_flag=True, help="Print the composition as JSON.")
def show(name: str, url: str, as_json: bool) -> None:
    """Show the versions of composition NAME, newest first.

    \b
    Example:
      coe compositions show auto
    """
    from composer.cli.client import call, quoted
    from composer.cli.tables import print_table

    found = call("GET", url, f"/admin/v1/compositions/{quoted(name)}")
    if as_json:
        announce(json.dumps(found, indent=2))
        return
    live = found["live"]["version"] if found["live"] else None
    print_table(
        ("version", "", "from", "made", "category accuracy", "routed", "experts"),
        [
            (
                v["version"],
                "live" if v["version"] == live else "",
                v["source"],
                time.strftime("%Y-%m-%d %H:%M", time.localtime(v["created_at"])),
                _figure(v, "category_accuracy"),
                _figure(v, "routed"),
                ", ".join(v["experts"]),
            )
            for v in found["versions"]
        ],
    )


@command.command("import")
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--name", default="auto", show_default=True, help="What gets the version.")
@click.option(
    "--quality-weight",
    type=click.FloatRange(0, 1),
    default=1.0,
    show_default=True,
    help="Weight of quality against price.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the version as JSON.")
@gateway_option
def import_folder(folder: Path, name: str, quality_weight: float, as_json: bool, url: str) -> None:
    """Make the artefact in FOLDER, as `coe train` writes it, a version. It is not live yet.

    \b
    Example:
      coe train --data prompts.jsonl --data outcomes.jsonl --out artefact
      coe compositions import artefact
    """
    from composer.cli.client import call

    with tempfile.TemporaryFile() as archive:
        _pack(folder, archive)
        version = call(
            "POST",
            url,
            "/admin/v1/compositions/import",
            data=_pieces(archive),
            params={"name": name, "quality_weight": f"{quality_weight:g}"},
            timeout_s=IMPORT_S,
        )
    if as_json:
        announce(json.dumps(version, indent=2))
        return
    announce(f"version            {version['version']} of '{name}'")
    announce(f"make it live with  coe compositions promote {name} {version['version']}")


@command.command("promote")
@click.argument("name")
@click.argument("version")
@gateway_option
def promote(name: str, version: str, url: str) -> None:
    """Make VERSION of composition NAME live, in every gateway worker within a second.

    \b
    Example:
      coe compositions promote auto 1f6c20b1a0de
    """
    from composer.cli.client import call, quoted

    path = f"/admin/v1/compositions/{quoted(name)}/promote"
    _tell(call("POST", url, path, json={"version": version}))


@command.command("rollback")
@click.argument("name")
@gateway_option
def rollback(name: str, url: str) -> None:
    """Make the version of composition NAME live again that was live before.

    \b
    Example:
      coe compositions rollback auto
    """
    from composer.cli.client import call, quoted

    _tell(call("POST", url, f"/admin/v1/compositions/{quoted(name)}/rollback"))


@command.command("rm")
@click.argument("name")
@click.argument("version")
@gateway_option
def remove(name: str, version: str, url: str) -> None:
    """Forget VERSION of composition NAME, which must not be live.

    \b
    Example:
      coe compositions rm auto 1f6c20b1a0de
    """
    from composer.cli.client import call, quoted

    call("DELETE", url, f"/admin/v1/compositions/{quoted(name)}/versions/{quoted(version)}")
    announce(f"removed {version} of '{name}'")


def _pack(folder: Path, archive: Any) -> None:
    from experts.errors import ArtefactError
    from routers.artefact import ARRAYS, MANIFEST

    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name in (MANIFEST, ARRAYS):
            if not (folder / name).is_file():
                raise ArtefactError(f"{folder} is no artefact: there is no {name} in it")
            tar.add(folder / name, arcname=name, recursive=False)
    archive.seek(0)


async def _pieces(stream: Any) -> AsyncIterator[bytes]:
    while piece := stream.read(PIECE_BYTES):
        yield piece


def _tell(change: dict[str, Any]) -> None:
    workers = change["workers"]
    announce(f"'{change['name']}' is version {change['live']['version']}")
    if workers["current"] < workers["total"]:
        announce(
            f"{workers['current']} of {workers['total']} gateway workers serve it so far, "
            "the others will"
        )
    if change["former"]:
        announce(f"before it was {change['former'][0]} (`coe compositions rollback`)")


def _figure(version: dict[str, Any], figure: str) -> str:
    value = version["summary"].get(figure)
    return "" if value is None else f"{value:.3f}"
