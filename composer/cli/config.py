"""`coe config`: check or show the configuration."""

from pathlib import Path

import click

from composer.cli.options import announce, config_option, load


@click.group("config")
def command() -> None:
    """Check or show the configuration."""


@command.command("check")
@config_option
def check(config_file: Path | None) -> None:
    """Check file, environment and experts; exit 1 with file and line of every problem.

    \b
    Example:
      coe config check --config composer.yaml
    """
    from composer.config import resolve_experts, training_files
    from experts.errors import ConfigError

    config = load(config_file)
    experts = resolve_experts(config)
    missing = [f for f in training_files(config) if not f.is_file()]
    if missing and config.composition.artefact is None:
        raise ConfigError(f"composition.data: there is no file {missing[0]}")
    announce(f"good: {len(experts)} experts on {len(config.engines)} engines")


@command.command("show")
@config_option
@click.option("--json", "as_json", is_flag=True, help="JSON instead of YAML.")
def show(config_file: Path | None, as_json: bool) -> None:
    """Show the configuration in force, defaults included; secrets are masked.

    \b
    Example:
      coe config show --json
    """
    import json

    import yaml

    values = load(config_file).model_dump(mode="json")
    announce(
        json.dumps(values, indent=2) if as_json else yaml.safe_dump(values, sort_keys=False).strip()
    )
