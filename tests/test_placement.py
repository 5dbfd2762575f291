"""Placement: best against every possibility on small cases, explained, stable, bounded in time."""

from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
from scipy.optimize import linprog

from experts.errors import InvalidRequest
from experts.placement import (
    Change,
    Device,
    Plan,
    Slot,
    Wanted,
    Weights,
    expected_loads,
    plan_placement,
)

Replica = tuple[str, Slot]


def best_value(
    devices: Sequence[Device],
    slots: Sequence[Slot],
    wanted: Sequence[Wanted],
    present: frozenset[Replica],
    weights: Weights,
) -> float:
    """The highest value of all sets of replicas that are allowed, by trying each."""
    by_id = {e.id: e for e in wanted}
    pairs = [
        (e.id, slot)
        for e in wanted
        for slot in slots
        if len(slot) == (by_id[e.base] if e.base else e).tensor_parallel
    ]
    values = []
    for chosen in product((False, True), repeat=len(pairs)):
        replicas = frozenset(pair for pair, there in zip(pairs, chosen, strict=True) if there)
        if _allowed(devices, by_id, replicas):
            values.append(value_of(devices, wanted, replicas, present, weights))
    return max(values)


def _allowed(
    devices: Sequence[Device], by_id: dict[str, Wanted], replicas: frozenset[Replica]
) -> bool:
    for device in devices:
        used = sum(by_id[e].bytes / len(s) for e, s in replicas if device.name in s)
        if used > device.budget_bytes:
            return False
    for wanted in by_id.values():
        slots = [s for e, s in replicas if e == wanted.id]
        if slots and not wanted.min_replicas <= len(slots) <= wanted.max_replicas:
            return False
        if wanted.base and any((wanted.base, s) not in replicas for s in slots):
            return False
    return True


def value_of(
    devices: Sequence[Device],
    wanted: Sequence[Wanted],
    replicas: frozenset[Replica],
    present: frozenset[Replica],
    weights: Weights,
) -> float:
    """What a set of replicas is worth with the best loads."""
    by_id = {e.id: e for e in wanted}
    total_bytes = sum(d.budget_bytes for d in devices)
    total_load = sum(e.load for e in wanted) or 1.0
    moved = sum(by_id[e].bytes for e, _ in replicas ^ present) / total_bytes
    kept = sum(by_id[e].bytes for e, _ in replicas) / total_bytes
    cost = weights.stability * moved + weights.thrift * kept
    ordered = sorted(replicas)
    gains = np.array([1.0 / total_load] * len(ordered) + [-weights.balance])
    rows, upper = [], []
    for device in devices:
        row = [1.0 / len(s) if device.name in s else 0.0 for _, s in ordered]
        rows.append([*row, -device.capacity])
        upper.append(0.0)
    for expert in wanted:
        rows.append([float(e == expert.id) for e, _ in ordered] + [0.0])
        upper.append(expert.load)
    bounds = [(0.0, None)] * len(ordered) + [(0.0, 1.0)]
    result = linprog(-gains, A_ub=rows, b_ub=upper, bounds=bounds)
    assert result.success
    return float(-result.fun) - cost


def value_of_plan(
    plan: Plan,
    devices: Sequence[Device],
    wanted: Sequence[Wanted],
    present: frozenset[Replica],
    weights: Weights,
) -> float:
    """The plan's value, computed from what it says."""
    by_id = {e.id: e for e in wanted}
    replicas = frozenset((p.expert, p.slot) for p in plan.placed)
    assert _allowed(devices, by_id, replicas)
    for device in devices:
        load = sum(p.load / len(p.slot) for p in plan.placed if device.name in p.slot)
        assert load <= device.capacity * min(plan.busiest, 1.0) + 1e-6
    total_bytes = sum(d.budget_bytes for d in devices)
    moved = sum(by_id[c.expert].bytes for c in plan.changes) / total_bytes
    kept = sum(by_id[p.expert].bytes for p in plan.placed) / total_bytes
    return (
        plan.served_share
        - weights.balance * plan.busiest
        - weights.stability * moved
        - weights.thrift * kept
    )


