"""The shared state on real servers: the packaged one and Debian's Redis."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from composer.processes import Command
from composer.services import Service
from composer.snapshots import SnapshotKeeper
from composer.state import CompositionRecord, Endpoint, State
from experts.errors import StateUnavailable
from experts.spec import ExpertSpec
from routers.encoders import load_encoder
from tests.small_composition import redis_service, write_artefact

EXPERT = ExpertSpec(id="general", kind="model", engine="one", params_b=0.1)


async def until_up(state: State) -> None:
    async with asyncio.timeout(10):
        while True:
            try:
                return await state.ping()
            except StateUnavailable:
                await asyncio.sleep(0.02)


@pytest_asyncio.fixture(params=["packaged", "redis-server"])
async def state(
    request: pytest.FixtureRequest, tmp_path: Path, need_program: Callable[[str], str]
) -> AsyncIterator[State]:
    if request.param == "packaged":
        async with redis_service(tmp_path) as (_, url), State(url) as client:
            yield client
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    argv = [need_program("redis-server"), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    service = Service(Command("redis-server", argv, log=tmp_path / "log"), tmp_path / "processes")
    async with service, State(f"redis://127.0.0.1:{port}/0") as client:
        await until_up(client)
        yield client


async def test_snapshot_holds_what_was_written_and_every_write_raises_the_generation(
    state: State,
) -> None:
    await state.migrate()
    before = await state.generation()
    await state.put_experts([EXPERT])
    await state.put_endpoint(Endpoint(engine="one", base_url="http://x", state="ready"))
    record = CompositionRecord(name="auto", version="1", artefact="/a", quality_weight=0.5)
    await state.put_composition(record)
    snapshot = await state.snapshot()
    assert snapshot.experts == {"general": EXPERT}
    assert snapshot.endpoints["one"].state == "ready"
    assert snapshot.compositions == {"auto": record}
    assert snapshot.generation == before + 3


async def test_experts_and_engines_that_are_not_retained_are_forgotten(state: State) -> None:
    other = EXPERT.model_copy(update={"id": "other"})
    await state.put_experts([EXPERT, other])
    await state.put_endpoint(Endpoint(engine="old", base_url="http://x", state="ready"))
    await state.put_composition(CompositionRecord(name="old", version="1", artefact="/a"))
    await state.retain(["general"], ["one"], ["auto"])
    snapshot = await state.snapshot()
    assert set(snapshot.experts) == {"general"}
    assert snapshot.endpoints == {}
    assert snapshot.compositions == {}


async def test_state_of_a_newer_schema_is_refused(state: State) -> None:
    await state.migrate()
    await state._redis.set("composer:schema", 99)
    with pytest.raises(StateUnavailable, match="upgrade Composer"):
        await state.migrate()


async def test_acknowledged_writes_are_there_when_the_server_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("composer.services.BACKOFF_S", (0.05,))
    async with redis_service(tmp_path) as (service, url), State(url) as state:
        for round_number in range(5):
            for i in range(20):
                spec = EXPERT.model_copy(update={"id": f"expert-{round_number}-{i}"})
                await state.put_experts([spec])
            process = service._process
            assert process is not None
            process.kill()
            with pytest.raises(StateUnavailable):
                await state.generation()
            await until_up(state)
            snapshot = await state.snapshot()
            assert len(snapshot.experts) == 20 * (round_number + 1)
            assert snapshot.generation == 20 * (round_number + 1)


async def test_nothing_listens_on_tcp_and_the_socket_is_private(tmp_path: Path) -> None:
    async with redis_service(tmp_path) as (_, url):
        socket_file = Path(url.removeprefix("unix://"))
        assert socket_file.stat().st_mode & 0o077 == 0
        assert socket_file.parent.stat().st_mode & 0o077 == 0


async def test_long_state_folder_still_gets_a_socket(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 60) / ("y" * 60)
    async with redis_service(deep) as (_, url), State(url) as state:
        await state.ping()


async def test_composition_of_another_encoder_is_refused_and_the_live_one_goes_on(
    tmp_path: Path, cache_dir: Path
) -> None:
    quality = {"greeting": {"general": 1.0}, "weather": {"general": 1.0}}
    good, bad = tmp_path / "good", tmp_path / "bad"
    write_artefact(good, cache_dir, quality)
    write_artefact(bad, cache_dir, quality)
    manifest = bad / "artefact.json"
    manifest.write_text(manifest.read_text().replace("all-MiniLM", "another-MiniLM"))
    encoder = load_encoder("onnx", cache_dir, threads=1)
    async with redis_service(tmp_path) as (_, url), State(url) as state:
        await state.put_experts([EXPERT])
        await state.put_composition(CompositionRecord(name="auto", version="1", artefact=str(good)))
        async with SnapshotKeeper(state, encoder) as keeper:
            assert keeper.view.compositions["auto"].record.version == "1"
            await state.put_composition(
                CompositionRecord(name="auto", version="2", artefact=str(bad))
            )
            await keeper.refresh()
            assert keeper.view.compositions["auto"].record.version == "1"
