"""`coe chat`: talk with a running gateway, and see who answers and why."""

import re
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from composer.cli.options import announce, gateway_option

if TYPE_CHECKING:
    import asyncio

    from composer.cli.conversation import Conversation

HELP = "/new begins anew, /model NAME asks another, /quit or Ctrl-D ends, Ctrl-C stops an answer"

_COMMAND = re.compile(r"/([a-z]+)(?:\s+(\S+))?\s*")


@click.command("chat")
@click.option("--model", default="auto", show_default=True, help="A composition or an expert.")
@click.option("--session", help="Go on with this session; without it a new one begins.")
@click.option("--system", help="A system prompt for the whole conversation.")
@click.option("--no-sticky", is_flag=True, help="Choose the expert anew at each turn.")
@click.option(
    "--switch-gain",
    type=click.FloatRange(0, 1),
    default=0.25,
    show_default=True,
    help="How much better another expert must be expected to be to take over; 1: never.",
)
@gateway_option
def command(
    model: str,
    session: str | None,
    system: str | None,
    no_sticky: bool,
    switch_gain: float,
    url: str,
) -> None:
    """Talk with a running gateway. Each turn shows the expert that answers and why.

    The turns of a conversation stay with one expert until another is expected to be clearly better;
    with --no-sticky each turn goes to the best. Lines from a pipe are one turn each.

    \b
    Example:
      coe chat
      echo "What is 47 + 385?" | coe chat --model maths
    """
    import asyncio

    from composer.cli.conversation import Conversation

    talk = Conversation(
        url,
        model,
        system=system,
        session=session,
        sticky=not no_sticky,
        switch_gain=switch_gain,
        show=_show,
        tell=lambda line: click.secho(line, dim=True),
    )
    interactive = sys.stdin.isatty()
    failed = False
    with asyncio.Runner() as runner:
        runner.run(talk.open())
        try:
            if interactive:
                click.secho(f"{talk.model} at {url}. {HELP}", dim=True)
            for line in _typed() if interactive else _piped():
                if found := _COMMAND.fullmatch(line):
                    if not _obey(talk, found[1], found[2]):
                        break
                elif line.strip():
                    failed = not _turn(runner, talk, line) or failed
        finally:
            runner.run(talk.close())
    if failed and not interactive:
        sys.exit(1)


def _turn(runner: "asyncio.Runner", talk: "Conversation", line: str) -> bool:
    """One turn to its end, its error, or Ctrl-C, which stops the answer and no more."""
    from composer.cli.client import GatewayError

    try:
        runner.run(talk.say(line))
        announce("")
    except GatewayError as error:
        announce("")
        click.secho(f"error: {error.message}", fg="red", err=True)
        return False
    except KeyboardInterrupt:
        click.secho(" (stopped)", dim=True)
    return True


def _obey(talk: "Conversation", name: str, argument: str | None) -> bool:
    """Do what a line with a slash says; False ends the conversation."""
    if name == "quit":
        return False
    if name == "new":
        talk.start_anew()
        click.secho("a new conversation", dim=True)
    elif name == "model" and argument:
        talk.model = argument
        click.secho(f"asking {argument} from now on", dim=True)
    else:
        click.secho(HELP, dim=True)
    return True


def _typed() -> Iterator[str]:
    """Lines that a person types, with their history at the arrow keys, until Ctrl-D."""
    import readline

    readline.set_auto_history(True)
    while True:
        try:
            yield input("> ")
        except EOFError:
            announce("")
            return
        except KeyboardInterrupt:
            click.secho("\n(Ctrl-D ends)", dim=True)


def _piped() -> Iterator[str]:
    for line in sys.stdin:
        yield line.rstrip("\n")


def _show(piece: str) -> None:
    click.echo(piece, nl=False)
