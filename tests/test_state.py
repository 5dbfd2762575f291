"""The shared state on real servers: the packaged one and Debian's Redis."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from composer.declared import declare, goes_live
from composer.processes import Command
from composer.services import Service
from composer.snapshots import SnapshotKeeper
from composer.state import CompositionVersion, Endpoint, ExpertRecord, State
from experts.errors import Conflict, NotFound, StateUnavailable
from experts.spec import ExpertSpec
from routers.encoders import load_encoder
from tests.small_composition import make_live, put_ready, redis_service, write_artefact

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
    await state.experts.put({"general": ExpertRecord(spec=EXPERT)})
    await state.endpoints.put({"one": Endpoint(engine="one", base_url="http://x", state="ready")})
    live = await make_live(state, "1", Path("/a"))
    snapshot = await state.snapshot()
    assert snapshot.experts == {"general": EXPERT}
    assert snapshot.endpoints["one"].state == "ready"
    assert snapshot.compositions == {"auto": live}
    assert snapshot.generation == before + 3


async def test_records_are_created_once_and_updated_only_when_there(state: State) -> None:
    record = ExpertRecord(spec=EXPERT)
    await state.experts.create("general", record)
    with pytest.raises(Conflict, match="expert 'general' already"):
        await state.experts.create("general", record)
    with pytest.raises(NotFound, match="no expert 'other'"):
        await state.experts.update("other", lambda known: known)


async def test_concurrent_updates_of_one_record_are_all_kept(state: State) -> None:
    await state.experts.put({"general": ExpertRecord(spec=EXPERT)})

    async def count() -> None:
        await state.experts.update(
            "general",
            lambda known: known.model_copy(update={"registered_at": known.registered_at + 1}),
        )

    await asyncio.gather(*(count() for _ in range(20)))
    assert (await state.experts.get("general")).registered_at == 20


async def test_schema_1_is_brought_forward(state: State) -> None:
    redis = state.connection.redis
    await redis.set("composer:schema", 1)
    await redis.hset("composer:experts", "general", EXPERT.model_dump_json())
    old = '{"name": "auto", "version": "7", "artefact": "/a", "quality_weight": 0.5}'
    await redis.hset("composer:compositions", "auto", old)
    await state.migrate()
    snapshot = await state.snapshot()
    assert snapshot.records["general"].spec == EXPERT
    assert snapshot.compositions["auto"].quality_weight == 0.5
    assert (await state.versions.get("auto@7")).artefact == "/a"
    assert int(await redis.get("composer:schema")) == 2


async def test_configuration_replaces_its_own_experts_and_leaves_registered_ones(
    state: State,
) -> None:
    def expert(name: str) -> ExpertSpec:
        return EXPERT.model_copy(update={"id": name})

    first = CompositionVersion(name="auto", version="1", artefact="/a")
    await declare(state, [expert("one"), expert("two")], first)
    mine = ExpertRecord(spec=expert("mine"), source="api")
    await state.experts.create("mine", mine)
    await declare(state, [expert("two")], first)
    assert set((await state.snapshot()).experts) == {"two", "mine"}


async def test_promoted_version_stays_live_when_the_configuration_is_declared_again(
    state: State,
) -> None:
    configured = CompositionVersion(name="auto", version="1", artefact="/a")
    trained = CompositionVersion(name="auto", version="2", artefact="/b", source="training")
    await declare(state, [EXPERT], configured)
    await declare(state, [EXPERT], configured.model_copy(update={"version": "3"}))
    assert (await state.live.get("auto")).former == ("1",)
    await state.live.update("auto", lambda live: goes_live(live, trained))
    await declare(state, [EXPERT], configured)
    live = await state.live.get("auto")
    assert (live.current.version, live.former) == ("2", ("3", "1"))


async def test_state_of_a_newer_schema_is_refused(state: State) -> None:
    await state.migrate()
    await state.connection.redis.set("composer:schema", 99)
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
                await state.experts.create(spec.id, ExpertRecord(spec=spec))
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
        await put_ready(state, [EXPERT])
        await make_live(state, "1", good)
        async with SnapshotKeeper(state, encoder) as keeper:
            assert keeper.view.compositions["auto"].record.version == "1"
            await make_live(state, "2", bad)
            await keeper.refresh()
            assert keeper.view.compositions["auto"].record.version == "1"


async def test_task_in_a_loop_over_the_state_ends_when_it_is_cancelled(tmp_path: Path) -> None:
    async with redis_service(tmp_path) as (_, url), State(url) as state:

        async def loop() -> None:
            while True:
                await state.snapshot()
                await state.experts.change("general", lambda known: ExpertRecord(spec=EXPERT))

        for i in range(150):
            task = asyncio.create_task(loop())
            await asyncio.sleep(i % 15 / 3000)
            task.cancel()
            done, _ = await asyncio.wait([task], timeout=2)
            assert done, i
