"""The command: start the three targets, run the rounds, print the table, judge."""

import argparse
import dataclasses
import shutil
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import orjson

from eval.bench import servers
from eval.bench.gateway import start_gateway
from eval.bench.generators import GENERATORS
from eval.bench.report import failures, rows, table
from eval.bench.rounds import Scenario, measure

SCENARIOS = (Scenario(16, False), Scenario(1, False), Scenario(16, True), Scenario(1, True))


def run(arguments: Sequence[str] | None) -> int:
    """Run the benchmark with these arguments, by default the process's; returns the status."""
    options = _options(arguments)
    # As Ctrl-C does, SIGTERM leaves by way of the servers' clean-up.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with ExitStack() as stack:
        upstream = stack.enter_context(servers.upstream())
        relay = stack.enter_context(servers.relay(upstream.url))
        gateway = stack.enter_context(start_gateway(upstream.url))
        rounds = measure(
            [upstream, relay, gateway],
            SCENARIOS,
            options.rounds,
            options.seconds,
            GENERATORS[options.tool],
            progress=lambda message: print(message, file=sys.stderr, flush=True),
        )
    results = rows(rounds)
    print(table(results))
    reasons = failures(results, SCENARIOS[0], options.min_ratio)
    if options.json is not None:
        report = {
            "rows": [dataclasses.asdict(row) for row in results],
            "rounds": [dataclasses.asdict(taken) for taken in rounds],
            "min_ratio": options.min_ratio,
            "failures": reasons,
        }
        options.json.write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2))
    for reason in reasons:
        print(f"FAILED: {reason}", file=sys.stderr)
    return 1 if reasons else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m eval.bench",
        description="Load a mock upstream directly, through a bare relay, and through Composer's "
        "gateway with the decision cached, in alternating rounds. Exits 1 if the gateway is slower "
        "than --min-ratio of the relay (chat, 16 connections) or any request failed.",
        epilog="example: python -m eval.bench --rounds 3 --json bench.json",
    )
    parser.add_argument("--rounds", type=int, default=5, help="of every target and scenario (5)")
    parser.add_argument("--seconds", type=float, default=1.5, help="of load each time (1.5)")
    parser.add_argument("--min-ratio", type=float, default=0.4, help="of the relay's rate (0.4)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers to FILE")
    parser.add_argument("--tool", choices=GENERATORS, default="own", help="what sends the load")
    options = parser.parse_args(arguments)
    if options.rounds < 1 or options.seconds <= 0:
        parser.error("--rounds and --seconds must be above zero")
    if options.tool == "wrk" and shutil.which("wrk") is None:
        parser.error("wrk is not on the PATH; --tool own needs nothing installed")
    return options
