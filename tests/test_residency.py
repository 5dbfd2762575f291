"""The residency manager: what it never does, and what it does when."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experts.residency import (
    Action,
    Arrived,
    Device,
    Dispatch,
    Drop,
    Ended,
    Event,
    Expert,
    FallBack,
    Forecast,
    LeastRecentlyUsed,
    Load,
    Loaded,
    LoadFailed,
    Lost,
    Refuse,
    ResidencyManager,
    Ticked,
    Tier,
    Unload,
    Unloaded,
)
from experts.residency.policies import ForecastSettings, Policy
from tests.residency_audit import Audit

GONE = float("inf")


def expert(name: str, size: int = 10, **more: object) -> Expert:
    times = {"load_s": 1.0, "cold_load_s": 4.0, "park_s": 0.5}
    return Expert(name, weight_bytes=size, kv_bytes=0, **{**times, **more})  # type: ignore[arg-type]


class Played:
    """A manager, and a host of the test's that plays events to it."""

    def __init__(
        self,
        budgets: list[int],
        experts: list[Expert],
        policy: Policy | None = None,
        host_bytes: int = 1000,
        **more: object,
    ) -> None:
        devices = [Device(f"gpu{i}", budget) for i, budget in enumerate(budgets)]
        self.audit = Audit(devices, experts, host_bytes)
        self.manager = ResidencyManager(
            devices,
            experts,
            policy or Forecast([e.id for e in experts], ForecastSettings(most_ready=0)),
            host_bytes=host_bytes,
            **more,  # type: ignore[arg-type]
        )
        for name, device in (more.get("resident") or {}).items():  # type: ignore[attr-defined]
            self.audit.on[device].add(name)
            self.audit.resident[name] = 0.0
        self.audit.parked |= set(more.get("parked") or ())  # type: ignore[call-overload]
        self.log: list[tuple[float, Action]] = []

    def at(self, now: float, event: Event) -> list[Action]:
        step = self.manager.step(now, event)
        self.audit.saw(now, event, step.actions)
        self.log += [(now, action) for action in step.actions]
        return list(step.actions)


policies = st.sampled_from(["forecast", "roomy", "lru"])


def _policy(name: str, experts: list[Expert]) -> Policy:
    if name == "lru":
        return LeastRecentlyUsed()
    rooms = 1 if name == "roomy" else 0
    return Forecast([e.id for e in experts], ForecastSettings(most_ready=rooms))


@st.composite
def fleets(draw: st.DrawFn) -> tuple[list[int], list[Expert], int]:
    budgets = draw(st.lists(st.integers(10, 40), min_size=1, max_size=3))
    experts = [
        expert(
            f"e{i}",
            draw(st.integers(1, 20)),
            load_s=draw(st.sampled_from([0.0, 0.5, 2.0])),
            cold_load_s=draw(st.sampled_from([2.0, 5.0])),
            park_s=draw(st.sampled_from([0.0, 0.5])),
        )
        for i in range(draw(st.integers(1, 6)))
    ]
    if max(e.resident_bytes for e in experts) < max(budgets) and draw(st.booleans()):
        small = min(experts, key=lambda e: e.resident_bytes)
        if small.resident_bytes + max(e.resident_bytes for e in experts) <= max(budgets):
            experts.append(expert("pinned", small.resident_bytes, pinned=True))
    return budgets, experts, draw(st.sampled_from([0, 15, 100]))


@settings(max_examples=150, deadline=None)
@given(fleets(), policies, st.data())
def test_no_rule_is_broken_and_nobody_is_forgotten_when_anything_happens_in_any_order(
    fleet: tuple[list[int], list[Expert], int], policy: str, data: st.DataObject
) -> None:
    budgets, experts, host_bytes = fleet
    played = Played(budgets, experts, _policy(policy, experts), host_bytes)
    audit = played.audit
    now, arrived = 0.0, 0
    for _ in range(data.draw(st.integers(1, 60))):
        now += data.draw(st.sampled_from([0.0, 0.1, 1.0, 7.0]))
        event = data.draw(st.sampled_from(_possible(audit, experts, arrived, now)))
        arrived += isinstance(event, Arrived)
        played.at(now, event)
    for _ in range(400):
        # Nothing new: what runs ends, what moves arrives, and the rest is served or given up.
        events = [e for e in _possible(audit, experts, arrived, now) if not isinstance(e, Arrived)]
        pending = [e for e in events if isinstance(e, Ended | Loaded | Unloaded)]
        pending = [e for e in pending if not isinstance(e, Ended) or e.request in audit.running]
        now += 0.3
        played.at(now, pending[0] if pending else Ticked())
    assert not audit.waiting
    assert not audit.running
    if policy != "lru":
        slowest = {e.id: min(e.load_s, e.cold_load_s) for e in experts}
        assert all(stay >= slowest[name] for name, stay in audit.stays)


