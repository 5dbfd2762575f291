"""`coe route`: where a prompt would go."""

import json

import click

from composer.cli.options import announce, gateway_option


@click.command("route")
@click.argument("prompt")
@gateway_option
@click.option("--model", default="auto", show_default=True, help="Composition to route over.")
@click.option("--explain", is_flag=True, help="Show every score and who was ruled out.")
@click.option("--json", "as_json", is_flag=True, help="The decision as JSON.")
def command(prompt: str, url: str, model: str, explain: bool, as_json: bool) -> None:
    """Ask a running gateway which expert would get PROMPT, and why. Nothing is generated.

    \b
    Example:
      coe route "What is 47 + 385?" --explain
    """
    from composer.cli.client import call

    body = {"model": model, "prompt": prompt, "composer": {"explain": explain}}
    decision = call("POST", url, "/v1/route", json=body)
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
