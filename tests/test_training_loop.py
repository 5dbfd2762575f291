"""The loop: upload outcomes, train, promote, roll back; and trainings that don't come to an end."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from composer.config import Timeouts
from composer.datasets import CONFIGURED, UPLOAD_PREFIX
from composer.lease import Lease
from composer.state import JobRecord, TrainingRecord
from composer.trainings import queue, runner
from composer.trainings.queue import prune_trainings
from composer.trainings.runner import TrainingRunner
from tests.task_data import graded, prompts
from tests.training_gateway import INCUMBENT, NEWCOMER, Trained, training_gateway

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHAT = "/v1/chat/completions"
OUTCOMES = graded(
    {
        "arithmetic": {INCUMBENT: 0.2, NEWCOMER: 0.9},
        "chat": {INCUMBENT: 0.9, NEWCOMER: 0.2},
        "translation": {INCUMBENT: 0.8, NEWCOMER: 0.1},
    }
)
SUM = "What is 412 plus 93?"


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def running(
    tmp_path_factory: pytest.TempPathFactory, cache_dir: Path
) -> AsyncIterator[Trained]:
    folder = tmp_path_factory.mktemp("trainings")
    left = datasets_folder_of(folder) / f"{UPLOAD_PREFIX}cut-off"
    left.parent.mkdir()
    left.touch()
    async with training_gateway(folder, cache_dir) as trained:
        assert not left.exists()
        yield trained


def datasets_folder_of(folder: Path) -> Path:
    return folder / "datasets"


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def dataset(running: Trained) -> str:
    return await running.upload(OUTCOMES)


async def where(running: Trained, prompt: str, model: str = "auto") -> dict[str, Any]:
    """The decision for a prompt, explained."""
    body = {"model": model, "prompt": prompt, "composer": {"explain": True}}
    async with running.gateway.session.post("/v1/route", json=body) as reply:
        answer: dict[str, Any] = await reply.json()
        assert reply.status == 200, answer
        return answer


async def answered_by(running: Trained, prompt: str) -> tuple[str, str]:
    """Expert and category in the headers of a real answer."""
    body = {"model": "auto", "messages": [{"role": "user", "content": prompt}]}
    async with running.gateway.session.post(CHAT, json=body) as reply:
        assert reply.status == 200, await reply.text()
        return reply.headers["x-composer-expert"], reply.headers["x-composer-category"]


async def until_left_behind_nothing(running: Trained) -> None:
    folder = running.config.state_dir
    async with asyncio.timeout(5):
        while list((folder / "trainings").glob("*")) or list((folder / "processes").glob("tr*")):
            await asyncio.sleep(0.02)
        while await running.state.jobs.all():
            await asyncio.sleep(0.02)


async def test_promoted_version_sends_a_category_to_the_new_expert_until_it_is_rolled_back(
    running: Trained, dataset: str
) -> None:
    assert (await answered_by(running, SUM))[0] == INCUMBENT
    before = (await running.call("GET", "/compositions/auto"))["live"]["version"]
    record = await running.train(dataset)
    assert record["state"] == "succeeded", record
    assert record["progress"]["share"] == 1.0
    assert any("embedding 60 prompts" in line for line in record["progress"]["lines"])
    report = record["report"]
    assert report["category_accuracy"] > 0.8
    assert report["random"] < report["best_single"] < report["routed"] <= report["oracle"]
    assert report["gain_low"] <= report["gain"] <= report["gain_high"]
    assert (await answered_by(running, SUM))[0] == INCUMBENT

    promoted = await running.call(
        "POST", "/compositions/auto/promote", {"version": record["version"]}
    )
    assert promoted["live"]["version"] == record["version"]
    assert promoted["live"]["training"] == record["id"]
    assert promoted["former"] == [before]
    assert promoted["workers"] == {"total": 1, "current": 1}
    decision = await where(running, SUM)
    assert decision["expert"] == NEWCOMER
    assert decision["scores"][NEWCOMER]["quality"] > decision["scores"][INCUMBENT]["quality"]
    assert await answered_by(running, SUM) == (NEWCOMER, "arithmetic")
    assert (await where(running, "Tell me about your day, my friend"))["expert"] == INCUMBENT

    back = await running.call("POST", "/compositions/auto/rollback")
    assert back["live"]["version"] == before
    assert back["former"] == []
    assert (await answered_by(running, SUM))[0] == INCUMBENT
    answer = await running.call("POST", "/compositions/auto/rollback", expect=409)
    assert "nothing was live before" in answer["error"]["message"]
    await until_left_behind_nothing(running)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def named(running: Trained, dataset: str) -> dict[str, Any]:
    """A training that made a composition of its own, and promoted it."""
    return await running.train(dataset, composition="team/maths", promote=True)


async def test_new_name_is_served_as_a_model_at_once_when_its_training_promotes(
    running: Trained, named: dict[str, Any]
) -> None:
    assert named["state"] == "succeeded", named
    await asyncio.sleep(1)
    assert (await where(running, SUM, "team/maths"))["expert"] == NEWCOMER
    shown = await running.call("GET", "/compositions/team/maths")
    assert shown["live"]["version"] == named["version"]
    assert shown["versions"][0]["summary"]["routed"] == named["report"]["routed"]


async def test_the_same_training_makes_the_same_version(
    running: Trained, named: dict[str, Any], dataset: str
) -> None:
    again = await running.train(dataset, composition="team/maths", promote=True)
    assert again["version"] == named["version"]
    shown = await running.call("GET", "/compositions/team/maths")
    assert [v["training"] for v in shown["versions"]] == [named["id"]]
    assert shown["former"] == []


async def test_categories_alone_keep_the_scores_of_the_live_version(
    running: Trained, named: dict[str, Any]
) -> None:
    labels = await running.upload([*prompts("arithmetic"), *prompts("extraction")])
    record = await running.train(labels, composition="team/maths", promote=True)
    assert record["state"] == "succeeded", record
    assert any("scores are those of the base" in note for note in record["notes"])
    assert any("'extraction' is new" in note for note in record["notes"])
    assert record["report"]["routed"] is None
    await asyncio.sleep(1)
    assert (await where(running, SUM, "team/maths"))["expert"] == NEWCOMER
    refused = await running.train(labels, composition="unheard-of")
    assert refused["state"] == "failed"
    assert "no version whose scores of the experts could be kept" in refused["error"]


async def test_outcomes_of_unregistered_experts_are_left_out_and_said_so(
    running: Trained, dataset: str
) -> None:
    more = await running.upload([{**prompts("chat", 1)[0], "expert": "stranger", "score": 1.0}])
    record = await running.train(dataset, more, composition="known", experts=[NEWCOMER])
    assert record["state"] == "succeeded", record
    assert "outcomes of 'stranger' are left out: it is not among the experts" in record["notes"]
    assert record["report"]["experts"] == [NEWCOMER]


async def test_failed_training_tells_the_reason_and_makes_no_version(running: Trained) -> None:
    only_one = await running.upload(graded({"chat": {INCUMBENT: 0.5}}, n=3))
    record = await running.train(only_one, composition="failed", promote=True)
    assert record["state"] == "failed"
    assert "4 prompts are needed" in record["error"]
    await running.call("GET", "/compositions/failed", expect=404)
    await until_left_behind_nothing(running)


async def test_configured_data_is_listed_and_can_be_built_on_but_not_removed(
    running: Trained,
) -> None:
    async with asyncio.timeout(20):
        while await running.state.datasets.find(CONFIGURED) is None:
            await asyncio.sleep(0.1)
    shown = await running.call("GET", f"/datasets/{CONFIGURED}")
    assert shown["n_outcomes"] > 1000
    answer = await running.call("DELETE", f"/datasets/{CONFIGURED}", expect=409)
    assert "configuration" in answer["error"]["message"]


@pytest.mark.parametrize(
    ("body", "param", "status"),
    [
        ({"datasets": []}, "datasets", 400),
        ({"datasets": ["ds-unknown"]}, "datasets", 400),
        ({"datasets": [CONFIGURED], "experts": ["nobody"]}, "experts", 400),
        ({"datasets": [CONFIGURED], "quality_weight": 2}, "quality_weight", 400),
        ({"datasets": [CONFIGURED], "composition": "a b"}, "composition", 400),
        ({"datasets": [CONFIGURED], "composition": INCUMBENT}, None, 409),
        ({"datasets": [CONFIGURED], "epochs": 3}, "epochs", 400),
    ],
)
async def test_senseless_request_is_refused(
    running: Trained, body: dict[str, Any], param: str | None, status: int
) -> None:
    answer = await running.call("POST", "/trainings", body, expect=status)
    assert answer["error"]["param"] == param


async def test_running_training_is_ended_within_seconds_when_it_is_cancelled(
    running: Trained, dataset: str
) -> None:
    body = {"datasets": [dataset], "composition": "cancelled"}
    first = await running.call("POST", "/trainings", body, expect=201)
    second = await running.call("POST", "/trainings", body, expect=201)
    async with asyncio.timeout(20):
        while not (await running.state.trainings.get(first["id"])).progress.lines:
            await asyncio.sleep(0.05)
    cancelled = await running.call("POST", f"/trainings/{second['id']}/cancel")
    assert cancelled["state"] == "cancelled"
    await running.call("POST", f"/trainings/{first['id']}/cancel")
    assert (await running.ended(first["id"], timeout_s=3))["state"] == "cancelled"
    await until_left_behind_nothing(running)
    await running.call("GET", "/compositions/cancelled", expect=404)
    await running.call("POST", f"/trainings/{first['id']}/cancel", expect=409)


async def test_finished_trainings_are_forgotten_when_they_are_too_many(
    running: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "MAX_FINISHED", 2)
    known = await running.state.trainings.all()
    newest = sorted(known.values(), key=lambda record: record.finished_at or 0)[-2:]
    await prune_trainings(running.state)
    assert set(await running.state.trainings.all()) == {record.id for record in newest}


async def test_training_waits_when_another_supervisor_holds_the_lease(
    tmp_path: Path, cache_dir: Path
) -> None:
    async with training_gateway(tmp_path, cache_dir, run=False) as t:
        dataset = await t.upload(OUTCOMES[:10])
        connection = t.state.connection
        async with (
            Lease(connection, "experts", tmp_path / "theirs") as theirs,
            Lease(connection, "experts", tmp_path / "ours", ttl_s=0.5) as ours,
            TrainingRunner(t.state, t.config, ours),
        ):
            record = await t.call("POST", "/trainings", {"datasets": [dataset]}, expect=201)
            await asyncio.sleep(1.5)
            assert theirs.held
            shown = await t.call("GET", f"/trainings/{record['id']}")
            assert shown["state"] == "queued"


async def test_training_is_run_again_when_its_supervisor_died(
    tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with training_gateway(tmp_path, cache_dir, run=False) as t:
        dataset = await t.upload(OUTCOMES)
        body = {"datasets": [dataset], "promote": True}
        record = await t.call("POST", "/trainings", body, expect=201)
        async with TrainingRunner(t.state, t.config):
            async with asyncio.timeout(20):
                while not (await t.state.trainings.get(record["id"])).progress.lines:
                    await asyncio.sleep(0.02)
        left = await t.state.trainings.get(record["id"])
        assert left.state == "running"
        assert not list((tmp_path / "processes").glob("training*"))
        async with TrainingRunner(t.state, t.config):
            done = await t.ended(record["id"])
        assert done["state"] == "succeeded", done
        live = await t.state.live.get("auto")
        assert live.current.version == done["version"]
        assert await t.state.jobs.all() == {}


async def test_training_fails_with_the_reason_when_it_takes_too_long_or_its_process_dies(
    tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timeouts = {"training_s": 0.1}
    async with training_gateway(tmp_path, cache_dir, run=False, timeouts=timeouts) as t:
        dataset = await t.upload(OUTCOMES)
        async with TrainingRunner(t.state, t.config):
            late = await t.train(dataset)
            assert late["state"] == "failed"
            assert "not done within 0.1 s (timeouts.training_s)" in late["error"]
        monkeypatch.setattr(runner, "JOB", "not-the-job.json")
        patient = t.config.model_copy(update={"timeouts": Timeouts()})
        async with TrainingRunner(t.state, patient):
            dead = await t.train(dataset)
        assert dead["state"] == "failed"
        assert "its process ended unexpectedly (1)" in dead["error"]
        assert "job.json" in dead["error"]
        gone = TrainingRecord(id="tr-gone", composition="auto", datasets=("ds-gone",))
        assert (await finished(t, gone)).error == "there is no dataset 'ds-gone'"


async def finished(t: Trained, record: TrainingRecord) -> TrainingRecord:
    """What becomes of a training whose dataset was removed after it was queued."""
    job = JobRecord(id=record.id, created_at=0)
    await t.state.write([(t.state.trainings, {record.id: record}), (t.state.jobs, {job.id: job})])
    async with TrainingRunner(t.state, t.config):
        await t.ended(record.id)
    return await t.state.trainings.get(record.id)
