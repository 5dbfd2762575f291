"""Statistics: what is counted is what happened, once, within bounds, whatever Redis does."""

import asyncio
import math
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st

from composer.state import State
from composer.stats import Decisions, Statistics, collector, give_feedback
from composer.stats.cells import TOTAL, add_request, figures, marginals, new_cell, total
from composer.stats.collector import Collector
from composer.stats.histogram import LOWEST_MS, bucket_of, percentile
from composer.stats.keys import DECISIONS, FEEDBACK, INDEX, PROMPT, bucket_key
from composer.stats.queries import span_of
from experts.errors import InvalidRequest, NotFound, StateUnavailable
from tests.known_outcomes import Known, Store, known, many_known, record, recorder, store

pytestmark = pytest.mark.asyncio(loop_scope="module")
RESOLUTION = 2 ** (1 / 16) * 1.001


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Store]:
    async with store(tmp_path_factory.mktemp("stats")) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def state(server: Store) -> State:
    await server.state.connection.redis.flushall()
    return server.state


# Percentiles


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=200), st.sampled_from([0.5, 0.95, 0.99]))
async def test_percentiles_are_within_a_bucket_for_any_latencies(
    values: list[float], share: float
) -> None:
    exact = sorted(values)[math.ceil(share * len(values)) - 1]
    found = percentile(Counter(bucket_of(value) for value in values), share)
    assert found is not None
    if exact <= LOWEST_MS:
        assert found <= LOWEST_MS
    else:
        assert exact / RESOLUTION <= found <= exact * RESOLUTION


@given(st.lists(st.integers(0, 2**31), max_size=60), st.integers(1, 5))
async def test_figures_are_the_same_however_requests_were_split_among_workers(
    seeds: list[int], workers: int
) -> None:
    outcomes = [next(many_known(1, seed)) for seed in seeds]
    one, parts = new_cell(), [new_cell() for _ in range(workers)]
    for index, (decision, outcome) in enumerate(outcomes):
        add_request(one, decision, outcome)
        add_request(parts[index % workers], decision, outcome)
    assert figures(total(parts), len(outcomes)) == figures(one, len(outcomes))
    assert figures(one, len(outcomes))["latency_ms"]["total"]["n"] == len(outcomes)


# What is counted


async def test_figures_equal_what_the_outcomes_were_when_read_by_every_group(state: State) -> None:
    outcomes = list(many_known(400))
    await record(state, outcomes)
    found = await Statistics(state).read()
    assert found["totals"]["requests"] == found["totals"]["ok"] == 400
    _check(found["totals"], outcomes)
    for group, attribute in (("by_expert", 1), ("by_category", 0)):
        for name, view in found[group].items():
            of_group = [
                k for k in outcomes if name == (k[1].expert if attribute else k[0].category)
            ]
            assert of_group
            _check(view, of_group)
        assert sum(view["requests"] for view in found[group].values()) == 400
        assert sum(view["share"] for view in found[group].values()) == pytest.approx(1, abs=1e-5)
    direct = found["by_composition"]["direct"]["requests"]
    assert direct == sum(not decision.composition for decision, _ in outcomes)
    assert sum(point["requests"] for point in found["series"]) == 400
    lines = found["series_by_expert"]
    assert {e: sum(p["requests"] for p in line) for e, line in lines.items()} == {
        e: view["requests"] for e, view in found["by_expert"].items()
    }