@pytest.mark.parametrize("seed", range(12))
def test_no_other_placement_is_better_when_every_one_is_tried(seed: int) -> None:
    rng = np.random.default_rng(seed)
    devices = [Device("a", int(rng.integers(15, 30))), Device("b", int(rng.integers(10, 25)), 0.7)]
    wanted = [
        Wanted(f"m{i}", int(rng.integers(5, 16)), float(rng.uniform(0, 0.8)), max_replicas=2)
        for i in range(2)
    ]
    wanted.append(
        Wanted("twice", int(rng.integers(2, 8)), 0.3, min_replicas=2, max_replicas=2)
        if seed % 3 == 0
        else Wanted("wide", int(rng.integers(10, 30)), 0.6, tensor_parallel=2)
    )
    wanted.append(Wanted("lora", 1, float(rng.uniform(0, 0.5)), base="m0", max_replicas=2))
    groups = [("a", "b")]
    slots: list[Slot] = [("a",), ("b",), *groups]
    present = frozenset([("m1", ("b",))]) if seed % 2 else frozenset()
    weights = Weights(balance=0.1, stability=0.1, thrift=0.01)
    plan = plan_placement(devices, wanted, groups=groups, present=present, weights=weights, gap=0.0)
    assert plan.optimal
    best = best_value(devices, slots, wanted, present, weights)
    assert value_of_plan(plan, devices, wanted, present, weights) == pytest.approx(best, abs=1e-5)


def test_adapter_goes_where_its_base_is_and_counts_its_own_bytes_alone() -> None:
    devices = [Device("a", 100), Device("b", 100)]
    wanted = [Wanted("base", 90, 0.2), Wanted("other", 80, 0.3)]
    wanted += [Wanted(f"lora{i}", 5, 0.1, base="base") for i in range(2)]
    plan = plan_placement(devices, wanted)
    slots = {p.expert: p.slot for p in plan.placed}
    assert slots["lora0"] == slots["lora1"] == slots["base"] != slots["other"]
    assert plan.served_share == pytest.approx(1.0)
    why = {p.expert: p.why for p in plan.placed}
    assert "its base 'base' is there" in why["lora0"]
    assert plan.used_bytes[slots["base"][0]] == 100


def test_hot_expert_gets_replicas_when_one_device_cannot_serve_it() -> None:
    devices = [Device(name, 100) for name in "abc"]
    plan = plan_placement(
        devices, [Wanted("hot", 60, 1.8, max_replicas=3), Wanted("cold", 60, 0.1)]
    )
    assert sorted(p.expert for p in plan.placed) == ["cold", "hot", "hot"]
    assert plan.served_share == pytest.approx(1.0)
    assert any("one of 2 replicas" in p.why for p in plan.placed)


def test_large_expert_is_split_over_a_group_that_can_share_it() -> None:
    devices = [Device(name, 100) for name in "abcd"]
    wanted = [Wanted("large", 180, 0.5, tensor_parallel=2), Wanted("small", 50, 0.5)]
    plan = plan_placement(devices, wanted, groups=[("a", "b"), ("c", "d")])
    slots = {p.expert: p.slot for p in plan.placed}
    assert slots["large"] in {("a", "b"), ("c", "d")}
    assert not set(slots["small"]) & set(slots["large"])


def test_nothing_moves_when_another_placement_is_hardly_better() -> None:
    devices = [Device("a", 100), Device("b", 100)]
    wanted = [Wanted("x", 60, 0.40), Wanted("y", 60, 0.40), Wanted("z", 60, 0.41)]
    present = [("x", ("b",)), ("y", ("a",))]
    plan = plan_placement(devices, wanted, present=present)
    assert plan.changes == ()
    assert all("it is there already" in p.why for p in plan.placed)
    shifted = [*wanted[:2], Wanted("z", 60, 0.95)]
    changes = plan_placement(devices, shifted, present=present).changes
    assert [change.kind for change in changes] == ["stop", "start"]
    assert changes[1].expert == "z"


