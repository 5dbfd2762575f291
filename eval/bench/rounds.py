"""The measurement: every target in turn, several times over, so that noise meets them all alike."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from eval.bench.generators import Generator
from eval.bench.load import Load
from eval.bench.servers import Server


@dataclass(frozen=True)
class Scenario:
    """What is sent: how many connections at once, and whether answers are streamed."""

    connections: int
    stream: bool

    @property
    def name(self) -> str:
        kind = "streamed chat" if self.stream else "chat"
        return f"{kind}, {self.connections} connection{'s' if self.connections > 1 else ''}"


@dataclass(frozen=True)
class Sample:
    """One load of one target; `cpu_us` is the target's CPU time per request."""

    load: Load
    cpu_us: float


@dataclass(frozen=True)
class Round:
    """The targets' samples, by name, taken one right after the other."""

    scenario: Scenario
    samples: dict[str, Sample]


def measure(
    targets: Sequence[Server],
    scenarios: Sequence[Scenario],
    rounds: int,
    seconds: float,
    generate: Generator,
    progress: Callable[[str], None],
) -> list[Round]:
    """All rounds; who goes first changes from one to the next."""
    measured = []
    for number in range(rounds):
        first = number % len(targets)
        order = [*targets[first:], *targets[:first]]
        for scenario in scenarios:
            progress(f"round {number + 1} of {rounds}: {scenario.name}")
            samples = {
                target.name: _sample(target, scenario, seconds, generate) for target in order
            }
            measured.append(Round(scenario, samples))
    return measured


def _sample(target: Server, scenario: Scenario, seconds: float, generate: Generator) -> Sample:
    before = target.cpu_s()
    load = generate(target.url, scenario.connections, seconds, scenario.stream)
    return Sample(load, (target.cpu_s() - before) / max(load.sent, 1) * 1e6)
