"""Prometheus metrics of one worker, and of several that share a folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from composer.stats import Backlog
from gateway import metrics as module
from gateway.metrics import Metrics
from tests.known_outcomes import known

WORKER = """
import sys
from gateway.metrics import Metrics
from composer.stats import Backlog
from tests.known_outcomes import known
metrics = Metrics()
for _ in range(int(sys.argv[1])):
    metrics.record(*known("a", total_ms=30.0, prompt_tokens=7))
metrics.in_flight.set(2)
metrics.follow(Backlog(5, 1, 0), connected=sys.argv[2] == "connected")
metrics.feedback("a", 0.5)
sys.stdout.write(metrics.render().decode())
"""


def values(text: str) -> dict[str, float]:
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def worker(folder: Path, name: str, requests: int, state: str = "connected") -> dict[str, float]:
    """Run a worker to its end; returns what it told last."""
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder), "COMPOSER_WORKER": name}
    argv = [sys.executable, "-c", WORKER, str(requests), state]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=True)
    return values(done.stdout)


def test_any_worker_tells_the_sums_of_all_and_goes_on_when_started_again(tmp_path: Path) -> None:
    folder = tmp_path / "metrics"
    requests = 'composer_requests_total{category="maths",expert="a",status="ok"}'
    worker(folder, "gateway-1", 3)
    two = worker(folder, "gateway-2", 4, "away")
    assert two[requests] == 7
    assert two['composer_tokens_total{expert="a",kind="prompt"}'] == 49
    assert two['composer_request_seconds_bucket{expert="a",le="0.05"}'] == 7
    assert two['composer_feedback_score_count{expert="a"}'] == 2
    assert two["composer_requests_in_flight"] == 4
    assert two["composer_stats_waiting_decisions"] == 10
    assert two["composer_stats_dropped_decisions_total"] == 2
    assert two["composer_state_connected"] == 0
    again = worker(folder, "gateway-2", 5)
    assert again[requests] == 12
    assert again["composer_requests_in_flight"] == 4
    assert again["composer_state_connected"] == 1
    assert len({path.name.rpartition("_")[2] for path in folder.iterdir()}) == 2


def test_one_worker_tells_tokens_cost_feedback_and_backlog() -> None:
    metrics = Metrics()
    metrics.record(
        *known("a", queue_ms=3.0, prompt_tokens=7, completion_tokens=2, cost_usd=0.25, failed=())
    )
    metrics.feedback("a", 1.0)
    metrics.follow(Backlog(3, 2, 1), connected=True)
    metrics.follow(Backlog(0, 2, 1), connected=True)
    told = values(metrics.render().decode())
    assert told['composer_tokens_total{expert="a",kind="completion"}'] == 2
    assert told['composer_cost_usd_total{expert="a"}'] == 0.25
    assert told["composer_queue_seconds_sum"] == pytest.approx(0.003)
    assert told['composer_feedback_score_sum{expert="a"}'] == 1
    assert told["composer_stats_waiting_decisions"] == 0
    assert told["composer_stats_dropped_decisions_total"] == 2
    assert told["composer_stats_faults_total"] == 1


def test_record_raises_nothing_when_it_gets_what_it_can_not_count() -> None:
    metrics = Metrics()
    metrics.record(known()[0], None)  # type: ignore[arg-type]
    assert metrics.faults == 1


def test_series_stay_bounded_when_names_keep_coming(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SERIES", 10)
    metrics = Metrics()
    for index in range(100):
        metrics.record(*known(f"expert-{index}"))
    told = values(metrics.render().decode())
    requests = {name: n for name, n in told.items() if name.startswith("composer_requests_total")}
    assert len(requests) == 11
    assert sum(requests.values()) == 100
