"""The load benchmark: what the gateway takes beyond a bare relay, and beyond no gateway at all."""

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark with these arguments, by default the process's; returns the status."""
    from eval.bench.command import run

    return run(arguments)
