"""`coe train-job`: one training, for the supervisor that started it."""

import sys
from pathlib import Path

import click


@click.command("train-job", hidden=True)
@click.argument("folder", type=click.Path(path_type=Path))
def command(folder: Path) -> None:
    """Do the training that FOLDER describes."""
    from composer.trainings.job import run_job

    sys.exit(0 if run_job(folder) else 1)
