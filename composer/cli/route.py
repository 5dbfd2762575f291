"""`coe route`: where a prompt would go."""

import json
from typing import Any

import click

from composer.cli.options import announce, gateway_option

MAX_CATEGORIES = 6
BAR_WIDTH = 30


@click.command("route")
@click.argument("prompt")
@gateway_option
@click.option("--model", default="auto", show_default=True, help="Composition to route over.")
@click.option("--session", help="Route it as the next turn of this session.")
@click.option("--explain", is_flag=True, help="Show every score and who was ruled out.")
@click.option("--json", "as_json", is_flag=True, help="The decision as JSON.")
def command(
    prompt: str, url: str, model: str, session: str | None, explain: bool, as_json: bool
) -> None:
    """Ask a running gateway which expert would get PROMPT, and why. Nothing is generated.

    \b
    Example:
      coe route "What is 47 + 385?" --explain
    """
    from composer.cli.client import call

    options: dict[str, Any] = {"explain": explain}
    if session is not None:
        options["session"] = session
    body = {"model": model, "prompt": prompt, "composer": options}
    decision = call("POST", url, "/v1/route", json=body)
    if as_json:
        announce(json.dumps(decision, indent=2))
        return
    announce(f"{decision['expert']}: {decision['reason']}")
    if explain:
        _explain(decision, session)


def _explain(decision: dict[str, Any], session: str | None) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    facts = Table.grid(padding=(0, 2))
    for name, value in _facts(decision, session):
        facts.add_row(Text(name, style="dim"), Text(value))
    experts = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("expert", "expected", "utility", ""):
        experts.add_column(name, justify="right" if name in ("expected", "utility") else "left")
    for expert, score in decision["scores"].items():
        first = expert == decision["expert"]
        note = "first" if first else ""
        experts.add_row(
            Text(expert, style="bold" if first else ""),
            f"{score['quality']:.3f}",
            f"{score['utility']:.3f}",
            note,
        )
    for expert, reason in decision["ruled_out"].items():
        experts.add_row(Text(expert, style="dim"), "", "", Text(f"ruled out: {reason}"))
    categories = Table(box=None, pad_edge=False, header_style="dim")
    categories.add_column("category")
    categories.add_column("probability", justify="right")
    for category, probability in list(decision["probabilities"].items())[:MAX_CATEGORIES]:
        bar = "█" * round(probability * BAR_WIDTH)
        categories.add_row(Text(category), f"{probability:.3f}", bar)
    for part in (facts, experts, categories):
        console.print()
        console.print(part)


def _facts(decision: dict[str, Any], session: str | None) -> list[tuple[str, str]]:
    """What is worth knowing besides the scores, by name."""
    facts = []
    if decision["version"]:
        facts.append(("composition", f"{decision['composition']} {decision['version']}"))
    unsure = ", unsure: over all prompts" if decision["general"] else ""
    facts.append(("category", f"{decision['category']}{unsure}"))
    facts.append(("uncertainty", f"{decision['uncertainty']:.2f}"))
    if session is not None:
        kept = f"stays with {decision['expert']}" if decision["kept"] else "changes nothing here"
        facts.append(("session", kept))
    took = f"{decision['route_ms']:.2f} ms"
    if decision["cache"] == "hit":
        facts.append(("cache", f"hit: {took}, {decision['saved_ms']:.2f} ms saved"))
    else:
        waited = f", {decision['queue_ms']:.2f} ms of them in the queue"
        facts.append(("cache", f"{decision['cache']}: {took}{waited}"))
    facts.append(("encoder", decision["encoder"]))
    return facts