def _possible(audit: Audit, experts: list[Expert], n: int, now: float) -> list[Event]:
    """What a host could report next."""
    events: list[Event] = [Ticked()]
    events += [Arrived(n, e.id, now + 20.0, fallback=n % 2 == 0) for e in experts]
    events += [Ended(request) for request in (*audit.running, *audit.waiting)]
    for name in audit.loading:
        events += [Loaded(name), LoadFailed(name)]
    events += [Unloaded(name) for name in audit.unloading]
    alive = {*audit.resident, *audit.unloading, *audit.parked} - set(audit.loading)
    return [*events, *(Lost(name) for name in sorted(alive))]


def test_waiting_requests_go_together_when_their_expert_is_loaded() -> None:
    played = Played([10], [expert("a")])
    assert played.at(0.0, Arrived(1, "a", GONE)) == [Load("a", "gpu0", Tier.DISK)]
    assert played.at(1.0, Arrived(2, "a", GONE)) == []
    assert played.at(4.0, Loaded("a")) == [Dispatch(1, "a"), Dispatch(2, "a")]
    assert played.at(5.0, Arrived(3, "a", GONE)) == [Dispatch(3, "a")]


def test_next_expert_is_woken_while_the_current_one_works() -> None:
    played = Played([20], [expert("a"), expert("b")], resident={"a": "gpu0"}, parked=["b"])
    played.at(0.0, Arrived(1, "a", GONE))
    assert played.at(0.1, Arrived(2, "b", GONE)) == [Load("b", "gpu0", Tier.PARKED)]
    assert played.at(0.2, Arrived(3, "a", GONE)) == [Dispatch(3, "a")]


def test_busy_expert_finishes_before_it_leaves_when_another_needs_its_memory() -> None:
    played = Played([10], [expert("a"), expert("b")], resident={"a": "gpu0"})
    played.at(10.0, Arrived(1, "a", GONE))
    assert played.at(20.0, Arrived(2, "b", GONE)) == []
    actions = played.at(21.0, Ticked())
    assert not any(isinstance(action, Unload) for action in actions)
    assert played.at(25.0, Ended(1)) == [Unload("a", "gpu0", Tier.PARKED)]
    assert played.at(25.5, Unloaded("a")) == [Load("b", "gpu0", Tier.DISK)]


def test_switch_goes_on_when_one_that_left_has_come_back_on_another_device() -> None:
    experts = [expert("a"), expert("b"), expert("large", 20)]
    played = Played([20, 10], experts, resident={"a": "gpu0", "b": "gpu0"})
    played.at(10.0, Arrived(1, "b", GONE))
    assert played.at(20.0, Arrived(2, "large", GONE)) == [Unload("a", "gpu0", Tier.PARKED)]
    played.at(20.5, Unloaded("a"))
    assert played.at(21.0, Arrived(3, "a", GONE)) == [Load("a", "gpu1", Tier.PARKED)]
    assert played.at(22.0, Ended(1)) == [Unload("b", "gpu0", Tier.PARKED)]
    assert played.at(22.5, Unloaded("b")) == [Load("large", "gpu0", Tier.DISK)]


def test_victim_stays_and_serves_when_nobody_waits_for_its_memory_any_more() -> None:
    played = Played([10], [expert("a"), expert("b")], resident={"a": "gpu0"})
    played.at(10.0, Arrived(1, "a", GONE))
    played.at(20.0, Arrived(2, "b", GONE))
    played.at(21.0, Ticked())
    played.at(22.0, Arrived(3, "a", GONE))
    assert Dispatch(3, "a") in played.at(23.0, Ended(2))


