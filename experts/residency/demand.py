"""How often each expert is asked for, and how often it will be."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import exp


@dataclass(slots=True)
class _Counts:
    """Exponentially discounted counts of one expert's requests, as of a moment."""

    at: float = 0.0
    fast: float = 0.0
    slow: float = 0.0


class Demand:
    """Rates of requests from two discounted counts per expert.

    A count that forgets with time constant tau, divided by tau, estimates a rate. The fast one
    follows a burst within seconds and forgets it as fast; the slow one knows who is popular and
    follows drift. The forecast for the next moments is their weighted sum. Until a time constant
    has passed a count would be too low: it is divided by the mass it can have had.
    """

    def __init__(
        self, experts: Iterable[str], *, fast_s: float, slow_s: float, fast_weight: float
    ) -> None:
        if not 0 < fast_s <= slow_s or not 0 <= fast_weight <= 1:
            raise ValueError("0 < fast_s <= slow_s and a weight in [0, 1] are needed")
        self._fast_s, self._slow_s, self._weight = fast_s, slow_s, fast_weight
        self._counts = {expert: _Counts() for expert in experts}
        self._all = _Counts()
        self._start: float | None = None

    def saw(self, expert: str, now: float) -> None:
        """A request for an expert has arrived."""
        if self._start is None:
            self._start = now
        for counts in (self._counts[expert], self._all):
            passed = now - counts.at
            counts.fast = counts.fast * exp(-passed / self._fast_s) + 1.0
            counts.slow = counts.slow * exp(-passed / self._slow_s) + 1.0
            counts.at = now

    def rate(self, expert: str, now: float) -> float:
        """Expected requests per second for an expert from now on."""
        return self._rate(self._counts[expert], now)

    def total(self, now: float) -> float:
        """Expected requests per second for all experts: the sum of their rates."""
        return self._rate(self._all, now)

    def _rate(self, counts: _Counts, now: float) -> float:
        if self._start is None or counts.slow == 0.0:
            return 0.0
        passed = now - counts.at
        fast = counts.fast * exp(-passed / self._fast_s) / self._fast_s
        # With less than one fast time constant of history the estimate is deliberately low.
        seen = max(now - self._start, self._fast_s)
        mass = self._slow_s * (1.0 - exp(-seen / self._slow_s))
        slow = counts.slow * exp(-passed / self._slow_s) / mass
        return self._weight * fast + (1.0 - self._weight) * slow
