"""`coe onboard`: an expert or a category joins a trained router."""

import json
from pathlib import Path

import click

from composer.cli.options import announce, config_option, load


@click.command("onboard")
@click.option("--artifact", required=True, type=click.Path(path_type=Path), help="Artefact folder.")
@click.option(
    "--expert",
    "expert_file",
    type=click.Path(path_type=Path),
    help="YAML or JSON of the new expert, or a list of several.",
)
@click.option(
    "--data",
    "files",
    multiple=True,
    type=click.Path(path_type=Path),
    help="JSONL of graded outcomes of the new expert, or of prompts of new categories.",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="New artefact folder.")
@click.option("--json", "as_json", is_flag=True, help="Print what joined as JSON.")
@config_option
def command(
    artifact: Path,
    expert_file: Path | None,
    files: tuple[Path, ...],
    out: Path,
    as_json: bool,
    config_file: Path | None,
) -> None:
    """Let a new expert or category join an artefact, from no or few graded prompts.

    \b
    Example:
      coe onboard --artifact artefact --expert new.yaml --data graded.jsonl --out artefact-2
    """
    from composer.expert_facts import read_expert_facts
    from composer.onboarding import onboard
    from routers.artefact import load_artefact
    from routers.encoders import load_encoder

    config = load(config_file)

    def progress(line: str) -> None:
        click.echo(line, err=True)

    artefact = load_artefact(artifact)
    specs = read_expert_facts(expert_file) if expert_file is not None else ()
    encoder = load_encoder(config.encoder.backend, config.cache_dir, progress=progress)
    found = onboard(artefact, specs, files, encoder, out, progress)
    if as_json:
        document = {
            "artefact": str(found.folder),
            "version": found.version,
            "experts": [{"id": n.id, "outcomes": n.n, "error": n.error} for n in found.newcomers],
            "categories": list(found.categories),
            "notes": list(found.notes),
        }
        announce(json.dumps(document, indent=2))
        return
    for note in found.notes:
        announce(f"note: {note}")
    for newcomer in found.newcomers:
        announce(
            f"'{newcomer.id}' joined with {newcomer.n} outcomes; "
            f"standard error of its score {newcomer.error:.3f}"
        )
    for category in found.categories:
        announce(f"category '{category}' joined")
    announce(f"version {found.version} in {found.folder}")