def _check(view: dict, outcomes: list[Known]) -> None:  # type: ignore[type-arg]
    assert view["requests"] == len(outcomes)
    assert view["tokens"]["prompt"] == sum(o.prompt_tokens or 0 for _, o in outcomes)
    assert view["tokens"]["completion"] == sum(o.completion_tokens or 0 for _, o in outcomes)
    assert view["cost_usd"] == pytest.approx(sum(o.cost_usd for _, o in outcomes), abs=1e-6)
    caches = Counter(d.cache for d, _ in outcomes)
    assert {s: view["cache"][s] for s in ("hit", "miss", "off")} == {
        s: caches[s] for s in ("hit", "miss", "off")
    }
    for name, values in (
        ("total", [o.total_ms for _, o in outcomes]),
        ("routing", [d.route_ms for d, _ in outcomes]),
        ("first_token", [o.first_token_ms for _, o in outcomes if o.first_token_ms is not None]),
    ):
        shown = view["latency_ms"][name]
        assert shown["n"] == len(values)
        assert shown["mean"] == pytest.approx(sum(values) / len(values), abs=0.002)
        for key, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
            exact = sorted(values)[math.ceil(share * len(values)) - 1]
            assert exact / RESOLUTION <= shown[key] <= exact * RESOLUTION


async def test_failures_count_for_the_expert_that_failed_and_the_one_that_was_asked_first(
    state: State,
) -> None:
    await record(
        state,
        [
            known("b", failed=(("a", "no connection"),)),
            known("b"),
            known(None, status="error", http_status=503, failed=(("a", "x"), ("b", "y"))),  # type: ignore[arg-type]
            known("a", status="cancelled", http_status=499, estimated=True),
        ],
    )
    found = await Statistics(state).read()
    whole, a, b = found["totals"], found["by_expert"]["a"], found["by_expert"]["b"]
    assert [whole[k] for k in ("requests", "ok", "errors", "cancelled", "fallbacks")] == [
        4,
        2,
        1,
        1,
        3,
    ]
    assert [a[k] for k in ("requests", "ok", "errors", "cancelled", "fallbacks")] == [2, 0, 1, 1, 2]
    assert [b[k] for k in ("requests", "ok", "errors", "cancelled", "fallbacks")] == [2, 2, 0, 0, 1]
    assert found["by_category"]["maths"]["fallbacks"] == 3
    assert whole["tokens"]["estimated_requests"] == 1


async def test_there_are_no_figures_but_a_whole_answer_when_nothing_happened(state: State) -> None:
    found = await Statistics(state).read(-600)
    assert found["totals"]["requests"] == 0
    assert found["totals"]["cache"]["hit_rate"] is None
    latency = {"n": 0, "mean": None, "p50": None, "p95": None, "p99": None}
    assert found["totals"]["latency_ms"]["total"] == latency
    assert found["totals"]["feedback"] == {"n": 0, "mean": None}
    assert found["by_expert"] == {}
    assert len(found["series"]) in (10, 11)


