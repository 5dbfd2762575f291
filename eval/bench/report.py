"""The samples of all rounds as one table, and the verdict."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from eval.bench.rounds import Round, Sample, Scenario
from eval.bench.servers import DIRECT, GATEWAY, RELAY


@dataclass(frozen=True)
class Row:
    """One target under one scenario: medians over the rounds.

    What compares two targets is taken within each round, then the median of that. `added` is the
    latency beyond the relay's and beyond the direct one, in milliseconds.
    """

    scenario: str
    target: str
    rps: float
    rps_min: float
    rps_max: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    cpu_us: float
    errors: int
    of_relay: float
    added_p50_to_relay_ms: float
    added_p99_to_relay_ms: float
    added_p50_to_direct_ms: float
    added_p99_to_direct_ms: float


def rows(rounds: Sequence[Round]) -> list[Row]:
    """A row for each scenario and target, in the order of direct, relay, gateway."""
    scenarios = dict.fromkeys(taken.scenario for taken in rounds)
    present = [name for name in (DIRECT, RELAY, GATEWAY) if name in rounds[0].samples]
    return [
        _row(scenario, target, [taken for taken in rounds if taken.scenario == scenario])
        for scenario in scenarios
        for target in present
    ]


def _row(scenario: Scenario, target: str, rounds: Sequence[Round]) -> Row:
    def middle(value: Callable[[Sample], float]) -> float:
        return median(value(taken.samples[target]) for taken in rounds)

    def added(value: Callable[[Sample], float], base: str) -> float:
        return median(value(taken.samples[target]) - value(taken.samples[base]) for taken in rounds)

    rates = [taken.samples[target].load.rps for taken in rounds]
    relayed = [taken.samples[RELAY].load.rps for taken in rounds]
    return Row(
        scenario=scenario.name,
        target=target,
        rps=median(rates),
        rps_min=min(rates),
        rps_max=max(rates),
        p50_ms=middle(_p50),
        p95_ms=middle(lambda sample: sample.load.p95_ms),
        p99_ms=middle(_p99),
        cpu_us=middle(lambda sample: sample.cpu_us),
        errors=sum(taken.samples[target].load.errors for taken in rounds),
        of_relay=median(a / b if b else 0.0 for a, b in zip(rates, relayed, strict=True)),
        added_p50_to_relay_ms=added(_p50, RELAY),
        added_p99_to_relay_ms=added(_p99, RELAY),
        added_p50_to_direct_ms=added(_p50, DIRECT),
        added_p99_to_direct_ms=added(_p99, DIRECT),
    )


def _p50(sample: Sample) -> float:
    return sample.load.p50_ms


def _p99(sample: Sample) -> float:
    return sample.load.p99_ms


def table(rows: Iterable[Row]) -> str:
    """The rows as text, a block for each scenario."""
    lines = []
    scenario = ""
    for row in rows:
        if row.scenario != scenario:
            scenario = row.scenario
            lines += [
                "",
                f"{scenario:28}{'':26}{'':44}added p50 / p99 ms",
                f"{'':10}{'requests/s (min - max)':>28}{'p50 ms':>9}{'p99 ms':>9}{'errors':>8}"
                f"{'CPU us':>8}{'of relay':>10}{'to relay':>20}{'to direct':>20}",
            ]
        spread = f"{row.rps:,.0f} ({row.rps_min:,.0f} - {row.rps_max:,.0f})"
        to_relay = f"{row.added_p50_to_relay_ms:+.3f} / {row.added_p99_to_relay_ms:+.3f}"
        to_direct = f"{row.added_p50_to_direct_ms:+.3f} / {row.added_p99_to_direct_ms:+.3f}"
        lines.append(
            f"{row.target:10}{spread:>28}{row.p50_ms:9.3f}{row.p99_ms:9.3f}{row.errors:8}"
            f"{row.cpu_us:8.0f}{row.of_relay:10.2f}"
            f"{'' if row.target in (DIRECT, RELAY) else to_relay:>20}"
            f"{'' if row.target == DIRECT else to_direct:>20}"
        )
    return "\n".join(lines)


def failures(rows: Sequence[Row], judged: Scenario, min_ratio: float) -> list[str]:
    """What makes the benchmark fail: a request that failed anywhere, or a gateway too slow.

    The ratio is judged under one scenario: chat, not streamed, at the most connections.
    """
    reasons = [
        f"{row.errors} requests failed: {row.target}, {row.scenario}" for row in rows if row.errors
    ]
    reasons += [
        f"the gateway reaches {row.of_relay:.2f} of the relay ({row.scenario}); "
        f"{min_ratio:.2f} is wanted"
        for row in rows
        if row.target == GATEWAY and row.scenario == judged.name and row.of_relay < min_ratio
    ]
    return reasons