def test_bases_start_before_and_stop_after_what_stands_on_them() -> None:
    devices = [Device("a", 100)]
    old = [("base", ("a",)), ("lora", ("a",))]
    wanted = [Wanted("base", 90, 0.0), Wanted("lora", 5, 0.0, base="base")]
    wanted += [Wanted("base2", 90, 0.5), Wanted("lora2", 5, 0.4, base="base2")]
    plan = plan_placement(devices, wanted, present=old)
    slot = ("a",)
    assert plan.changes == (
        Change("stop", "lora", slot),
        Change("stop", "base", slot),
        Change("start", "base2", slot),
        Change("start", "lora2", slot),
    )


def test_each_expert_without_a_place_is_told_why() -> None:
    gb = 10**9
    devices = [Device("a", 40 * gb), Device("b", 30 * gb)]
    wanted = [
        Wanted("huge", 50 * gb, 0.9),
        Wanted("lora", gb, 0.1, base="huge"),
        Wanted("idle", gb, 0.0),
        Wanted("hot", 30 * gb, 0.9),
        Wanted("warm", 30 * gb, 0.8),
        Wanted("cold", 25 * gb, 0.1),
    ]
    plan = plan_placement(devices, wanted)
    assert {p.expert for p in plan.placed} == {"hot", "warm"}
    assert plan.unplaced == {
        "huge": "it needs 50.0 GB on a device, and the largest has 40.0 GB",
        "lora": "its base 'huge' has no place",
        "idle": "nothing is asked of it",
        "cold": "it needs 25.0 GB on a device, and 10.0 GB is free: "
        "what is there serves more load in it",
    }


def test_busy_expert_is_told_what_part_of_its_load_is_served() -> None:
    plan = plan_placement([Device("a", 10)], [Wanted("hot", 10, 2.0)])
    assert plan.served_share == pytest.approx(0.5)
    assert plan.short["hot"].startswith("1.000 of its load of 2.000")


def test_placement_is_never_worse_than_the_present_one_when_time_is_short() -> None:
    rng = np.random.default_rng(3)
    devices = [Device(f"gpu{i}", 72) for i in range(8)]
    wanted = [
        Wanted(f"e{i}", int(rng.integers(4, 34)), float(rng.pareto(1.1) / 20)) for i in range(150)
    ]
    first = plan_placement(devices, wanted, time_limit_s=3.0)
    present = frozenset((p.expert, p.slot) for p in first.placed)
    hurried = plan_placement(devices, wanted, present=present, time_limit_s=0.05)
    weights = Weights()
    stay = value_of(devices, wanted, present, present, weights)
    assert value_of_plan(hurried, devices, wanted, present, weights) >= stay - 1e-6


def test_loads_follow_from_category_shares() -> None:
    loads = expected_loads(
        {"maths": 0.6, "code": 0.4},
        {"maths": {"m": 0.5, "g": 0.5}, "code": {"g": 1.0}},
        rate=10.0,
        device_s={"m": 0.1, "g": 0.2, "idle": 1.0},
    )
    assert loads == pytest.approx({"m": 0.3, "g": 1.4, "idle": 0.0})


@pytest.mark.parametrize(
    ("wanted", "groups", "param"),
    [
        ([Wanted("x", 0, 0.1)], [], "bytes"),
        ([Wanted("x", 1, 0.1), Wanted("x", 1, 0.1)], [], "id"),
        ([Wanted("x", 1, 0.1, base="who")], [], "base"),
        ([Wanted("x", 1, 0.1, tensor_parallel=2)], [], "tensor_parallel"),
        ([Wanted("x", 1, 0.1, min_replicas=2)], [], "min_replicas"),
        ([Wanted("x", 1, 0.1)], [("a", "who")], "groups"),
    ],
)
def test_contradiction_is_named(wanted: list[Wanted], groups: list[Slot], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        plan_placement([Device("a", 10)], wanted, groups=groups)
    assert caught.value.param == param
