"""Uploads of labelled task data: what is kept, what is refused, and that nothing else is left."""

import asyncio
import hashlib
import io
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import pytest_asyncio

from composer.datasets import UPLOAD_PREFIX, check_files, datasets_folder
from experts.errors import DataError
from tests.task_data import graded, jsonl, prompts
from tests.training_gateway import INCUMBENT, NEWCOMER, Trained, training_gateway

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROWS = graded({"arithmetic": {INCUMBENT: 0.2, NEWCOMER: 0.9}, "chat": {INCUMBENT: 0.8}}, n=10)
LIMIT = 200_000


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def running(
    tmp_path_factory: pytest.TempPathFactory, cache_dir: Path
) -> AsyncIterator[Trained]:
    folder = tmp_path_factory.mktemp("datasets")
    limits = {"max_dataset_bytes": LIMIT}
    async with training_gateway(folder, cache_dir, run=False, limits=limits) as trained:
        yield trained


def files(running: Trained) -> list[str]:
    folder = datasets_folder(running.config)
    return sorted(file.name for file in folder.iterdir()) if folder.exists() else []


async def test_upload_is_kept_with_what_is_in_it_and_where_it_came_from(running: Trained) -> None:
    body = jsonl(ROWS) + b'{"prompt": "no score", "expert": "x"}\n'
    record = await running.call(
        "POST", "/datasets?name=graded.jsonl&source=by%20hand", data=body, expect=201
    )
    assert record["name"] == "graded.jsonl"
    assert record["source"] == "by hand"
    assert record["sha256"] == hashlib.sha256(body).hexdigest()
    assert record["bytes"] == len(body)
    assert record["categories"] == {"arithmetic": 10, "chat": 10}
    assert record["experts"] == {INCUMBENT: 20, NEWCOMER: 10}
    assert record["means"][NEWCOMER] == {"score": 0.9}
    assert record["n_bad"] == 1
    assert record["bad_lines"] == ["graded.jsonl:31: 'expert' and 'score' belong together"]
    kept = datasets_folder(running.config) / f"{record['id']}.jsonl"
    assert kept.read_bytes() == body
    assert await running.call("GET", f"/datasets/{record['id']}") == record
    listed = await running.call("GET", "/datasets")
    assert listed["data"][0] == record
    await running.call("DELETE", f"/datasets/{record['id']}", expect=204)
    assert files(running) == []
    await running.call("GET", f"/datasets/{record['id']}", expect=404)
    await running.call("DELETE", f"/datasets/{record['id']}", expect=404)


async def test_parquet_is_known_by_its_content(running: Trained) -> None:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), buffer)
    record = await running.call("POST", "/datasets", data=buffer.getvalue(), expect=201)
    assert record["format"] == "parquet"
    assert record["n_outcomes"] == len(ROWS)
    await running.call("DELETE", f"/datasets/{record['id']}", expect=204)


async def test_outcomes_alone_are_kept_when_their_prompts_are_elsewhere(running: Trained) -> None:
    rows = [{"id": row["id"], "expert": "x", "score": 1} for row in prompts("chat", 5)]
    record = await running.call("POST", "/datasets", data=jsonl(rows), expect=201)
    assert (record["n_prompts"], record["n_outcomes"]) == (0, 5)
    await running.call("DELETE", f"/datasets/{record['id']}", expect=204)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"\x00\xff garbage\n" * 30, "stuff:1: not UTF-8; stuff:2"),
        (b"PAR1 is not all of it", "can't read stuff as parquet"),
        (b'{"prompt": ""}\n{"score": 3}', "stuff:1: the prompt is empty; stuff:2: score"),
        (b"\n\n \n", "the files are empty"),
    ],
)
async def test_garbage_is_refused_with_the_reasons_and_nothing_is_kept(
    running: Trained, body: bytes, reason: str
) -> None:
    answer = await running.call("POST", "/datasets?name=stuff", data=body, expect=400)
    assert answer["error"]["code"] == "invalid_data"
    assert reason in answer["error"]["message"]
    assert files(running) == []
    assert (await running.call("GET", "/datasets"))["data"] == []


async def test_empty_body_and_bad_parameters_are_refused(running: Trained) -> None:
    answer = await running.call("POST", "/datasets", data=b"", expect=400)
    assert "the body is empty" in answer["error"]["message"]
    answer = await running.call("POST", f"/datasets?name={'x' * 300}", data=b"{}", expect=400)
    assert answer["error"]["param"] == "name"
    assert files(running) == []


@pytest.mark.parametrize("declared", [True, False])
async def test_body_over_the_bound_is_refused_and_not_kept(
    running: Trained, declared: bool
) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield b'{"prompt": "p"}\n' * 2000

    body = b"x" * (LIMIT + 1) if declared else pieces()
    answer = await running.call("POST", "/datasets", data=body, expect=413)
    assert str(LIMIT) in answer["error"]["message"]
    assert files(running) == []


async def test_nothing_is_kept_when_the_client_hangs_up(running: Trained) -> None:
    async def half() -> AsyncIterator[bytes]:
        yield jsonl(ROWS)
        async with asyncio.timeout(5):
            while not files(running):
                await asyncio.sleep(0.01)
        raise ConnectionResetError

    with pytest.raises((aiohttp.ClientError, ConnectionResetError)):
        await running.call("POST", "/datasets", data=half())
    async with asyncio.timeout(5):
        while files(running):
            await asyncio.sleep(0.01)
    assert (await running.call("GET", "/datasets"))["data"] == []


async def test_gateway_answers_while_a_file_is_checked(running: Trained) -> None:
    upload = asyncio.create_task(running.call("POST", "/datasets", data=jsonl(ROWS), expect=201))
    slowest = 0.0
    loop = asyncio.get_running_loop()
    while not upload.done():
        asked = loop.time()
        async with running.gateway.session.get("/health/live") as reply:
            assert reply.status == 200
        slowest = max(slowest, loop.time() - asked)
    assert slowest < 0.5
    await running.call("DELETE", f"/datasets/{(await upload)['id']}", expect=204)


async def test_dataset_is_not_removed_when_a_training_needs_it(running: Trained) -> None:
    dataset = await running.upload(ROWS)
    training = await running.call("POST", "/trainings", {"datasets": [dataset]}, expect=201)
    answer = await running.call("DELETE", f"/datasets/{dataset}", expect=409)
    assert training["id"] in answer["error"]["message"]
    await running.call("POST", f"/trainings/{training['id']}/cancel")
    await running.call("DELETE", f"/datasets/{dataset}", expect=204)


async def test_check_is_given_up_when_it_takes_too_long(tmp_path: Path) -> None:
    file = tmp_path / f"{UPLOAD_PREFIX}x"
    file.write_bytes(jsonl(ROWS))
    with pytest.raises(DataError, match=r"within 0\.01 s"):
        await check_files([file], timeout_s=0.01)
