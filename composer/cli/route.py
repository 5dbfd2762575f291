"""`coe route`: where a prompt would go."""

import json
from pathlib import Path
from typing import Any

import click

from composer.cli.options import announce, config_option, gateway_option, load

MAX_CATEGORIES = 6
BAR_WIDTH = 30


@click.command("route")
@click.argument("prompt", required=False)
@gateway_option
@click.option(
    "--artifact",
    type=click.Path(path_type=Path),
    help="Route with this artefact folder instead of a gateway; needs --in and --out.",
)
@click.option(
    "--in",
    "in_file",
    type=click.Path(path_type=Path),
    help="JSONL of prompts: id, prompt, and a policy where one is wanted.",
)
@click.option(
    "--out",
    "out_file",
    type=click.Path(path_type=Path),
    help="JSONL of decisions to write, in the order of the prompts.",
)
@click.option("--model", default="auto", show_default=True, help="Composition to route over.")
@click.option("--session", help="Route it as the next turn of this session.")
@click.option("--explain", is_flag=True, help="Show every score and who was ruled out.")
@click.option("--json", "as_json", is_flag=True, help="The decision as JSON.")
@config_option
def command(
    prompt: str | None,
    url: str,
    artifact: Path | None,
    in_file: Path | None,
    out_file: Path | None,
    model: str,
    session: str | None,
    explain: bool,
    as_json: bool,
    config_file: Path | None,
) -> None:
    """Ask a running gateway which expert would get PROMPT, and why; or route a file of prompts
    with an artefact, no server running. Nothing is generated.

    \b
    Example:
      coe route "What is 47 + 385?" --explain
      coe route --artifact artefact --in prompts.jsonl --out decisions.jsonl
    """
    offline = [artifact, in_file, out_file]
    if any(part is not None for part in offline):
        if artifact is None or in_file is None or out_file is None or prompt is not None:
            raise click.UsageError("--artifact, --in and --out belong together, without PROMPT")
        _route_file(artifact, in_file, out_file, config_file)
        return
    if prompt is None:
        raise click.UsageError("give a PROMPT, or --artifact with --in and --out")
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


def _route_file(artifact: Path, in_file: Path, out_file: Path, config_file: Path | None) -> None:
    from composer.offline import read_lines, route_lines
    from experts.errors import DataError
    from routers.artefact import load_artefact
    from routers.encoders import load_encoder

    config = load(config_file)
    artefact = load_artefact(artifact)
    encoder = load_encoder(
        config.encoder.backend,
        config.cache_dir,
        progress=lambda line: click.echo(line, err=True),
    )
    artefact.require_encoder(encoder.id, encoder.dimension)
    n = 0
    staging = out_file.with_name(f".{out_file.name}.part")
    try:
        with staging.open("w") as stream:
            for decision in route_lines(artefact, encoder, read_lines(in_file)):
                stream.write(json.dumps(decision, ensure_ascii=False) + "\n")
                n += 1
        staging.replace(out_file)
    except OSError as error:
        raise DataError(f"can't write {out_file}: {error.strerror}") from error
    finally:
        staging.unlink(missing_ok=True)
    announce(f"{n} prompts routed to {out_file}")


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
    unsure = ", unsure" if decision["general"] else ""
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
