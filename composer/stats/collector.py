"""Counting in the memory of a gateway worker, until the counts are committed."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

from composer.outcome import Outcome
from composer.stats.cells import Cell, add_request, marginals, merge, new_cell
from routers.types import DIRECT, Decision

MAX_CELLS = 5000
"""Expert, category, composition and minute combinations held. When Redis stays away for so long
that more come up, requests are counted in the newest minute held: never lost, only less sharp."""

MAX_PENDING = 10_000
OTHER = "(other)"
_CELLS_TAKEN = 200
_DECISIONS_TAKEN = 100

_Key = tuple[int, str, str, str]


@dataclass(frozen=True, slots=True)
class Recent:
    """A decision and what became of it; `at` is when, in Unix seconds."""

    at: float
    decision: Decision
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Taken:
    """Counts by minute and group, and decisions in the order in which they ended."""

    cells: dict[int, dict[str, Cell]]
    decisions: tuple[Recent, ...]


class Collector:
    """An `OutcomeSink` whose memory is bounded and whose `record` takes microseconds.

    `dropped` decisions could not be held until they were committed (their figures were);
    `faults` are requests that could not be counted.
    """

    def __init__(self, decisions_kept: int, clock: Callable[[], float] = time.time) -> None:
        self.dropped = 0
        self.faults = 0
        self._clock = clock
        self._cells: dict[_Key, Cell] = {}
        self._newest = 0
        self._keeps = decisions_kept > 0
        self._decisions: deque[Recent] = deque(maxlen=min(decisions_kept, MAX_PENDING))

    @property
    def pending(self) -> int:
        """Decisions that wait to be committed."""
        return len(self._decisions)

    @property
    def empty(self) -> bool:
        return not self._cells and not self._decisions

    def record(self, decision: Decision, outcome: Outcome) -> None:
        try:
            now = self._clock()
            expert = outcome.expert or decision.expert
            key = (int(now // 60), expert, decision.category, decision.composition or DIRECT)
            cell = self._cells.get(key)
            if cell is None:
                cell = self._open(key)
            add_request(cell, decision, outcome)
            if self._keeps:
                if len(self._decisions) == self._decisions.maxlen:
                    self.dropped += 1
                self._decisions.append(Recent(now, decision, outcome))
        except Exception:
            # An answer must not fail because it can't be counted: that itself is counted.
            self.faults += 1

    def _open(self, key: _Key) -> Cell:
        minute, expert, category, composition = key
        if len(self._cells) < MAX_CELLS:
            self._newest = max(self._newest, minute)
        elif (key := (self._newest, expert, category, composition)) not in self._cells:
            key = (self._newest, OTHER, OTHER, OTHER)
        return self._cells.setdefault(key, new_cell())

    def take(self) -> Taken | None:
        """Take out the oldest counts and decisions, a bounded number; None if there are none."""
        if self.empty:
            return None
        minutes: dict[int, dict[str, Cell]] = {}
        for key in list(islice(self._cells, _CELLS_TAKEN)):
            minute, expert, category, composition = key
            groups = minutes.setdefault(minute, {})
            for group, counts in marginals(expert, category, composition, self._cells.pop(key)):
                merge(groups.setdefault(group, new_cell()), counts)
        number = min(len(self._decisions), _DECISIONS_TAKEN)
        decisions = tuple(self._decisions.popleft() for _ in range(number))
        return Taken(minutes, decisions)
