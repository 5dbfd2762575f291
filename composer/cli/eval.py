"""`coe eval`: how good routing is, measured against baselines."""

import json
from pathlib import Path
from typing import Any

import click

from composer.cli.options import announce, config_option, load


@click.command("eval")
@click.option(
    "--data",
    "files",
    multiple=True,
    type=click.Path(path_type=Path),
    help="JSONL or parquet of prompts, categories and graded outcomes; several make one data set.",
)
@click.option(
    "--root",
    type=click.Path(path_type=Path),
    help="Folder of public routing data; unset: that of COMPOSER_DATA.",
)
@click.option("--matrices", help="Which of the public matrices, with commas; unset: all.")
@click.option(
    "--baselines", default="all", show_default=True, help="`all`, `none`, or names with commas."
)
@click.option("--folds", type=click.IntRange(2, 20), default=5, show_default=True)
@click.option("--repeats", type=click.IntRange(1, 50), default=1, show_default=True)
@click.option("--sizes", help="Learning curves at these numbers of prompts, such as 200,1000.")
@click.option("--draws", type=click.IntRange(1, 50), default=4, show_default=True)
@click.option("--reword", is_flag=True, help="Ask again with typos, courtesies and other cases.")
@click.option("--scope", is_flag=True, help="Out-of-scope prompts of clinc150 (public data).")
@click.option("--report", type=click.Path(path_type=Path), help="Folder for the page and JSON.")
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
@config_option
def command(
    files: tuple[Path, ...],
    root: Path | None,
    matrices: str | None,
    baselines: str,
    folds: int,
    repeats: int,
    sizes: str | None,
    draws: int,
    reword: bool,
    scope: bool,
    report: Path | None,
    as_json: bool,
    config_file: Path | None,
) -> None:
    """Cross-validate Composer's routing beside baselines, with paired intervals.

    \b
    Example:
      coe eval --data prompts.jsonl --data outcomes.jsonl --baselines all --report report
      COMPOSER_DATA=~/routing-data coe eval --matrices llmrouter,mmlu_pro --report report
    """
    from eval.routing.matrices import data_folder
    from eval.routing.report import write_report
    from eval.routing.run import Plan, evaluate, files_as_data
    from eval.routing.run import matrices as load_matrices
    from routers.encoders import load_encoder

    root = data_folder(root)
    if not files and root is None:
        announce(
            "nothing to evaluate: give --data FILE, or name the folder of public routing data "
            "with --root or COMPOSER_DATA"
        )
        return
    names = [name for name in (matrices or "").split(",") if name]
    data = files_as_data(files) if files else load_matrices(root or Path(), names)
    config = load(config_file)

    def progress(line: str) -> None:
        click.echo(line, err=True)

    encoder = load_encoder(config.encoder.backend, config.cache_dir, progress=progress)
    plan = Plan(baselines, folds, repeats, _sizes(sizes), draws, reword, scope)
    results = evaluate(data, encoder, config.cache_dir, plan, progress, root)
    if report is not None:
        write_report(report, results)
    if as_json:
        announce(json.dumps(results, indent=2))
    else:
        _show(results)
        if report is not None:
            announce(f"report in {report}/report.html")


def _sizes(text: str | None) -> tuple[int, ...]:
    try:
        found = tuple(int(part) for part in (text or "").split(",") if part.strip())
    except ValueError as error:
        raise click.BadParameter("whole numbers with commas", param_hint="--sizes") from error
    if any(size < 10 for size in found):
        raise click.BadParameter("at least 10 prompts", param_hint="--sizes")
    return found


def _show(results: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from eval.routing.report import HEAD, mean_gain, text_rows
    from eval.routing.run import each_line

    console = Console(highlight=False)
    # A cut interval says nothing: rather let a narrow terminal wrap.
    console.width = max(console.width, 130)
    for line, comparison in zip(each_line(results), results["comparisons"], strict=True):
        console.print(f"\n{line}")
        table = Table(box=None, pad_edge=False, header_style="dim")
        for name in HEAD:
            table.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
        for row in text_rows(comparison):
            table.add_row(*row)
        console.print(table)
    comparisons = results["comparisons"]
    if len(comparisons) > 1:
        console.print(f"\nmean gain over {len(comparisons)} data sets")
        for name in comparisons[0]["methods"]:
            console.print(f"  {name:<12} {mean_gain(comparisons, name):+.4f}")
    for curve in results["learning"]:
        for name, points in curve["methods"].items():
            for point in points:
                gain = point["gain"]
                console.print(
                    f"{curve['data']}, {point['size']} prompts: {name} {gain['mean']:+.4f} "
                    f"[{gain['low']:+.4f}, {gain['high']:+.4f}]"
                )
    for data, changes in results["robustness"].items():
        for change, found in changes.items():
            score = found["score"]
            console.print(
                f"{data}, {change}: {found['unchanged']:.3f} unchanged, score {score['mean']:+.4f} "
                f"[{score['low']:+.4f}, {score['high']:+.4f}]"
            )
    for data, found in results["scope"].items():
        console.print(
            data + ": " + ", ".join(f"{name} {value:.3f}" for name, value in found.items())
        )
