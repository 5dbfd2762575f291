"""`coe bench`: the gateway against a bare relay."""

import sys

import click


@click.command("bench", context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def command(arguments: tuple[str, ...]) -> None:
    """Measure the gateway's throughput and added latency; arguments go to `eval.bench`.

    \b
    Example:
      coe bench --json bench.json
    """
    from eval.bench import main

    sys.exit(main(list(arguments)))
