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
    """Check file, environment and experts; exit 1 with every problem found.

    \b
    Example:
      coe config check --config composer.yaml
    """
    import os

    from composer.config import find_missing, resolve_experts
    from experts.errors import ConfigError

    config = load(config_file)
    experts = resolve_experts(config)
    if missing := find_missing(config, os.environ):
        raise ConfigError("\n".join(missing))
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
