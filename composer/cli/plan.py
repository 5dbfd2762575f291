"""`coe plan`: which experts to hold under a budget."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from composer.cli.options import announce

if TYPE_CHECKING:
    from routers.planning import Plan


@click.command("plan")
@click.option("--artifact", required=True, type=click.Path(path_type=Path), help="Artefact folder.")
@click.option("--budgets", help="Billions of parameters, such as 8,16,40; unset: where it matters.")
@click.option("--gpus", type=click.IntRange(0), help="So many GPUs are there.")
@click.option(
    "--gpu-params",
    type=click.FloatRange(min=0, min_open=True),
    default=30.0,
    show_default=True,
    help="Billions of parameters that one GPU holds.",
)
@click.option("--max-price", type=click.FloatRange(0), help="USD of the mean request.")
@click.option("--max-experts", type=click.IntRange(1), help="No more experts than this.")
@click.option("--must-have", multiple=True, help="An expert that is held in any case.")
@click.option("--figure", type=click.Path(path_type=Path), help="HTML file of the frontier.")
@click.option("--json", "as_json", is_flag=True, help="Print the frontier as JSON.")
def command(
    artifact: Path,
    budgets: str | None,
    gpus: int | None,
    gpu_params: float,
    max_price: float | None,
    max_experts: int | None,
    must_have: tuple[str, ...],
    figure: Path | None,
    as_json: bool,
) -> None:
    """Show what quality each memory budget buys, and which experts it takes.

    \b
    Example:
      coe plan --artifact artefact --budgets 8,16,40,80
    """
    from composer.planning import default_budgets, limits_of, plan_view, problem_of
    from experts.errors import DataError
    from routers.artefact import load_artefact
    from routers.planning import frontier

    problem, left_out = problem_of(load_artefact(artifact), gpu_params)
    sizes = _numbers(budgets) if budgets else default_budgets(problem)
    plans = frontier(problem, sizes, limits_of(gpus, max_price, max_experts, must_have))
    if not plans:
        raise DataError("no budget allows a plan: raise it, or drop a limit", param="budgets")
    for expert in left_out:
        click.echo(f"note: '{expert}' is left out, its size is unknown", err=True)
    if figure is not None:
        from eval.routing.figures import frontier_page

        _write(figure, frontier_page([plan_view(plan) for plan in plans]))
    if as_json:
        document = {
            "budgets": sizes,
            "frontier": [plan_view(plan) for plan in plans],
            "left_out": left_out,
        }
        announce(json.dumps(document, indent=2))
    else:
        _show(plans)


def _numbers(text: str) -> list[float]:
    try:
        found = [float(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise click.BadParameter(
            "numbers with commas between them", param_hint="--budgets"
        ) from error
    if not found or not all(0 <= number < float("inf") for number in found):
        raise click.BadParameter("at least one number, none below 0", param_hint="--budgets")
    return found


def _write(file: Path, text: str) -> None:
    from experts.errors import DataError

    try:
        file.write_text(text)
    except OSError as error:
        raise DataError(f"can't write {file}: {error.strerror}") from error


def _show(plans: "list[Plan]") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("budget", "held", "active", "quality", "95 %"):
        table.add_column(name, justify="right")
    table.add_column("experts (what each is worth)")
    for plan in plans:
        experts = ", ".join(
            expert if (worth := plan.worth.get(expert)) is None else f"{expert} {worth:+.3f}"
            for expert in plan.experts
        )
        table.add_row(
            f"{plan.limits.params_b:g}",
            f"{plan.params_b:.1f}",
            f"{plan.active_b:.1f}",
            f"{plan.quality:.3f}",
            f"{plan.low:.3f}-{plan.high:.3f}",
            Text(experts),
        )
    Console(highlight=False).print(table)
