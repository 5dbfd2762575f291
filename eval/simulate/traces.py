"""Requests over time: generated from a seed, or recorded."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
from numpy.typing import NDArray

from experts.errors import DataError

Doubles = NDArray[np.float64]

MAX_REQUESTS = 2_000_000
MAX_LINE = 1_000_000

SERVICE_S = 2.0
"""Mean time of an answer; they are exponentially distributed."""

TAIL_EXPONENT = 1.1
"""Of the Zipf law beneath bursts, drift and diurnal traces."""

BURST_SHARE = 0.4
BURST_S = 60.0
BURST_REQUESTS = 40
SWAP_EACH_S = 10.0
DAY_S = 1200.0
"""A day is compressed to twenty minutes."""

DAY_SWING = 0.7


@dataclass(frozen=True)
class Trace:
    """Requests by time of arrival, from 0 on."""

    at: Doubles
    experts: tuple[str, ...]
    service_s: Doubles

    def __len__(self) -> int:
        return len(self.experts)

    @property
    def duration(self) -> float:
        return float(self.at[-1]) if len(self.at) else 0.0


Generator = Callable[[np.random.Generator, Sequence[str], float, float], Trace]
"""(random numbers, experts, requests per second, seconds) -> trace."""


def _zipf(exponent: float) -> Generator:
    def generate(
        rng: np.random.Generator, experts: Sequence[str], rate: float, seconds: float
    ) -> Trace:
        """Independent requests; who is popular is drawn."""
        at = _poisson(rng, rate, seconds)
        ranks = rng.choice(len(experts), size=len(at), p=_shares(len(experts), exponent))
        return _trace(rng, at, rng.permutation(len(experts))[ranks], experts)

    return generate


def bursts(rng: np.random.Generator, experts: Sequence[str], rate: float, seconds: float) -> Trace:
    """Zipf requests, and bursts: an expert, any one, is suddenly asked for a minute."""
    steady = _poisson(rng, rate * (1 - BURST_SHARE), seconds)
    shares = _shares(len(experts), TAIL_EXPONENT)
    who = rng.permutation(len(experts))[rng.choice(len(experts), size=len(steady), p=shares)]
    times, chosen = [steady], [who]
    for start in _poisson(rng, rate * BURST_SHARE / BURST_REQUESTS, seconds):
        burst = start + np.sort(rng.exponential(BURST_S / 2, size=rng.poisson(BURST_REQUESTS)))
        burst = burst[burst < seconds]
        times.append(burst)
        chosen.append(np.full(len(burst), rng.integers(len(experts))))
    return _trace(rng, np.concatenate(times), np.concatenate(chosen), experts)


def drift(rng: np.random.Generator, experts: Sequence[str], rate: float, seconds: float) -> Trace:
    """Zipf requests whose ranks change: two experts trade places every few seconds."""
    at = _poisson(rng, rate, seconds)
    ranks = rng.choice(len(experts), size=len(at), p=_shares(len(experts), TAIL_EXPONENT))
    order = rng.permutation(len(experts))
    who = np.empty(len(at), dtype=np.int64)
    spans = (at // SWAP_EACH_S).astype(np.int64)
    for span in range(int(seconds // SWAP_EACH_S) + 1):
        inside = spans == span
        who[inside] = order[ranks[inside]]
        a, b = rng.choice(len(experts), size=2, replace=False)
        order[[a, b]] = order[[b, a]]
    return _trace(rng, at, who, experts)


def diurnal(rng: np.random.Generator, experts: Sequence[str], rate: float, seconds: float) -> Trace:
    """Traffic that rises and falls, from one crowd by day and from another, with other
    favourites, by night."""
    peak = rate * (1 + DAY_SWING)
    at = _poisson(rng, peak, seconds)
    phase = np.sin(2 * np.pi * at / DAY_S)
    kept = rng.random(len(at)) < (1 + DAY_SWING * phase) / (1 + DAY_SWING)
    at, phase = at[kept], phase[kept]
    ranks = rng.choice(len(experts), size=len(at), p=_shares(len(experts), TAIL_EXPONENT))
    by_day, by_night = rng.permutation(len(experts)), rng.permutation(len(experts))
    day = rng.random(len(at)) < (1 + phase) / 2
    return _trace(rng, at, np.where(day, by_day[ranks], by_night[ranks]), experts)


GENERATORS: dict[str, Generator] = {
    "zipf-0.8": _zipf(0.8),
    "zipf-1.1": _zipf(1.1),
    "zipf-1.4": _zipf(1.4),
    "bursts": bursts,
    "drift": drift,
    "diurnal": diurnal,
}


def generate(name: str, seed: int, experts: Sequence[str], *, rate: float, seconds: float) -> Trace:
    """A generator's trace; the same for the same arguments."""
    # Another stream of numbers for each generator, so that their traces are independent.
    rng = np.random.default_rng([seed, list(GENERATORS).index(name)])
    return GENERATORS[name](rng, experts, rate, seconds)


def read_decisions(path: Path) -> Trace:
    """The requests of an export of decisions (`coe decisions export`).

    A request came when its answer ended less the time that took, and kept the expert that answered
    it, else the one ranked first, busy for that time.

    Raises:
        DataError: the file can't be read, or a line is no decision.
    """
    rows: list[tuple[float, str, float]] = []
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                row = _request(line, f"{path}:{number}")
                if row is not None:
                    rows.append(row)
                if len(rows) > MAX_REQUESTS:
                    raise DataError(f"{path}: more than {MAX_REQUESTS} requests")
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}") from error
    if not rows:
        raise DataError(f"{path} holds no decision")
    rows.sort()
    at = np.array([row[0] for row in rows])
    return Trace(at - at[0], tuple(row[1] for row in rows), np.array([row[2] for row in rows]))


def _request(line: bytes, place: str) -> tuple[float, str, float] | None:
    """One line of an export; None for its last one, which holds a cursor, and empty ones."""
    if not line.strip():
        return None
    if len(line) > MAX_LINE:
        raise DataError(f"{place}: longer than {MAX_LINE} bytes")
    try:
        view = orjson.loads(line)
        if isinstance(view, dict) and view.keys() <= {"cursor", "missed"}:
            return None
        seconds = float(view["outcome"]["total_ms"]) / 1000
        expert = view["answered_by"] or view["expert"]
        at = float(view["at"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{place}: not a decision of an export ({error})") from error
    if not isinstance(expert, str) or not np.isfinite([at, seconds]).all() or seconds < 0:
        raise DataError(f"{place}: not a decision of an export")
    return (at - seconds, expert, seconds) if expert else None


def _shares(n: int, exponent: float) -> Doubles:
    weights = np.arange(1, n + 1, dtype=np.float64) ** -exponent
    shares: Doubles = weights / weights.sum()
    return shares


def _poisson(rng: np.random.Generator, rate: float, seconds: float) -> Doubles:
    return np.sort(rng.uniform(0, seconds, size=rng.poisson(rate * seconds)))


def _trace(
    rng: np.random.Generator, at: Doubles, who: NDArray[np.int64], experts: Sequence[str]
) -> Trace:
    order = np.argsort(at, kind="stable")
    service = rng.exponential(SERVICE_S, size=len(at))
    return Trace(at[order], tuple(experts[i] for i in who[order]), service)
