"""What this process knows of its experts right now: availability, latency, load."""

import time
from collections.abc import Callable, Mapping

from composer.snapshots import View
from composer.state import Endpoint, ExpertRecord, ExpertStatus
from routers.ranking import Conditions

COOLDOWN_S = 2.0
"""How long an engine that refused or dropped a connection is passed over."""

SMOOTHING = 0.2
"""Weight of the newest time to first token in the moving average."""


class ConditionsTracker:
    """Joins what the supervisor says of engines with what live traffic shows.

    An engine that fails a request cools down for a moment, so that the requests behind it go
    elsewhere at once instead of finding out one by one.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._engine_of: Mapping[str, str] = {}
        self._engine_reasons: dict[str, str] = {}
        self._cooling: dict[str, tuple[float, str]] = {}
        self._latency_ms: dict[str, float] = {}
        self._load: dict[str, int] = {}
        self._not_ready: dict[str, str] = {}
        self._unavailable: Mapping[str, str] = {}

    def follow(self, view: View) -> None:
        """Take over a new view of the shared state."""
        snapshot = view.snapshot
        self._engine_of = {e.id: e.engine for e in snapshot.experts.values() if e.engine}
        self._engine_reasons = {
            engine: _why_not_ready(snapshot.endpoints.get(engine))
            for engine in set(self._engine_of.values())
            if engine not in snapshot.endpoints or snapshot.endpoints[engine].state != "ready"
        }
        self._not_ready = {
            expert: reason
            for expert, record in snapshot.records.items()
            if (reason := _why_not_taking(record, snapshot.statuses.get(expert)))
        }
        self._rebuild()

    def current(self) -> Conditions:
        if self._cooling:
            now = self._clock()
            over = [engine for engine, (until, _) in self._cooling.items() if until <= now]
            for engine in over:
                del self._cooling[engine]
            if over:
                self._rebuild()
        return Conditions(self._unavailable, self._latency_ms, self._load)

    def started(self, expert: str) -> None:
        self._load[expert] = self._load.get(expert, 0) + 1

    def finished(self, expert: str) -> None:
        self._load[expert] -= 1

    def in_flight(self) -> Mapping[str, int]:
        """Requests that experts are answering now, of this process."""
        return {expert: n for expert, n in self._load.items() if n}

    def answered(self, expert: str, first_token_ms: float) -> None:
        before = self._latency_ms.get(expert, first_token_ms)
        self._latency_ms[expert] = before + SMOOTHING * (first_token_ms - before)

    def failed(self, expert: str, reason: str) -> None:
        """An engine dropped or refused a connection: let it cool down."""
        engine = self._engine_of.get(expert)
        if engine is not None:
            self._cooling[engine] = (self._clock() + COOLDOWN_S, f"its engine failed ({reason})")
            self._rebuild()

    def unavailable(self) -> Mapping[str, str]:
        """Experts that can't be asked now, with the reason."""
        return self.current().unavailable

    def _rebuild(self) -> None:
        reasons = {engine: reason for engine, (_, reason) in self._cooling.items()}
        reasons |= self._engine_reasons
        self._unavailable = {
            expert: reasons[engine]
            for expert, engine in self._engine_of.items()
            if engine in reasons
        } | self._not_ready


def _why_not_taking(record: ExpertRecord, status: ExpertStatus | None) -> str:
    if record.removing:
        return "it is being removed"
    if record.drained:
        return "it was taken out of rotation"
    if status is None:
        return "it is registered, and not verified yet"
    if status.state == "ready":
        return ""
    return f"it is {status.state}" + (f" ({status.reason})" if status.reason else "")


def _why_not_ready(endpoint: Endpoint | None) -> str:
    if endpoint is None:
        return "its engine is not running"
    reason = f" ({endpoint.reason})" if endpoint.reason else ""
    return f"its engine is {endpoint.state}{reason}"
