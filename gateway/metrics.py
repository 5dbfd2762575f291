"""Prometheus metrics of one gateway worker. Labels are bounded: experts, categories, statuses."""

from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from composer.outcome import Outcome
from routers.types import Decision

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
ROUTE_SECONDS = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 1)
NOBODY = "none"


@dataclass(frozen=True, slots=True)
class _Series:
    """The metrics of requests that share all labels, looked up once."""

    requests: Counter
    cache: Counter
    first_token: Histogram
    total: Histogram


class Metrics:
    """Counts what happened to each request; an `OutcomeSink`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._series: dict[tuple[str, str, str, str], _Series] = {}
        self._requests = Counter(
            "composer_requests",
            "Requests by the expert that answered, category, and how they ended.",
            ("expert", "category", "status"),
            registry=self.registry,
        )
        self._refused = Counter(
            "composer_refused_requests",
            "Requests answered with an error of the gateway, by its code.",
            ("code",),
            registry=self.registry,
        )
        self._fallbacks = Counter(
            "composer_fallbacks",
            "Attempts that failed and moved on down the ranking, by the expert that failed.",
            ("expert",),
            registry=self.registry,
        )
        self._cache = Counter(
            "composer_score_cache",
            "Decisions by what the score cache knew.",
            ("state",),
            registry=self.registry,
        )
        self._route = Histogram(
            "composer_route_seconds",
            "Time to a decision.",
            registry=self.registry,
            buckets=ROUTE_SECONDS,
        )
        self._first_token = Histogram(
            "composer_first_token_seconds",
            "From the request's arrival to the first token of the answer.",
            ("expert",),
            registry=self.registry,
            buckets=SECONDS,
        )
        self._total = Histogram(
            "composer_request_seconds",
            "From the request's arrival to the end of the answer.",
            ("expert",),
            registry=self.registry,
            buckets=SECONDS,
        )
        self.in_flight = Gauge(
            "composer_requests_in_flight",
            "Requests being served.",
            registry=self.registry,
        )
        self.state_connected = Gauge(
            "composer_state_connected",
            "1 while the shared state can be reached.",
            registry=self.registry,
        )

    def record(self, decision: Decision, outcome: Outcome) -> None:
        key = (outcome.expert or NOBODY, decision.category, outcome.status, decision.cache)
        series = self._series.get(key)
        if series is None:
            series = self._series[key] = self._new_series(*key)
        series.requests.inc()
        series.cache.inc()
        series.total.observe(outcome.total_ms / 1000)
        if outcome.first_token_ms is not None:
            series.first_token.observe(outcome.first_token_ms / 1000)
        self._route.observe(decision.route_ms / 1000)
        for name, _ in outcome.failed:
            self._fallbacks.labels(name).inc()

    def _new_series(self, expert: str, category: str, status: str, cache: str) -> "_Series":
        return _Series(
            self._requests.labels(expert, category, status),
            self._cache.labels(cache),
            self._first_token.labels(expert),
            self._total.labels(expert),
        )

    def refused(self, code: str) -> None:
        self._refused.labels(code).inc()

    def render(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self.registry)
