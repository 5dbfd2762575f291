"""The simulator: its traces, its clock, the bound that no policy passes, and `coe simulate`."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from composer.cli import main
from composer.cli.simulate import GENERATORS as NAMED
from composer.cli.simulate import POLICIES
from eval.simulate.bound import offline_bound
from eval.simulate.consistency import segment_hit_rate
from eval.simulate.fleet import Fleet, default_fleet, read_fleet
from eval.simulate.study import MANAGERS, compare, summarise
from eval.simulate.traces import GENERATORS, Trace, generate, read_decisions
from eval.simulate.world import World
from experts.errors import DataError
from experts.residency import Device, Expert
from tests.residency_audit import Audit

NAMES = [f"e{i}" for i in range(30)]


def trace_of(requests: Sequence[tuple[float, str]], service_s: float = 1.0) -> Trace:
    at = np.array([request[0] for request in requests])
    return Trace(at, tuple(request[1] for request in requests), np.full(len(at), service_s))


def small_fleet(sizes: Sequence[int], budget: int, devices: int = 1) -> Fleet:
    return Fleet(
        devices=tuple(Device(f"gpu{i}", budget) for i in range(devices)),
        experts=tuple(Expert(f"e{i}", size, 0, 0.5, 2.0, 0.1) for i, size in enumerate(sizes)),
        host_bytes=sum(sizes),
    )


@pytest.mark.parametrize("name", GENERATORS)
def test_trace_is_the_same_for_a_seed_and_another_for_the_next(name: str) -> None:
    first = generate(name, 7, NAMES, rate=4.0, seconds=1200.0)
    again = generate(name, 7, NAMES, rate=4.0, seconds=1200.0)
    other = generate(name, 8, NAMES, rate=4.0, seconds=1200.0)
    assert first.experts == again.experts
    assert (first.at == again.at).all()
    assert first.experts != other.experts
    assert (np.diff(first.at) >= 0).all()
    assert 0 <= first.at[0] <= first.at[-1] < 1200.0
    assert len(first) == pytest.approx(4800, rel=0.2)


def test_popularity_follows_zipfs_law() -> None:
    trace = generate("zipf-1.1", 1, NAMES, rate=50.0, seconds=1000.0)
    counts = [count for _, count in Counter(trace.experts).most_common(8)]
    slope = np.polyfit(np.log(np.arange(1, 9)), np.log(counts), 1)[0]
    assert slope == pytest.approx(-1.1, abs=0.1)


def test_who_is_popular_changes_when_there_is_drift_and_not_without() -> None:
    def overlap(name: str) -> float:
        trace = generate(name, 1, NAMES, rate=20.0, seconds=2000.0)
        half = len(trace) // 2
        ends = (trace.experts[: half // 2], trace.experts[-half // 2 :])
        tops = [{e for e, _ in Counter(part).most_common(5)} for part in ends]
        return len(tops[0] & tops[1]) / 5

    assert overlap("zipf-1.1") >= 0.8
    assert overlap("drift") <= 0.6


@pytest.mark.parametrize("policy", POLICIES)
def test_simulated_hosts_books_agree_with_the_managers(policy: str) -> None:
    fleet = default_fleet()
    names = [expert.id for expert in fleet.experts]
    trace = generate("bursts", 2, names, rate=4.0, seconds=300.0)
    manager = MANAGERS[policy](fleet, trace)
    experts = [holding.expert for holding in manager.memory.holdings.values()]
    audit = Audit(fleet.devices, experts, fleet.host_bytes)
    for holding in manager.memory.holdings.values():
        if holding.device is not None:
            audit.on[holding.device].add(holding.id)
            audit.resident[holding.id] = 0.0
    run = World(fleet, trace, manager, observer=audit.saw).run()
    assert not audit.waiting
    assert not audit.running
    assert len(audit.over) == len(trace)
    assert len(audit.loads) == len(run.load_times)
    assert (run.waited_s >= 0).all()
    assert not run.waited_s[run.hit].any()
    if policy == "forecast":
        # Nobody leaves before the dwell time, so loads are bounded by the length of the trace.
        load_s = {expert.id: expert.load_s for expert in fleet.experts}
        assert all(stay >= 0.5 * load_s[name] - 1e-6 for name, stay in audit.stays)
        for name, loads in Counter(name for _, name in audit.loads).items():
            assert loads <= 1 + run.end / (1.5 * load_s[name])


def test_run_is_the_same_when_it_is_repeated() -> None:
    fleet = default_fleet()
    names = [expert.id for expert in fleet.experts]
    trace = generate("drift", 3, names, rate=4.0, seconds=200.0)
    logs: list[list[object]] = [[], []]
    for log in logs:
        manager = MANAGERS["forecast"](fleet, trace)
        World(fleet, trace, manager, observer=lambda *seen, log=log: log.append(seen)).run()
    assert logs[0] == logs[1]


def best_offline(fleet: Fleet, trace: Trace) -> float:
    """The highest hit rate of all ways to keep experts in one memory, loads taking no time."""
    sizes = {expert.id: expert.resident_bytes for expert in fleet.experts}

    def fitting(experts: Sequence[str]) -> list[frozenset[str]]:
        return [
            frozenset(kept)
            for n in range(len(experts) + 1)
            for kept in combinations(experts, n)
            if sum(sizes[e] for e in kept) <= fleet.capacity
        ]

    best = dict.fromkeys(fitting(sorted(sizes)), 0)
    for expert in trace.experts:
        after: dict[frozenset[str], int] = {}
        for kept, hits in best.items():
            got = hits + (expert in kept)
            for choice in fitting(sorted(kept | {expert})):
                after[choice] = max(after.get(choice, 0), got)
        best = after
    return max(best.values()) / len(trace)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(1, 5), min_size=2, max_size=4),
    st.integers(4, 10),
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 30)), min_size=2, max_size=14),
)
def test_bound_is_at_least_the_best_of_all_offline_choices(
    sizes: list[int], budget: int, steps: list[tuple[int, int]]
) -> None:
    fleet = small_fleet(sizes, budget)
    at = np.cumsum([gap for _, gap in steps])
    names = [f"e{which % len(sizes)}" for which, _ in steps]
    trace = trace_of(list(zip(at.tolist(), names, strict=True)))
    bound = offline_bound(fleet, trace, [], windows=5)
    assert bound >= best_offline(fleet, trace) - 1e-9


def test_bound_is_exact_when_one_of_two_experts_fits() -> None:
    fleet = small_fleet([10, 10], 10)
    trace = trace_of([(float(i), f"e{i % 2}") for i in range(1, 101)])
    # Alternating requests: whoever is kept is hit each time, and that is every other request.
    assert offline_bound(fleet, trace, []) == pytest.approx(0.5, abs=0.02)
    assert best_offline(fleet, trace) == 0.5


@pytest.mark.parametrize("name", GENERATORS)
def test_no_policy_passes_the_bound(name: str) -> None:
    fleet = small_fleet([3, 4, 6, 8, 5] * 6, 20, devices=2)
    trace = generate(name, 5, [e.id for e in fleet.experts], rate=1.0, seconds=400.0)
    trial = compare(fleet, trace, POLICIES, deadline_s=60.0)
    for figures in trial.figures.values():
        assert figures.hit_rate <= trial.offline_bound
    assert trial.offline_bound < 1.0


def test_forecast_waits_less_than_lru_when_traces_are_not_those_it_was_tuned_on() -> None:
    fleet = default_fleet()
    names = [expert.id for expert in fleet.experts]
    for name in ("zipf-1.1", "diurnal"):
        trials = [
            compare(
                fleet,
                generate(name, seed, names, rate=3.0, seconds=600.0),
                ("forecast", "lru"),
                deadline_s=60.0,
            )
            for seed in range(2000, 2003)
        ]
        assert summarise(name, trials).against_lru["forecast"]["wait_mean"].mean < 0


def test_segment_hit_rate_counts_the_most_asked_of_each_segment() -> None:
    experts = ["a", "a", "b", "c", "b", "b", "b", "d"]
    assert segment_hit_rate(experts, 1, segment=4) == (2 + 3) / 8
    assert segment_hit_rate(experts, 2, segment=4) == (3 + 4) / 8
    assert segment_hit_rate(experts, 1, segment=3) == (2 + 2 + 1) / 8


def decision(at: float, expert: str, total_ms: float, answered_by: str | None = None) -> str:
    return json.dumps(
        {"at": at, "expert": expert, "answered_by": answered_by, "outcome": {"total_ms": total_ms}}
    )


def test_recorded_decisions_become_requests_at_their_arrival(tmp_path: Path) -> None:
    path = tmp_path / "decisions.jsonl"
    lines = [decision(105.0, "a", 2000.0, "b"), decision(104.0, "a", 3000.0), '{"cursor": "1-0"}']
    path.write_text("\n".join(lines))
    trace = read_decisions(path)
    assert trace.experts == ("a", "b")
    assert trace.at.tolist() == [0.0, 2.0]
    assert trace.service_s.tolist() == [3.0, 2.0]


@pytest.mark.parametrize("line", ["{", "[]", '{"at": 1}', decision(float("nan"), "a", 1.0)])
def test_line_that_is_no_decision_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "decisions.jsonl"
    path.write_text(decision(1.0, "a", 1.0) + "\n" + line)
    with pytest.raises(DataError, match=r"decisions\.jsonl:2: not a decision"):
        read_decisions(path)


FLEET = """
devices: [{name: gpu0, budget_gb: 24}]
host_gb: 64
link_gb_s: 10
experts:
  - {id: maths, weights_gb: 14, load_s: 2.5, serves: [algebra]}
  - {id: code, weights_gb: 7, kv_gb: 1}
