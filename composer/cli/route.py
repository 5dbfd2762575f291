"""`coe route`: where a prompt would go."""

import asyncio
import json
from typing import Any

import click

from composer.cli.options import announce


@click.command("route")
@click.argument("prompt")
@click.option(
    "--url",
    envvar="COMPOSER_URL",
    default="http://127.0.0.1:8080",
    show_default=True,
    help="The gateway.",
)
@click.option("--model", default="auto", show_default=True, help="Composition to route over.")
@click.option("--explain", is_flag=True, help="Show every score and who was ruled out.")
@click.option("--json", "as_json", is_flag=True, help="The decision as JSON.")
def command(prompt: str, url: str, model: str, explain: bool, as_json: bool) -> None:
    """Ask a running gateway which expert would get PROMPT, and why. Nothing is generated.

    \b
    Example:
      coe route "What is 47 + 385?" --explain
    """
    decision = asyncio.run(_ask(prompt, url, model, explain))
    if as_json:
        announce(json.dumps(decision, indent=2))
        return
    announce(f"{decision['expert']}: {decision['reason']}")
    if explain:
        for expert, score in decision["scores"].items():
            announce(f"  {expert:<20} {score['quality']:.3f}")
        for expert, reason in decision["ruled_out"].items():
            announce(f"  {expert:<20} ruled out: {reason}")
        for category, probability in list(decision["probabilities"].items())[:5]:
            announce(f"  category {category:<20} {probability:.3f}")


async def _ask(prompt: str, url: str, model: str, explain: bool) -> dict[str, Any]:
    import aiohttp

    from composer.cli.client import TIMEOUT, post

    body = {"model": model, "prompt": prompt, "composer": {"explain": explain}}
    async with aiohttp.ClientSession(timeout=TIMEOUT) as session:
        decision, _ = await post(session, f"{url.rstrip('/')}/v1/route", body)
    return decision
