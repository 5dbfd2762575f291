"""What is in a file of labelled task data, counted: for lists of data sets, before any training."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from routers.dataset import MAX_REPORTED, Collector
from routers.rows import Format, Row, format_of

_MEASURES = ("tokens", "price", "latency")


@dataclass(frozen=True, slots=True)
class DataSummary:
    """`categories` and `experts` count prompts and outcomes by name; `means` holds the mean score
    of each expert and what its answers took (tokens, price in USD, latency in ms), where it is
    known. `bad_lines` are the first of the `n_bad` lines that could not be read."""

    format: Format
    n_prompts: int
    n_outcomes: int
    n_preferences: int
    categories: dict[str, int]
    experts: dict[str, int]
    means: dict[str, dict[str, float]]
    n_bad: int
    bad_lines: tuple[str, ...]


def summarise(files: Sequence[Path]) -> DataSummary:
    """Read files to their end. Outcomes may refer to prompts that are in none of them.

    Raises:
        DataError: a file can't be read, or there is no good line.
    """
    collector = Collector()
    tally = _Tally()
    n_good = 0
    for file in files:
        for row in collector.read(file):
            n_good += 1
            tally.add(row)
    if not n_good:
        raise collector.nothing_usable(files)
    categories: dict[str, int] = {}
    for prompt in collector.prompts.values():
        if prompt.category is not None:
            categories[prompt.category] = categories.get(prompt.category, 0) + 1
    return DataSummary(
        format=format_of(files[0]),
        n_prompts=sum(prompt.text is not None for prompt in collector.prompts.values()),
        n_outcomes=sum(tally.outcomes.values()),
        n_preferences=sum(len(prompt.comparisons) for prompt in collector.prompts.values()),
        categories=dict(sorted(categories.items())),
        experts=dict(sorted(tally.outcomes.items())),
        means=tally.means(),
        n_bad=collector.n_bad,
        bad_lines=tuple(str(line)[:500] for line in collector.bad_lines[:MAX_REPORTED]),
    )


class _Tally:
    """Outcomes of each expert, and the sums of what is known of their answers."""

    def __init__(self) -> None:
        self.outcomes: dict[str, int] = {}
        self._sums: dict[str, dict[str, tuple[int, float]]] = {}

    def add(self, row: Row) -> None:
        for expert in (row.winner, row.loser):
            if expert is not None:
                self.outcomes.setdefault(expert, 0)
        if row.expert is None:
            return
        self.outcomes[row.expert] = self.outcomes.get(row.expert, 0) + 1
        sums = self._sums.setdefault(row.expert, {})
        for measure in ("score", *_MEASURES):
            value = getattr(row, measure)
            if value is not None:
                n, total = sums.get(measure, (0, 0.0))
                sums[measure] = (n + 1, total + value)

    def means(self) -> dict[str, dict[str, float]]:
        return {
            expert: {measure: round(total / n, 6) for measure, (n, total) in sums.items()}
            for expert, sums in sorted(self._sums.items())
        }
