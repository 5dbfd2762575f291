"""The life of experts: leases, workers' heartbeats, verification, engines that follow."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from composer.lease import Lease
from composer.lifecycle.plan import BridgePlan, EmbeddedPlan, RemotePlan, plan_engines
from composer.lifecycle.transitions import (
    Finding,
    Seen,
    advance,
    after_verification,
    asked_again,
)
from composer.state import Endpoint, ExpertRecord, ExpertStatus, State, WorkerRecord
from composer.workers import has_let_go, prune_workers, wait_for_generation
from experts.registry import index_experts
from experts.spec import ExpertSpec
from tests.small_composition import gateway_config, redis_service


@pytest_asyncio.fixture
async def state(tmp_path: Path) -> AsyncIterator[State]:
    async with redis_service(tmp_path) as (_, url), State(url) as client:
        yield client


async def until(condition: object, seconds: float = 10) -> None:
    assert callable(condition)
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


class TestLease:
    async def test_second_takes_over_within_its_time_when_the_first_is_gone(
        self, state: State, tmp_path: Path
    ) -> None:
        first = Lease(state.connection, "x", tmp_path / "a", ttl_s=0.5)
        second = Lease(state.connection, "x", tmp_path / "b", ttl_s=0.5)
        async with first, second:
            assert first.held
            assert not second.held
            assert second.elsewhere
            assert first._task is not None
            first._task.cancel()
            await until(lambda: second.held, 2)
            assert not first.held

    async def test_it_is_free_at_once_when_given_back(self, state: State, tmp_path: Path) -> None:
        async with Lease(state.connection, "x", tmp_path / "a"):
            pass
        async with Lease(state.connection, "x", tmp_path / "b") as other:
            assert other.held

    async def test_it_is_taken_over_at_once_when_a_killed_holder_was_in_the_same_place(
        self, state: State, tmp_path: Path
    ) -> None:
        killed = Lease(state.connection, "x", tmp_path)
        await killed._try()
        async with Lease(state.connection, "x", tmp_path) as again:
            assert again.held

    async def test_it_runs_out_when_redis_is_away(self, tmp_path: Path) -> None:
        async with (
            redis_service(tmp_path) as (redis, url),
            State(url) as state,
            Lease(state.connection, "x", tmp_path, ttl_s=0.6) as lease,
        ):
            assert redis._process is not None
            redis._stopping = True
            redis._process.kill()
            await until(lambda: not lease.held, 3)


def worker(name: str, generation: int, at: float, **in_flight: int) -> WorkerRecord:
    return WorkerRecord(
        id=name, pid=1, started_at=0, at=at, generation=generation, in_flight=in_flight
    )


class TestWorkers:
    async def test_waiting_ends_when_every_live_worker_serves_the_generation(
        self, state: State
    ) -> None:
        now = time.time()
        await state.workers.put(
            {"a": worker("a", 5, now), "b": worker("b", 4, now), "dead": worker("dead", 1, now - 9)}
        )
        assert await wait_for_generation(state, 5, timeout_s=0.1) == (1, 2)
        waiting = asyncio.create_task(wait_for_generation(state, 5))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        await state.workers.put({"b": worker("b", 6, now)})
        assert await waiting == (2, 2)
        await prune_workers(state)
        assert set(await state.workers.all()) == {"a", "b"}

    def test_expert_is_let_go_when_all_know_and_nobody_answers_with_it(self) -> None:
        idle, busy = worker("a", 7, 0), worker("b", 7, 0, maths=1)
        assert has_let_go([idle], "maths", 7)
        assert not has_let_go([idle, busy], "maths", 7)
        assert not has_let_go([idle], "maths", 8)
        assert has_let_go([], "maths", 8)


NOW, DRAIN_S = 1000.0, 60.0
EXPERT = ExpertSpec(id="mine", kind="remote", url="http://127.0.0.1:9")
RECORD = ExpertRecord(spec=EXPERT, source="api")
NULL = ExpertRecord(spec=ExpertSpec(id="mine", kind="null", text="No."))
DRAINED = ExpertRecord(spec=EXPERT, drained=True)
REMOVING = ExpertRecord(spec=EXPERT, removing=True)
UP = Endpoint(engine="e", base_url="http://127.0.0.1:9", state="ready", life="a")


def status(state: str, **fields: object) -> ExpertStatus:
    return ExpertStatus.model_validate({"state": state, "since": NOW - 10, **fields})


def endpoint(**fields: object) -> Endpoint:
    return UP.model_copy(update=fields)


READY = status("ready", life="a")
DRAINING = status("draining", reason="it is being removed")
FAILED = status("failed", failures=1, retry_at=NOW + 5, life="a")

STEPS = {
    "no engine yet": (Seen(RECORD), "starting", "wait"),
    "engine starting": (Seen(RECORD, None, endpoint(state="starting")), "starting", "wait"),
    "engine ready": (Seen(RECORD, status("starting"), UP), "verifying", "verify"),
    "verification lost": (Seen(RECORD, status("verifying"), UP), "verifying", "verify"),
    "verified": (Seen(RECORD, READY, UP), "ready", "wait"),
    "canned": (Seen(NULL), "ready", "wait"),
    "rolled": (Seen(RECORD, READY, endpoint(life="b")), "ready", "verify"),
    "rolled, was busy": (
        Seen(RECORD, status("ready", life="a", retry_at=NOW + 1), endpoint(life="b")),
        "ready",
        "wait",
    ),
    "slow": (Seen(RECORD, READY, endpoint(state="unresponsive")), "ready", "wait"),
    "engine died": (Seen(RECORD, READY, endpoint(state="failed")), "failed", "wait"),
    "engine starts again": (Seen(RECORD, FAILED, endpoint(state="starting")), "starting", "wait"),
    "not on it yet": (Seen(RECORD, None, endpoint(serves=("other",))), "starting", "wait"),
    "refused by it": (
        Seen(RECORD, None, endpoint(serves=("other",), refused={"mine": "bad"})),
        "failed",
        "wait",
    ),
    "backing off": (Seen(RECORD, FAILED, UP), "failed", "wait"),
    "engine came back": (Seen(RECORD, FAILED, endpoint(life="b")), "verifying", "verify"),
    "time to retry": (
        Seen(RECORD, status("failed", retry_at=NOW, life="a"), UP),
        "verifying",
        "verify",
    ),
    "base gone": (Seen(RECORD, READY, UP, problem="its base is gone"), "failed", "wait"),
    "drained": (Seen(DRAINED, READY, UP), "draining", "wait"),
    "drained, answering": (Seen(DRAINED, DRAINING, UP), "draining", "wait"),
    "drained, let go": (Seen(DRAINED, DRAINING, UP, let_go=True), "parked", "wait"),
    "resumed": (Seen(RECORD, status("parked", life="a"), UP), "verifying", "verify"),
    "removing": (Seen(REMOVING, READY, UP, let_go=True), "draining", "wait"),
    "removing, answering": (Seen(REMOVING, DRAINING, UP), "draining", "wait"),
    "removing, let go": (Seen(REMOVING, DRAINING, UP, let_go=True), "draining", "remove"),
    "removing, too long": (
        Seen(REMOVING, status("draining", since=NOW - DRAIN_S), UP),
        "draining",
        "remove",
    ),
    "removing, parked": (Seen(REMOVING, status("parked"), UP), "parked", "remove"),
}


class TestTransitions:
    @pytest.mark.parametrize("case", STEPS)
    def test_status_follows_what_is_seen(self, case: str) -> None:
        seen, state, act = STEPS[case]
        step = advance(seen, NOW, DRAIN_S)
        assert (step.status.state, step.act) == (state, act)
        if seen.status is not None and seen.status.state == state:
            assert step.status.since == seen.status.since
        else:
            assert step.status.since == NOW

    @pytest.mark.parametrize("case", STEPS)
    def test_same_sight_again_changes_nothing(self, case: str) -> None:
        seen, _, _ = STEPS[case]
        first = advance(seen, NOW, DRAIN_S)
        again = Seen(seen.record, first.status, seen.endpoint, seen.problem)
        second = advance(again, NOW, DRAIN_S)
        assert second.status is first.status

    def test_failures_in_a_row_back_off_and_a_good_one_forgets_them(self) -> None:
        current, waits = status("verifying"), []
        for _ in range(9):
            current = after_verification(current, Finding("bad"), "a", NOW)
            assert (current.state, current.reason) == ("failed", "bad")
            waits.append(current.retry_at - NOW)
            current = current.model_copy(update={"state": "verifying"})
        assert waits == sorted(waits)
        assert waits[0] <= 2
        assert waits[-1] == waits[-2] == 300
        good = after_verification(current, Finding(), "b", NOW)
        assert (good.state, good.failures, good.retry_at, good.life) == ("ready", 0, 0, "b")

    def test_proven_expert_stays_ready_when_it_is_only_busy(self) -> None:
        busy = after_verification(READY, Finding("too many", busy=True), "b", NOW)
        assert (busy.state, busy.life) == ("ready", "a")
        assert busy.retry_at > NOW
        assert after_verification(READY, Finding("wrong"), "b", NOW).state == "failed"
        new = after_verification(status("verifying"), Finding("too many", busy=True), "b", NOW)
        assert new.state == "failed"

    def test_result_that_comes_too_late_changes_nothing(self) -> None:
        for late in (DRAINING, status("parked"), status("starting")):
            assert after_verification(late, Finding(), "a", NOW) is late

    def test_asking_again_makes_the_next_step_a_verification(self) -> None:
        for known in (READY, FAILED, None, status("starting")):
            asked = asked_again(known, NOW)
            assert advance(Seen(RECORD, asked, UP), NOW, DRAIN_S).act == "verify"
        assert asked_again(READY, NOW).state == "ready"


class TestPlan:
    def test_every_kind_gets_the_engine_that_it_runs_on(self, tmp_path: Path) -> None:
        far = {"kind": "remote", "name": "far", "url": "http://127.0.0.1:8000/v1"}
        near = {"kind": "embedded", "name": "near"}
        config = gateway_config(tmp_path, tmp_path, engines=[near, far])
        experts = index_experts(
            [
                ExpertSpec(id="base", kind="model", engine="near"),
                ExpertSpec(id="a", kind="lora", base="base", adapter=Path("/a")),
                ExpertSpec(id="p", kind="prompt", base="base", system_prompt="Be."),
                ExpertSpec(id="vllm", kind="model", engine="far"),
                ExpertSpec(id="own", kind="model", path=Path("/w"), context_length=4096),
                ExpertSpec(id="b", kind="lora", base="own", adapter=Path("/b")),
                ExpertSpec(id="url", kind="remote", url="http://127.0.0.1:9/v1"),
                ExpertSpec(id="q", kind="prompt", base="url", system_prompt="Be."),
                ExpertSpec(id="claude", kind="remote", provider="anthropic", api_key_env="KEY"),
                ExpertSpec(id="no", kind="null", text="No."),
            ]
        )
        plans = plan_engines(config, experts)
        near_plan, own_plan = plans["near"], plans["own-own"]
        assert isinstance(near_plan, EmbeddedPlan)
        assert near_plan.served == {"base": None, "a": Path("/a"), "p": None}
        assert isinstance(own_plan, EmbeddedPlan)
        assert own_plan.served == {"own": None, "b": Path("/b")}
        assert own_plan.engine.max_context == 4096
        assert plans["far"] == RemotePlan("http://127.0.0.1:8000", None)
        assert plans["own-url"] == RemotePlan("http://127.0.0.1:9", None)
        assert plans["own-claude"] == BridgePlan(None, "KEY")
        assert len(plans) == 5