async def test_time_series_put_each_request_in_its_minute_and_hour(state: State) -> None:
    now = time.time()
    worker = recorder(state)
    for ago in (0, 90, 90, 4000, 50 * 3600, 100 * 24 * 3600):
        worker.collector._clock = lambda ago=ago: now - ago  # type: ignore[misc]
        worker.collector.record(*known())
    await worker.flush()
    statistics = Statistics(state)
    hour = await statistics.read(-3600)
    assert (hour["step_s"], hour["totals"]["requests"]) == (60, 3)
    at = {point["at"]: point["requests"] for point in hour["series"] if point["requests"]}
    assert at == {int((now - 90) // 60) * 60: 2, int(now // 60) * 60: 1}
    week = await statistics.read(-7 * 24 * 3600)
    assert (week["step_s"], week["totals"]["requests"]) == (3600, 5)
    everything = await statistics.read(0)
    assert (everything["step_s"], everything["totals"]["requests"]) == (3600, 6)
    earlier = await statistics.read(-5000, -3700)
    assert earlier["totals"]["requests"] == 1
    ttl = await state.connection.redis.ttl(bucket_key(60, int(now)))
    assert 47 * 3600 < ttl <= 48 * 3600 + 60


@pytest.mark.parametrize(
    ("start", "end", "step", "named"),
    [(-10, -20, None, "from"), (-10, None, 7, "step"), (-90 * 3600, None, 60, "step")],
)
async def test_a_span_is_refused_when_it_makes_no_sense(
    start: float, end: float | None, step: int | None, named: str
) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        span_of(time.time(), start, end, step)
    assert refusal.value.param == named


# Recording neither raises nor grows


async def test_record_raises_nothing_when_it_gets_what_it_can_not_count() -> None:
    sink = Collector(100)
    decision, outcome = known()
    sink.record(decision, None)  # type: ignore[arg-type]
    sink.record(*known(total_ms=math.nan))
    sink.record(decision, outcome)
    assert sink.faults == 2
    taken = sink.take()
    assert taken is not None
    assert decision.id in [recent.decision.id for recent in taken.decisions]


async def test_memory_stays_bounded_when_nothing_can_be_committed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(collector, "MAX_CELLS", 50)
    minutes = iter(range(10_000))
    sink = Collector(20, clock=lambda: next(minutes) * 60.0)
    for index in range(1000):
        sink.record(*known(f"expert-{index % 7}", f"category-{index % 3}"))
    assert len(sink._cells) <= 50 + 21 + 1
    assert (sink.pending, sink.dropped) == (20, 980)
    counted = new_cell()
    while taken := sink.take():
        for groups in taken.cells.values():
            if TOTAL in groups:
                counted["n"] += groups[TOTAL]["n"]
    assert counted["n"] == 1000


async def test_a_failed_attempt_counts_once_in_every_group() -> None:
    cell = new_cell()
    add_request(cell, *known("b", failed=(("a", "x"), ("a", "y"))))
    groups = dict(marginals("b", "maths", "auto", cell))
    assert groups["t"]["fb"] == groups["c:maths"]["fb"] == groups["n:auto"]["fb"] == 2
    assert groups["e:a"] == {"fb": 2}
    assert "fb" not in groups["e:b"]


# Exactly once


async def test_a_batch_counts_once_when_its_confirmation_was_lost(server: Store) -> None:
    """The server is stopped while the batch is on its way: it arrives, the answer does not."""
    await server.state.connection.redis.flushall()
    pid = int((await server.state.connection.redis.info("server"))["process_id"])
    async with State(server.url, timeout_s=0.2) as impatient:
        worker = recorder(impatient)
        for outcome in (known() for _ in range(10)):
            worker.collector.record(*outcome)
        os.kill(pid, signal.SIGSTOP)
        try:
            for _ in range(3):
                with pytest.raises(StateUnavailable):
                    await worker.flush()
        finally:
            os.kill(pid, signal.SIGCONT)
        worker.collector.record(*known())
        await worker.flush()
    found = await Statistics(server.state).read()
    assert found["totals"]["requests"] == 11
    assert await server.state.connection.redis.xlen(DECISIONS) == 11


async def test_nothing_is_lost_or_repeated_when_the_server_is_killed_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("composer.services.BACKOFF_S", (0.1,))
    async with store(tmp_path) as server, State(server.url, timeout_s=0.3) as own:
        worker = recorder(own, flush_s=0.02)
        ids = []

        async def traffic() -> None:
            for _ in range(300):
                decision, outcome = known()
                ids.append(decision.id)
                worker.collector.record(decision, outcome)
                await asyncio.sleep(0.01)

        async with worker:
            sending = asyncio.create_task(traffic())
            for _ in range(3):
                await asyncio.sleep(0.4)
                pid = int((await _until_info(server.state))["process_id"])
                os.kill(pid, signal.SIGKILL)
            await sending
            await _until_info(server.state)
        found = await Statistics(server.state).read()
        assert found["totals"]["requests"] == 300
        pages = [page async for page in Decisions(server.state).after("", 1000)]
        assert [view["id"] for page in pages for view in page.views] == ids


async def _until_info(state: State) -> dict[str, object]:
    async with asyncio.timeout(10):
        while True:
            try:
                found: dict[str, object] = await state.connection.call(
                    state.connection.redis.info("server")
                )
                return found
            except StateUnavailable:
                await asyncio.sleep(0.05)


async def test_what_was_committed_is_there_when_the_server_starts_again(tmp_path: Path) -> None:
    async with store(tmp_path) as server:
        await record(server.state, [known() for _ in range(5)])
        await give_feedback(server.state, (await _ids(server.state))[0], 1.0, "", "")
        pid = int((await _until_info(server.state))["process_id"])
        os.kill(pid, signal.SIGKILL)
    async with store(tmp_path) as again:
        found = await Statistics(again.state).read()
        assert found["totals"]["requests"] == 5
        assert found["totals"]["feedback"] == {"n": 1, "mean": 1.0}
        assert len(await _ids(again.state)) == 5


async def test_a_worker_commits_what_is_left_when_it_stops(state: State) -> None:
    async with recorder(state, flush_s=1) as worker:
        await asyncio.sleep(0.05)
        worker.collector.record(*known())
    assert (await Statistics(state).read())["totals"]["requests"] == 1


async def test_commits_are_few_when_traffic_never_pauses(state: State) -> None:
    redis = state.connection.redis
    await redis.config_resetstat()
    async with recorder(state, flush_s=0.25) as worker, asyncio.timeout(5):
        end = time.perf_counter() + 1
        sent = 0
        while time.perf_counter() < end:
            worker.collector.record(*known())
            sent += 1
            await asyncio.sleep(0.001)
    found = await Statistics(state).read()
    assert found["totals"]["requests"] == sent
    stats = (await redis.info("commandstats"))["cmdstat_evalsha"]
    batches = sent / collector._DECISIONS_TAKEN
    assert stats["calls"] - stats["failed_calls"] <= batches + 8


# Decisions


async def _ids(state: State) -> list[str]:
    return [view["id"] for view in await Decisions(state).newest(500)]


async def test_only_the_newest_decisions_are_kept_with_all_that_belongs_to_them(
    state: State,
) -> None:
    outcomes = [known(prompt=f"secret {index}") for index in range(60)]
    worker = recorder(state, decisions_kept=25, store_prompts=True)
    for index, (decision, outcome) in enumerate(outcomes):
        worker.collector.record(decision, outcome)
        if index % 7 == 0:
            await worker.flush()
            await give_feedback(state, decision.id, 0.5, "", "")
    await worker.flush()
    redis = state.connection.redis
    newest = [decision.id for decision, _ in outcomes[-25:]]
    assert await _ids(state) == newest[::-1]
    assert set(await redis.hkeys(INDEX)) == set(newest)
    assert {key.removeprefix(PROMPT) for key in await redis.keys(f"{PROMPT}*")} == set(newest)
    assert set(await redis.hkeys(FEEDBACK)) < set(newest)
    assert (await Statistics(state).read())["totals"]["feedback"]["n"] == 9


async def test_prompts_are_stored_only_when_asked_and_only_for_their_time(state: State) -> None:
    silent, telling = known(prompt="do not keep"), known(prompt="keep a while")
    await record(state, [silent])
    await record(state, [telling], store_prompts=True, prompt_retention_s=0.3)
    decisions = Decisions(state)
    assert "prompt" not in await decisions.get(silent[0].id)
    assert (await decisions.get(telling[0].id))["prompt"] == "keep a while"
    await asyncio.sleep(0.4)
    assert "prompt" not in await decisions.get(telling[0].id)


async def test_no_decision_is_kept_when_none_should_be(state: State) -> None:
    await record(state, [known()], decisions_kept=0)
    assert await _ids(state) == []
    assert (await Statistics(state).read())["totals"]["requests"] == 1


async def test_decisions_are_listed_newest_first_when_paged_and_filtered(state: State) -> None:
    outcomes = list(many_known(250, seed=3))
    await record(state, outcomes)
    decisions = Decisions(state)
    wanted = [d.id for d, o in reversed(outcomes) if o.expert == "b" and d.category == "sql"]
    found: list[str] = []
    before = None
    while page := await decisions.newest(7, before=before, expert="b", category="sql"):
        found += [view["id"] for view in page]
        before = page[-1]["cursor"]
    assert found == wanted
    with pytest.raises(InvalidRequest):
        await decisions.newest(5, before="yesterday")


async def test_an_export_is_complete_when_workers_go_on_writing(state: State) -> None:
    workers = [recorder(state, flush_s=0.01) for _ in range(3)]
    written: list[str] = []

    async def write(index: int) -> None:
        async with workers[index] as worker:
            for _ in range(200):
                decision, outcome = known()
                written.append(decision.id)
                worker.collector.record(decision, outcome)
                await asyncio.sleep(0.002)

    writing = asyncio.gather(*(write(index) for index in range(3)))
    decisions, read, cursor = Decisions(state), [], ""
    while True:
        done = writing.done()
        async for page in decisions.after(cursor, 13):
            assert not page.missed
            read += [view["id"] for view in page.views]
            cursor = page.views[-1]["cursor"]
        if done and len(read) >= len(written):
            break
        await asyncio.sleep(0.001)
    await writing
    assert len(read) == len(set(read)) == 600
    assert set(read) == set(written)


async def test_an_export_says_so_when_what_it_should_go_on_with_was_trimmed(state: State) -> None:
    async def pages(cursor: str) -> list[tuple[int, bool]]:
        found = [page async for page in Decisions(state).after(cursor, 100)]
        return [(len(page.views), page.missed) for page in found]

    assert await pages("") == []
    await record(state, [known() for _ in range(5)], decisions_kept=5)
    cursor = [v["cursor"] async for page in Decisions(state).after("", 5) for v in page.views][-1]
    assert await pages(cursor) == []
    await record(state, [known() for _ in range(5)], decisions_kept=5)
    assert await pages(cursor) == [(5, False)]
    await record(state, [known() for _ in range(2)], decisions_kept=5)
    assert await pages(cursor) == [(5, True)]
    assert await pages("") == [(5, False)]


# Feedback


async def test_feedback_is_kept_with_its_decision_and_replaced_when_given_again(
    state: State,
) -> None:
    one, two = known("a", "maths"), known("b", "sql")
    await record(state, [one, two])
    await give_feedback(state, one[0].id, 0.2, "meh", "key-1")
    await give_feedback(state, one[0].id, 0.8, "better", "key-1")
    await give_feedback(state, one[0].id, 0.8, "better", "key-1")
    await give_feedback(state, two[0].id, 0.0, "", "")
    found = await Statistics(state).read()
    assert found["totals"]["feedback"] == {"n": 2, "mean": 0.4}
    assert found["by_expert"]["a"]["feedback"] == {"n": 1, "mean": 0.8}
    assert found["by_expert"]["b"]["feedback"] == {"n": 1, "mean": 0.0}
    assert found["by_category"]["sql"]["feedback"] == {"n": 1, "mean": 0.0}
    kept = (await Decisions(state).get(one[0].id))["feedback"]
    assert (kept["score"], kept["comment"]) == (0.8, "better")


async def test_feedback_waits_when_another_worker_has_not_committed_the_decision_yet(
    state: State,
) -> None:
    worker = recorder(state)
    decision, outcome = known()
    worker.collector.record(decision, outcome)
    giving = asyncio.create_task(give_feedback(state, decision.id, 1.0, "", ""))
    await asyncio.sleep(0.3)
    await worker.flush()
    assert (await giving)["expert"] == "a"


async def test_feedback_is_refused_when_there_is_no_such_decision(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("composer.stats.feedback.PATIENCE_S", 0.05)
    with pytest.raises(NotFound, match="dec-nobody"):
        await give_feedback(state, "dec-nobody", 1.0, "", "")
    assert await state.connection.redis.exists(FEEDBACK) == 0