def test_coldest_expert_makes_room_when_memory_is_full() -> None:
    names = ["hot", "cold", "new"]
    played = Played(
        [20], [expert(n) for n in names], resident={"hot": "gpu0", "cold": "gpu0"}, parked=["new"]
    )
    for i in range(20):
        played.at(100.0 + i, Arrived(i, "hot", GONE))
        played.at(100.5 + i, Ended(i))
    # The cold one was used last, so the least recently used is the hot one.
    played.at(120.0, Arrived(100, "cold", GONE))
    played.at(120.5, Ended(100))
    played.at(121.0, Arrived(101, "new", GONE))
    played.at(122.0, Ticked())
    assert [a for _, a in played.log if isinstance(a, Unload)] == [
        Unload("cold", "gpu0", Tier.PARKED)
    ]


@pytest.mark.parametrize(("deadline_s", "most_loads"), [(60.0, 14), (12.0, 26)])
def test_two_experts_take_turns_within_deadlines_when_memory_holds_one(
    deadline_s: float, most_loads: int
) -> None:
    experts = [expert("a", load_s=2.0), expert("b", load_s=2.0)]
    played = Played([10], experts, parked=["a", "b"])
    audit = played.audit
    now = 0.0
    for tick in range(480):
        now += 0.25
        if tick < 400:
            played.at(now, Arrived(tick, "ab"[tick % 2], now + deadline_s))
        for request in list(audit.running):
            played.at(now, Ended(request))
        for name in list(audit.unloading):
            played.at(now, Unloaded(name))
        for name in list(audit.loading):
            if now - audit.loads[-1][0] >= 2.0:
                played.at(now, Loaded(name))
        played.at(now, Ticked())
    assert [kind for _, kind in audit.over] == ["dispatched"] * 400
    # In a hundred seconds; first come, first served would load four times a second.
    assert 4 <= len(audit.loads) <= most_loads


@pytest.mark.parametrize("fallback", [True, False])
def test_request_is_given_up_when_its_expert_cannot_be_there_in_time(fallback: bool) -> None:
    played = Played([10], [expert("a"), expert("b")], resident={"a": "gpu0"})
    played.at(1.0, Arrived(1, "a", GONE))
    played.at(1.0, Arrived(2, "b", 11.0, fallback=fallback))
    # Loading from disk takes four seconds.
    assert played.at(6.9, Ticked()) == []
    (action,) = played.at(7.0, Ticked())
    if fallback:
        assert isinstance(action, FallBack)
    else:
        assert isinstance(action, Refuse)
        assert action.retry_after_s >= 4.0
    assert action.request == 2
    assert "'b' is not in memory" in action.reason


def test_request_is_refused_at_once_when_its_expert_fits_nowhere() -> None:
    played = Played([10], [expert("a", 11)])
    (action,) = played.at(0.0, Arrived(1, "a", GONE))
    assert isinstance(action, Refuse)
    assert "fits on no device" in action.reason


def test_load_is_tried_again_later_and_later_when_it_fails() -> None:
    played = Played([10], [expert("a")])
    played.at(0.0, Arrived(1, "a", GONE))
    pauses = []
    now = 0.0
    for _ in range(4):
        played.at(now, LoadFailed("a"))
        failed = now
        while not played.audit.loading:
            now += 0.25
            played.at(now, Ticked())
        pauses.append(now - failed)
    assert pauses == [1.0, 2.0, 4.0, 8.0]
    assert played.at(now, Loaded("a")) == [Dispatch(1, "a")]


def test_expert_is_loaded_again_for_those_who_wait_when_its_process_has_died() -> None:
    played = Played([10], [expert("a"), expert("b")], resident={"a": "gpu0"})
    played.at(1.0, Arrived(1, "a", GONE))
    assert played.at(2.0, Lost("a")) == []
    with pytest.raises(ValueError, match="request 1 is not known"):
        played.manager.step(2.0, Ended(1))
    assert played.at(2.5, Arrived(2, "a", GONE)) == []
    assert played.at(3.0, Ticked()) == [Load("a", "gpu0", Tier.DISK)]


