"""`coe dataset-check`: reads labelled task data for a gateway and prints what is in it."""

import os
from pathlib import Path

import click

from experts.errors import ComposerError

NICENESS = 10


@click.command("dataset-check", hidden=True)
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
def command(files: tuple[Path, ...]) -> None:
    """Print the summary of FILES as JSON, or why there is none."""
    from composer.datasets import CheckReport
    from routers.data_summary import summarise

    os.nice(NICENESS)
    try:
        report = CheckReport(summary=summarise(files))
    except ComposerError as error:
        report = CheckReport(error=error.message)
    click.echo(report.model_dump_json())
