"""`coe setup`: prepare models and the router."""

from pathlib import Path

import click

from composer.cli.options import announce, config_option, load


@click.command("setup")
@config_option
def command(config_file: Path | None) -> None:
    """Convert the model, export the encoder and train the router, unless that is already done.

    \b
    Example:
      coe setup
    """
    from composer.setup import prepare

    folder = prepare(load(config_file), announce)
    announce(f"ready: {folder}")
