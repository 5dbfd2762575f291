"""`coe train`: a router from labelled task data."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from composer.cli.options import announce, config_option, load

if TYPE_CHECKING:
    from composer.train import Trained
    from routers.training import Method


@click.command("train")
@click.option(
    "--data",
    "files",
    required=True,
    multiple=True,
    type=click.Path(path_type=Path),
    help="JSONL or parquet of prompts, categories, outcomes, preferences; may be given many times.",
)
@click.option(
    "--experts",
    "experts_file",
    type=click.Path(path_type=Path),
    help="YAML or JSON list of the experts; without it, all that the data has outcomes of.",
)
@click.option(
    "--unknown",
    multiple=True,
    type=click.Path(path_type=Path),
    help="JSONL of prompts that belong to no category: says how many the router is unsure of.",
)
@click.option(
    "--base",
    "base_folder",
    type=click.Path(path_type=Path),
    help="Artefact whose scores of the experts are kept when the data has categories alone.",
)
@click.option(
    "--method",
    type=click.Choice(["auto", "two-step"]),
    default="auto",
    show_default=True,
    help="auto: predictors of each prompt on top of the categories, as far as the data bear it "
    "out; two-step: the categories alone.",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Artefact folder.")
@click.option("--name", default="auto", show_default=True, help="Name of the composition.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@config_option
def command(
    files: tuple[Path, ...],
    experts_file: Path | None,
    unknown: tuple[Path, ...],
    method: "Method",
    base_folder: Path | None,
    out: Path,
    name: str,
    as_json: bool,
    config_file: Path | None,
) -> None:
    """Train a router; no server is needed. Prompts are judged out-of-fold.

    \b
    Example:
      coe train --data prompts.jsonl --data outcomes.jsonl --out artefact
    """
    from composer.expert_facts import read_expert_facts
    from composer.train import count_unsure, train_artefact
    from experts.registry import index_experts
    from routers.artefact import load_artefact
    from routers.encoders import load_encoder

    config = load(config_file)
    specs = index_experts(read_expert_facts(experts_file)) if experts_file is not None else {}

    def progress(line: str) -> None:
        click.echo(line, err=as_json)

    encoder = load_encoder(config.encoder.backend, config.cache_dir, progress=progress)
    base = load_artefact(base_folder) if base_folder is not None else None
    trained = train_artefact(files, specs, encoder, out, name, progress, method=method, base=base)
    unsure = count_unsure(trained.router, encoder, unknown) if unknown else None
    if as_json:
        announce(
            json.dumps(
                {
                    "artefact": str(trained.folder),
                    "version": trained.version,
                    "notes": trained.notes,
                    "unknown_unsure": unsure,
                    **trained.figures,
                },
                indent=2,
            )
        )
    else:
        announce(_summary(trained))
        if unsure is not None:
            announce(f"unknown prompts    unsure of {unsure[0]} of {unsure[1]}")


def _summary(trained: "Trained") -> str:
    from composer.cli.report import report_lines

    lines = [f"note: {note}" for note in trained.notes]
    lines += report_lines(trained.figures)
    lines.append(f"version            {trained.version} in {trained.folder}")
    return "\n".join(lines)
