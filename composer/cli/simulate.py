"""`coe simulate`: experts in memory, on simulated devices."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from composer.cli.options import announce

if TYPE_CHECKING:
    from eval.simulate.study import Trial
    from eval.simulate.traces import Trace

GENERATORS = ("zipf-0.8", "zipf-1.1", "zipf-1.4", "bursts", "drift", "diurnal")
POLICIES = ("forecast", "lru", "static")


@click.command("simulate")
@click.argument("trace", required=False, type=click.Path(path_type=Path))
@click.option(
    "--generator",
    "generators",
    multiple=True,
    type=click.Choice(GENERATORS),
    help="Traces to generate; may be given many times; without it and TRACE, all.",
)
@click.option("--seeds", type=click.IntRange(1, 1000), default=3, show_default=True)
@click.option("--first-seed", type=click.IntRange(0), default=1000, show_default=True)
@click.option(
    "--rate",
    type=click.FloatRange(0, 1000, min_open=True),
    default=3.0,
    show_default=True,
    help="Requests per second of generated traces.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(10, 1_000_000),
    default=1800.0,
    show_default=True,
    help="Length of generated traces.",
)
@click.option(
    "--policy",
    "policies",
    multiple=True,
    type=click.Choice(POLICIES),
    help="Who decides; may be given many times; without it, all.",
)
@click.option(
    "--deadline",
    type=click.FloatRange(0, 86_400, min_open=True),
    default=60.0,
    show_default=True,
    help="Seconds after which a waiting request is refused.",
)
@click.option(
    "--fleet",
    "fleet_file",
    type=click.Path(path_type=Path),
    help="YAML of devices and experts, with sizes and measured load times; without it, eight GPUs "
    "of 72 GB and 150 experts of 2 to 28 GB.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--check", is_flag=True, help="Exit 1 unless waits are surely below LRU's.")
def command(
    trace: Path | None,
    generators: tuple[str, ...],
    seeds: int,
    first_seed: int,
    rate: float,
    seconds: float,
    policies: tuple[str, ...],
    deadline: float,
    fleet_file: Path | None,
    as_json: bool,
    check: bool,
) -> None:
    """Compare ways to keep experts in memory, on simulated devices and a simulated clock.

    The residency manager and the placement run unchanged. TRACE is an export of decisions; without
    it, traces are generated from seeds. Nothing is counted in the first fifth of a trace.

    \b
    Example:
      coe simulate --generator bursts --seeds 5
      coe decisions export > decisions.jsonl && coe simulate decisions.jsonl
    """
    from composer.cli.tables import print_table
    from eval.simulate import report
    from eval.simulate.fleet import default_fleet, read_fleet
    from eval.simulate.traces import generate, read_decisions
    from experts.errors import SetupError

    try:
        from eval.simulate.study import compare, summarise, typical_cache
    except ImportError as error:
        raise SetupError(
            f"simulations need {error.name}: pip install 'expert-composer[train]'"
        ) from error

    if trace is not None and generators:
        raise click.UsageError("give either TRACE or --generator")
    if rate * seconds > 2_000_000:
        raise click.UsageError("--rate times --seconds: at most 2,000,000 requests")
    recorded = None if trace is None else read_decisions(trace)
    if fleet_file is not None:
        fleet = read_fleet(fleet_file)
    else:
        fleet = default_fleet(sorted(set(recorded.experts)) if recorded else None)
    names = [expert.id for expert in fleet.experts]
    chosen = policies or POLICIES

    def compared(label: str, requests: "Trace") -> "Trial":
        click.echo(f"{label} ...", err=True)
        return compare(fleet, requests, chosen, deadline_s=deadline)

    if recorded is not None:
        summaries = [summarise(str(trace), [compared(str(trace), recorded)])]
    else:
        summaries = [
            summarise(
                name,
                [
                    compared(
                        f"{name}, seed {seed}",
                        generate(name, seed, names, rate=rate, seconds=seconds),
                    )
                    for seed in range(first_seed, first_seed + seeds)
                ],
            )
            for name in generators or GENERATORS
        ]
    if as_json:
        settings: dict[str, Any] = {"deadline_s": deadline, "devices": len(fleet.devices)}
        settings |= {"experts": len(names), "policies": chosen}
        if recorded is None:
            settings |= {"seeds": [first_seed, first_seed + seeds - 1]}
            settings |= {"rate": rate, "seconds": seconds}
        announce(json.dumps(report.as_json(summaries, settings), indent=2))
    else:
        print_table(report.FIGURES, report.figures(summaries))
        if differences := report.differences(summaries):
            print_table(report.DIFFERENCES, differences)
        for line in report.notes(summaries, typical_cache(fleet)):
            announce(line)
    if check:
        failures = report.verdicts(summaries, "forecast")
        for failure in failures:
            click.echo(failure, err=True)
        sys.exit(1 if failures else 0)