def test_pinned_experts_are_loaded_at_the_start_where_there_is_room() -> None:
    pins = [expert("p", 10, pinned=True), expert("q", 8, pinned=True)]
    played = Played([12, 15], [*pins, expert("a", 5)])
    assert set(played.at(0.0, Ticked())) == {
        Load("p", "gpu1", Tier.DISK),
        Load("q", "gpu0", Tier.DISK),
    }
    with pytest.raises(ValueError, match="pinned expert 'q' does not fit"):
        Played([12], pins)


def test_parked_expert_that_is_asked_for_less_is_dropped_when_host_memory_is_full() -> None:
    experts = [expert(name) for name in ("a", "b", "rare")]
    played = Played([10], experts, host_bytes=10, resident={"a": "gpu0"}, parked=["rare"])
    for i in range(5):
        played.at(10.0 + i, Arrived(i, "a", GONE))
        played.at(10.5 + i, Ended(i))
    played.at(20.0, Arrived(9, "b", GONE))
    played.at(30.0, Ticked())
    assert [a for _, a in played.log if isinstance(a, Drop)] == [Drop("rare")]
    assert Unload("a", "gpu0", Tier.PARKED) in [a for _, a in played.log]


def test_room_is_made_before_it_is_needed_when_misses_are_likelier_than_a_return() -> None:
    experts = [expert(name) for name in "abcd"]
    policy = Forecast("abcd", ForecastSettings(most_ready=1))
    played = Played([10], experts, policy, parked=["b", "c", "d"])
    played.at(0.0, Arrived(0, "a", GONE))
    played.at(4.0, Loaded("a"))
    played.at(5.0, Ended(0))
    for i in range(1, 9):
        played.at(5.0, Arrived(i, "bcd"[i % 3], GONE))
        played.at(5.0, Ended(i))
    assert played.at(9.0, Ticked()) == [Unload("a", "gpu0", Tier.PARKED)]
    played.at(9.5, Unloaded("a"))
    assert played.at(10.0, Arrived(9, "b", GONE)) == [Load("b", "gpu0", Tier.PARKED)]


def test_expert_stays_when_it_is_the_one_that_is_asked_for() -> None:
    policy = Forecast("ab", ForecastSettings(most_ready=1))
    played = Played([10], [expert("a"), expert("b")], policy, resident={"a": "gpu0"})
    for i in range(20):
        played.at(10.0 * i, Arrived(i, "a", GONE))
        assert played.at(10.0 * i + 1.0, Ended(i)) == []
        assert played.at(10.0 * i + 9.0, Ticked()) == []


def test_times_of_moves_are_learnt_when_they_are_not_as_declared() -> None:
    played = Played([10], [expert("a"), expert("b")])
    played.at(0.0, Arrived(1, "a", GONE))
    played.at(14.0, Loaded("a"))
    played.at(14.5, Ended(1))
    assert played.manager.memory.holdings["a"].expert.cold_load_s == pytest.approx(7.0)
    played.at(30.0, Arrived(2, "b", GONE))
    played.at(33.5, Unloaded("a"))
    assert played.manager.memory.holdings["a"].expert.park_s == pytest.approx(1.4)
    played.at(40.0, Loaded("b"))
    played.at(40.0, Ended(2))
    played.at(50.0, Arrived(3, "a", 56.0))
    # Parked, it could be there in time; and it is known how long that takes at last.
    played.at(51.0, Unloaded("b"))
    played.at(55.0, Loaded("a"))
    assert played.manager.memory.holdings["a"].expert.load_s == pytest.approx(1.9)


def test_impossible_events_are_refused_without_effect() -> None:
    played = Played([10], [expert("a")])
    played.manager.step(1.0, Ticked())
    for event in (Loaded("a"), Unloaded("a"), Ended(7), Arrived(1, "who", GONE)):
        with pytest.raises(ValueError, match=r"'a'|request"):
            played.manager.step(1.0, event)
    with pytest.raises(ValueError, match="clock went back"):
        played.manager.step(0.5, Ticked())