"""


def test_measured_load_times_replace_bytes_over_bandwidth(tmp_path: Path) -> None:
    path = tmp_path / "fleet.yaml"
    path.write_text(FLEET)
    maths, code = read_fleet(path).experts
    assert (maths.load_s, code.load_s) == (2.5, 0.7)
    assert code.resident_bytes == 8 * 10**9
    path.write_text(FLEET.replace("weights_gb: 7", "weights_gb: -7"))
    with pytest.raises(DataError, match=r"experts\.1\.weights_gb"):
        read_fleet(path)
    path.write_text(FLEET.replace("code", "maths"))
    with pytest.raises(DataError, match="two experts have the same name"):
        read_fleet(path)


def test_command_offers_what_there_is() -> None:
    assert tuple(GENERATORS) == NAMED
    assert tuple(MANAGERS) == POLICIES


def test_command_compares_policies_over_seeds() -> None:
    arguments = ["simulate", "--generator", "zipf-1.4", "--seconds", "120", "--rate", "2"]
    result = CliRunner().invoke(main, [*arguments, "--seeds", "2", "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["settings"]["seeds"] == [1000, 1001]
    (found,) = report["results"]
    assert set(found["figures"]) == set(POLICIES)
    assert set(found["against_lru"]) == {"forecast", "static"}
    for policy, figures in found["figures"].items():
        distance = found["offline_bound"] - figures["hit_rate"]
        assert found["bound_distance"][policy] == pytest.approx(distance)
    table = CliRunner().invoke(main, [*arguments, "--seeds", "2"]).stdout
    assert "hit rate of any policy at most" in table
    assert "mean wait less LRU's" in table


def test_command_replays_a_recorded_log_on_a_given_fleet(tmp_path: Path) -> None:
    log, fleet = tmp_path / "decisions.jsonl", tmp_path / "fleet.yaml"
    fleet.write_text(FLEET)
    log.write_text(
        "\n".join(decision(i, ("maths", "algebra", "code")[i % 3], 500.0) for i in range(100))
    )
    result = CliRunner().invoke(main, ["simulate", str(log), "--fleet", str(fleet), "--json"])
    assert result.exit_code == 0, result.output
    (found,) = json.loads(result.stdout)["results"]
    assert found["requests"] == 100
    assert found["figures"]["forecast"]["refused"] == 0
    log.write_text(decision(1.0, "law", 500.0))
    result = CliRunner().invoke(main, ["simulate", str(log), "--fleet", str(fleet)])
    assert result.exit_code == 1
    assert "the fleet has no expert 'law'" in result.stderr


def test_long_waits_are_counted_when_requests_are_refused() -> None:
    fleet = small_fleet([10, 10], 10)
    fleet = replace(fleet, experts=tuple(replace(e, cold_load_s=90.0) for e in fleet.experts))
    trace = trace_of([(1.0, "e0"), (2.0, "e1")])
    run = World(fleet, trace, MANAGERS["forecast"](fleet, trace), deadline_s=30.0).run()
    assert run.refused.all()
    assert not np.isfinite(run.before_load_s).all()
