"""Prometheus metrics. Labels are bounded: experts, categories, compositions, statuses.

Several workers of one host share a folder (`FOLDER_VARIABLE`): each keeps its numbers in files of
its own there, and whichever worker is asked tells the sums. A worker that is started again goes on
with the files of its name, so counters never fall.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, values
from prometheus_client.multiprocess import MultiProcessCollector

from composer.outcome import Outcome
from composer.stats import Backlog
from composer.workers import FOLDER_VARIABLE, worker_name
from routers.types import Decision

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
ROUTE_SECONDS = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 1)
SCORES = (0.0, 0.25, 0.5, 0.75, 1.0)
NOBODY = "none"
OTHER = "(other)"
MAX_SERIES = 5000
"""Combinations of expert, category, status and cache; those beyond are counted together."""


@dataclass(frozen=True, slots=True)
class _Series:
    """The metrics of requests that share all labels, looked up once."""

    requests: Counter
    cache: Counter
    first_token: Histogram
    total: Histogram
    prompt_tokens: Counter
    completion_tokens: Counter
    cost: Counter


class Metrics:
    """Counts what happened to each request; an `OutcomeSink`. `faults` are requests that could not
    be counted."""

    def __init__(self) -> None:
        self.faults = 0
        self._series: dict[tuple[str, str, str, str], _Series] = {}
        self._told = Backlog(0, 0, 0)
        folder = os.environ.get(FOLDER_VARIABLE)
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            name = worker_name()
            values.ValueClass = values.MultiProcessValue(lambda: name)  # type: ignore[no-untyped-call]
        own = CollectorRegistry()
        self._registry = own
        self._requests = Counter(
            "composer_requests",
            "Requests by the expert that answered, category, and how they ended.",
            ("expert", "category", "status"),
            registry=own,
        )
        self._refused = Counter(
            "composer_refused_requests",
            "Requests answered with an error of the gateway, by its code.",
            ("code",),
            registry=own,
        )
        self._fallbacks = Counter(
            "composer_fallbacks",
            "Attempts that failed and moved on down the ranking, by the expert that failed.",
            ("expert",),
            registry=own,
        )
        self._cache = Counter(
            "composer_score_cache",
            "Decisions by what the score cache knew.",
            ("state",),
            registry=own,
        )
        self._tokens = Counter(
            "composer_tokens",
            "Tokens of prompts and completions, by the expert that answered.",
            ("expert", "kind"),
            registry=own,
        )
        self._cost = Counter(
            "composer_cost_usd",
            "Price of the tokens, by the expert that answered.",
            ("expert",),
            registry=own,
        )
        self._feedback = Histogram(
            "composer_feedback_score",
            "Scores that clients gave, by the expert that answered.",
            ("expert",),
            registry=own,
            buckets=SCORES,
        )
        self._route = Histogram(
            "composer_route_seconds",
            "Time to a decision.",
            registry=own,
            buckets=ROUTE_SECONDS,
        )
        self._queue = Histogram(
            "composer_queue_seconds",
            "Of the time to a decision, the wait for the encoder.",
            registry=own,
            buckets=ROUTE_SECONDS,
        )
        self._first_token = Histogram(
            "composer_first_token_seconds",
            "From the request's arrival to the first token of the answer.",
            ("expert",),
            registry=own,
            buckets=SECONDS,
        )
        self._total = Histogram(
            "composer_request_seconds",
            "From the request's arrival to the end of the answer.",
            ("expert",),
            registry=own,
            buckets=SECONDS,
        )
        self._dropped = Counter(
            "composer_stats_dropped_decisions",
            "Decisions that are in the figures and in no list: too many waited to be committed.",
            registry=own,
        )
        self._faults = Counter(
            "composer_stats_faults",
            "Requests that could not be counted.",
            registry=own,
        )
        self._waiting = Gauge(
            "composer_stats_waiting_decisions",
            "Decisions that wait to be committed.",
            registry=own,
            multiprocess_mode="livesum",
        )
        self.in_flight = Gauge(
            "composer_requests_in_flight",
            "Requests being served.",
            registry=own,
            multiprocess_mode="livesum",
        )
        self.state_connected = Gauge(
            "composer_state_connected",
            "1 while the shared state can be reached.",
            registry=own,
            multiprocess_mode="livemin",
        )
        for gauge in (self._waiting, self.in_flight, self.state_connected):
            gauge.set(0)
        if folder:
            self._registry = CollectorRegistry()
            MultiProcessCollector(self._registry, path=folder)  # type: ignore[no-untyped-call]

    def record(self, decision: Decision, outcome: Outcome) -> None:
        try:
            self._count(decision, outcome)
        except Exception:
            # An answer must not fail because it can't be counted: that itself is counted.
            self.faults += 1

    def _count(self, decision: Decision, outcome: Outcome) -> None:
        key = (outcome.expert or NOBODY, decision.category, outcome.status, decision.cache)
        series = self._series.get(key)
        if series is None:
            series = self._new_series(*key)
        series.requests.inc()
        series.cache.inc()
        series.total.observe(outcome.total_ms / 1000)
        if outcome.first_token_ms is not None:
            series.first_token.observe(outcome.first_token_ms / 1000)
        if outcome.prompt_tokens:
            series.prompt_tokens.inc(outcome.prompt_tokens)
        if outcome.completion_tokens:
            series.completion_tokens.inc(outcome.completion_tokens)
        if outcome.cost_usd:
            series.cost.inc(outcome.cost_usd)
        self._route.observe(decision.route_ms / 1000)
        self._queue.observe(decision.queue_ms / 1000)
        for name, _ in outcome.failed:
            self._fallbacks.labels(name).inc()

    def _new_series(self, expert: str, category: str, status: str, cache: str) -> "_Series":
        if len(self._series) >= MAX_SERIES:
            expert = category = OTHER
        return self._series.setdefault(
            (expert, category, status, cache),
            _Series(
                self._requests.labels(expert, category, status),
                self._cache.labels(cache),
                self._first_token.labels(expert),
                self._total.labels(expert),
                self._tokens.labels(expert, "prompt"),
                self._tokens.labels(expert, "completion"),
                self._cost.labels(expert),
            ),
        )

    def refused(self, code: str) -> None:
        self._refused.labels(code).inc()

    def feedback(self, expert: str, score: float) -> None:
        """Count feedback as it is given; the statistics know which of it was replaced."""
        self._feedback.labels(expert).observe(score)

    def follow(self, backlog: Backlog, *, connected: bool) -> None:
        """Tell how the committing of statistics stands."""
        faults = backlog.faults + self.faults
        self._waiting.set(backlog.decisions)
        self._dropped.inc(backlog.dropped - self._told.dropped)
        self._faults.inc(faults - self._told.faults)
        self._told = Backlog(backlog.decisions, backlog.dropped, faults)
        self.state_connected.set(connected)

    def render(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self._registry)
