"""Counters of the engine, in Prometheus' text format."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from experts.engines.embedded.requests import FinishReason

_STEP_BUCKETS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12)
_REASONS: tuple[FinishReason, ...] = ("stop", "length", "cancelled", "error")


class Metrics:
    """One engine's metrics in a registry of their own; safe to use from several threads."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._running = self._gauge("requests_running", "Requests that hold a row of the batch")
        self._waiting = self._gauge("requests_waiting", "Requests that wait for a row")
        self._cache_bytes = self._gauge("cache_bytes", "Memory of the key-value cache")
        self._finished = self._counter("requests_finished", "Requests ended, by reason", "reason")
        self._cancelled = self._counter("requests_cancelled", "Requests whose client hung up")
        self._rejected = self._counter("requests_rejected", "Requests refused, by code", "code")
        self._prompt = self._counter("prompt_tokens", "Prompt tokens of accepted requests")
        self._generated = self._counter("generated_tokens", "Tokens generated")
        self._steps = Histogram(
            "engine_step_seconds",
            "Duration of one step of the batch",
            registry=self._registry,
            buckets=_STEP_BUCKETS,
        )
        for reason in _REASONS:
            self._finished.labels(reason)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"engine_{name}", text, registry=self._registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"engine_{name}", text, labels, registry=self._registry)

    def step(
        self, *, seconds: float, tokens: int, running: int, waiting: int, cache_bytes: int
    ) -> None:
        """Record one step and the state of the batch after it."""
        self._steps.observe(seconds)
        self._generated.inc(tokens)
        self._running.set(running)
        self._waiting.set(waiting)
        self._cache_bytes.set(cache_bytes)

    def accepted(self, prompt_tokens: int) -> None:
        self._prompt.inc(prompt_tokens)

    def rejected(self, code: str) -> None:
        self._rejected.labels(code).inc()

    def finished(self, reason: FinishReason) -> None:
        self._finished.labels(reason).inc()
        if reason == "cancelled":
            self._cancelled.inc()

    def render(self) -> bytes:
        """All metrics as `GET /metrics` answers them."""
        return generate_latest(self._registry)
