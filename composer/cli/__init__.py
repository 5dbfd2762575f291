"""The command line `coe`. Commands are imported when they are called, so that help is instant."""

import importlib
from typing import Any

import click

from experts.errors import ComposerError

# name -> (module, help in the list of commands)
COMMANDS: dict[str, tuple[str, str]] = {
    "up": ("composer.cli.up", "Run everything on this machine."),
    "demo": ("composer.cli.demo", "Run everything and send one prompt per category."),
    "serve": ("composer.cli.serve", "Run a gateway alone, on a Redis that is there."),
    "setup": ("composer.cli.setup", "Prepare models and the router without starting anything."),
    "experts": ("composer.cli.experts", "Register, list, drain and remove experts."),
    "train": ("composer.cli.train", "Train a router from labelled task data."),
    "mixer": ("composer.cli.mixer", "Train and show mixers of LoRA adapters."),
    "chat": ("composer.cli.chat", "Talk with a running gateway."),
    "grade": ("composer.cli.grade", "Grade an expert by checking its answers."),
    "datasets": ("composer.cli.datasets", "Upload, list and remove labelled task data."),
    "trainings": ("composer.cli.trainings", "Train on uploaded data: start, follow, cancel."),
    "compositions": ("composer.cli.compositions", "List, import, promote and roll back versions."),
    "eval": ("composer.cli.eval", "Measure routing against baselines."),
    "onboard": ("composer.cli.onboard", "Let an expert or a category join a router."),
    "plan": ("composer.cli.plan", "Which experts to hold under a budget."),
    "route": ("composer.cli.route", "Ask a running gateway where a prompt would go."),
    "stats": ("composer.cli.stats", "Show requests, latency, cost and feedback."),
    "decisions": ("composer.cli.decisions", "List, inspect and export recent decisions."),
    "keys": ("composer.cli.keys", "Make, list and remove API keys."),
    "state": ("composer.cli.state", "Export or import the whole state."),
    "config": ("composer.cli.config", "Check or show the configuration."),
    "bench": ("composer.cli.bench", "Measure the gateway against a bare relay."),
    "simulate": ("composer.cli.simulate", "Simulate experts in memory, under load."),
}

# Commands that our own processes are started by.
INTERNAL: dict[str, str] = {
    "dataset-check": "composer.cli.dataset_check",
    "train-job": "composer.cli.train_job",
}


class LazyGroup(click.Group):
    """A group that knows its commands' names and help without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = COMMANDS[cmd_name][0] if cmd_name in COMMANDS else INTERNAL.get(cmd_name)
        if module is None:
            return None
        command = importlib.import_module(module).command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ComposerError as error:
            raise click.ClickException(error.message) from error


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="expert-composer", prog_name="coe")
def main() -> None:
    """Composer: one endpoint that sends each prompt to the expert that answers it best.

    \b
    Example:
      coe up
      curl localhost:8080/v1/chat/completions -H 'content-type: application/json' \\
        -d '{"messages": [{"role": "user", "content": "What is 47 + 385?"}]}'
    """
