"""Export and import of the whole state, from one running gateway to another."""

import asyncio
import gzip
import hashlib
import io
import json
import os
import stat
import subprocess
import sys
import tarfile
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from composer.backup import export_state, inspect_archive
from composer.backup.contents import MANIFEST
from composer.state import (
    CompositionVersion,
    DatasetRecord,
    Endpoint,
    ExpertRecord,
    KeyRecord,
    LiveRecord,
    State,
    TrainingRecord,
)
from composer.state.store import version_key
from experts.spec import ExpertSpec
from tests.faulty import faulty_server
from tests.small_composition import (
    SENTENCES,
    Running,
    put_ready,
    redis_service,
    small_gateway,
    write_artefact,
)

GREETER = ExpertSpec(id="greeter", kind="remote", engine="elsewhere")
FORECASTER = ExpertSpec(id="forecaster", kind="null", text="rain, says the forecaster")
ONE_WAY = {
    "greeting": {"greeter": 0.9, "forecaster": 0.1},
    "weather": {"greeter": 0.1, "forecaster": 0.9},
}
OTHER_WAY = {
    "greeting": {"greeter": 0.1, "forecaster": 0.9},
    "weather": {"greeter": 0.9, "forecaster": 0.1},
}
Archive = list[tuple[tarfile.TarInfo, bytes]]


@asynccontextmanager
async def installation(folder: Path, cache_dir: Path, **settings: object) -> AsyncIterator[Running]:
    """A fresh one: the configuration's experts and a router that sends prompts the other way."""
    folder.mkdir()
    specs = [GREETER, FORECASTER]
    async with faulty_server() as server:
        engine = Endpoint(engine="elsewhere", base_url=server.url, state="ready")
        async with small_gateway(
            folder, cache_dir, specs, [engine], OTHER_WAY, **settings
        ) as running:
            yield running


async def furnish(running: Running, folder: Path, cache_dir: Path) -> str:
    """What users bring: an expert, a trained version that is live, a key, data, trainings, counts.

    Returns the live version.
    """
    state = running.state
    added = ExpertRecord(
        spec=ExpertSpec(id="extra", kind="null", text="added"), source="api", registered_at=7
    )
    await state.experts.put({"extra": added})
    version = write_artefact(folder / "trained", cache_dir, ONE_WAY)
    trained = CompositionVersion(
        name="auto",
        version=version,
        artefact=str(folder / "trained"),
        source="training",
        experts=("greeter", "forecaster"),
    )
    await state.versions.put({version_key("auto", version): trained})
    await state.live.put({"auto": LiveRecord(current=trained, changed_at=9)})
    await state.keys.put(
        {
            "key-1": KeyRecord(
                id="key-1", name="first", digest="ab" * 32, scopes=frozenset({"user"}), created_at=1
            )
        }
    )
    data = folder / "labelled.jsonl"
    data.write_bytes(b'{"prompt": "hi", "category": "greeting"}\n' * 1000)
    await state.datasets.put({"data-1": dataset("data-1", data)})
    await state.trainings.put(
        {
            "done": training("done", "succeeded"),
            "busy": training("busy", "running"),
        }
    )
    redis = state.connection.redis
    await redis.hset("composer:stats:test:hash", mapping={"requests": "12", "errors": "1"})
    await redis.set("composer:stats:test:text", "some text", ex=1000)
    await redis.zadd("composer:stats:test:zset", {f"m{i}": i / 3 for i in range(1500)})
    await redis.rpush("composer:stats:test:list", *map(str, range(1200)))
    await redis.xadd("composer:stats:test:stream", {"at": "1"}, id="5-1")
    await redis.xadd("composer:stats:test:stream", {"at": "2"}, id="6-1")
    await routes_one_way(running)
    return version


def dataset(name: str, file: Path) -> DatasetRecord:
    content = file.read_bytes()
    return DatasetRecord(
        id=name,
        name="mine",
        file=str(file),
        format="jsonl",
        uploaded_at=3,
        sha256=hashlib.sha256(content).hexdigest(),
        bytes=len(content),
        n_prompts=1,
        n_outcomes=0,
    )


def training(name: str, state: Any) -> TrainingRecord:
    return TrainingRecord(id=name, composition="auto", datasets=("data-1",), state=state)


async def routes_one_way(running: Running) -> None:
    async with asyncio.timeout(5):
        while await chosen(running, SENTENCES["greeting"]) != "greeter":
            await asyncio.sleep(0.05)


async def chosen(running: Running, prompt: str) -> str:
    async with running.session.post("/v1/route", json={"prompt": prompt}) as reply:
        return str((await reply.json())["expert"])


async def answer(running: Running, prompt: str) -> tuple[str, str]:
    body = {"messages": [{"role": "user", "content": prompt}]}
    async with running.session.post("/v1/chat/completions", json=body) as reply:
        content = (await reply.json())["choices"][0]["message"]["content"]
        return content, reply.headers["x-composer-expert"]


async def exported(running: Running) -> bytes:
    async with running.session.get("/admin/v1/export") as reply:
        assert reply.status == 200, await reply.text()
        return await reply.read()


async def imported(running: Running, archive: bytes, replace: bool = False) -> tuple[int, Any]:
    path = f"/admin/v1/import?replace={str(replace).lower()}"
    async with running.session.post(path, data=archive) as reply:
        return reply.status, await reply.json()


async def contents(state: State) -> dict[str, Any]:
    """Everything in Redis but the decision cache and what processes keep of themselves."""
    redis = state.connection.redis
    found = {}
    for key in [key async for key in redis.scan_iter("composer:*")]:
        if key.split(":")[1] not in ("workers", "lease", "scores"):
            found[key] = await plain(redis, key)
    return found


async def plain(redis: Any, key: str) -> Any:
    read: dict[str, Callable[[], Any]] = {
        "hash": lambda: redis.hgetall(key),
        "string": lambda: redis.get(key),
        "zset": lambda: redis.zrange(key, 0, -1, withscores=True),
        "list": lambda: redis.lrange(key, 0, -1),
        "stream": lambda: redis.xrange(key),
        "set": lambda: redis.smembers(key),
    }
    return await read[await redis.type(key)]()


class TestFromOneInstallationToAnother:
    async def test_everything_is_restored_when_imported_into_a_fresh_one(
        self, tmp_path: Path, cache_dir: Path
    ) -> None:
        async with installation(tmp_path / "old", cache_dir) as old:
            version = await furnish(old, tmp_path / "old", cache_dir)
            archive = await exported(old)
            answers = [await answer(old, prompt) for prompt in SENTENCES.values()]
            before = await contents(old.state)
        async with installation(tmp_path / "new", cache_dir) as new:
            assert await chosen(new, SENTENCES["greeting"]) == "forecaster"
            status, report = await imported(new, archive)
            assert status == 200, report
            await routes_one_way(new)
            assert [await answer(new, prompt) for prompt in SENTENCES.values()] == answers
            experts, live = await new.state.experts.all(), await new.state.live.get("auto")
            assert experts["extra"].spec.text == "added"
            assert experts["extra"].registered_at == 7
            assert live.current.version == version
            assert Path(live.current.artefact).is_relative_to(tmp_path / "new")
            assert (await new.state.keys.get("key-1")).digest == "ab" * 32
            kept = await new.state.datasets.get("data-1")
            assert hashlib.sha256(Path(kept.file).read_bytes()).hexdigest() == kept.sha256
            assert (await new.state.trainings.get("done")).state == "succeeded"
            assert (await new.state.trainings.get("busy")).state == "cancelled"
            after = await contents(new.state)
            statistics = [key for key in before if key.startswith("composer:stats:test")]
            assert len(statistics) == 5
            assert {k: after[k] for k in statistics} == {k: before[k] for k in statistics}
            ttl = await new.state.connection.redis.ttl("composer:stats:test:text")
            assert 900 < ttl <= 1000
            assert report["added"]["statistics"] == 5
            assert not [key for key in after if key.startswith("composer:import")]

    async def test_nothing_changes_when_imported_again(
        self, tmp_path: Path, cache_dir: Path
    ) -> None:
        async with installation(tmp_path / "old", cache_dir) as running:
            await furnish(running, tmp_path / "old", cache_dir)
            archive = await exported(running)
            before = await contents(running.state)
            for replace in (False, True):
                status, report = await imported(running, archive, replace)
                assert status == 200, report
                assert report["added"].keys() | report["replaced"].keys() <= {"statistics"}
                assert report["unchanged"]["datasets"] == 1
            assert await contents(running.state) == before
            assert not list((tmp_path / "old").glob(".import-*"))

    async def test_nothing_is_written_when_an_id_means_something_else_here(
        self, tmp_path: Path, cache_dir: Path
    ) -> None:
        async with installation(tmp_path / "old", cache_dir) as old:
            await furnish(old, tmp_path / "old", cache_dir)
            archive = await exported(old)
        async with installation(tmp_path / "new", cache_dir) as new:
            other = ExpertSpec(id="extra", kind="null", text="something else")
            await new.state.experts.put({"extra": ExpertRecord(spec=other, source="api")})
            before = await contents(new.state)
            status, report = await imported(new, archive)
            assert status == 409
            assert "experts 'extra'" in report["error"]["message"]
            assert report["error"]["param"] == "replace"
            assert await contents(new.state) == before
            assert not (tmp_path / "new" / "datasets").exists()
            status, report = await imported(new, archive, replace=True)
            assert status == 200
            assert report["replaced"] == {"experts": 1, "live": 1}
            assert (await new.state.experts.get("extra")).spec.text == "added"

    async def test_own_configuration_stays_when_the_archive_has_another(
        self, tmp_path: Path, cache_dir: Path
    ) -> None:
        async with installation(tmp_path / "old", cache_dir) as old:
            lone = ExpertSpec(id="lone", kind="null", text="only there")
            await put_ready(old.state, [lone])
            await old.state.experts.put(
                {
                    "greeter": ExpertRecord(
                        spec=GREETER.model_copy(update={"served_name": "changed"})
                    )
                }
            )
            archive = await exported(old)
        async with installation(tmp_path / "new", cache_dir) as new:
            before = await contents(new.state)
            status, report = await imported(new, archive)
            assert status == 200
            assert await contents(new.state) == before
            assert any("'lone'" in note and "composer.yaml" in note for note in report["notes"])

    async def test_import_is_refused_when_an_expert_would_lack_its_base(
        self, tmp_path: Path, cache_dir: Path
    ) -> None:
        async with installation(tmp_path / "old", cache_dir) as old:
            base = ExpertSpec(id="base", kind="model", engine="some")
            brief = ExpertSpec(id="brief", kind="prompt", base="base", system_prompt="be brief")
            await put_ready(old.state, [base])
            await old.state.experts.put({"brief": ExpertRecord(spec=brief, source="api")})
            archive = await exported(old)
        async with installation(tmp_path / "new", cache_dir) as new:
            before = await contents(new.state)
            status, report = await imported(new, archive)
            assert status == 409
            assert "stands on 'base'" in report["error"]["message"]
            assert await contents(new.state) == before


class TestExport:
    async def test_rest_is_exported_when_the_files_of_a_record_are_gone(
        self, tmp_path: Path, cache_dir: Path
    ) -> None:
        async with installation(tmp_path / "old", cache_dir) as old:
            await furnish(old, tmp_path / "old", cache_dir)
            (tmp_path / "old" / "labelled.jsonl").unlink()
            file = tmp_path / "archive"
            file.write_bytes(await exported(old))
        manifest = inspect_archive(file)
        assert [text for text in manifest.left_out if "data-1" in text]
        assert manifest.counts["datasets"] == 0
        assert manifest.counts["versions"] == 1

    async def test_memory_stays_small_when_a_dataset_is_large(self, tmp_path: Path) -> None:
        large = tmp_path / "large.jsonl"
        large.write_bytes(os.urandom(48 << 20))
        async with redis_service(tmp_path) as (_, url), State(url) as state:
            await state.datasets.put({"large": dataset("large", large)})
            tracemalloc.start()
            try:
                with (tmp_path / "archive").open("wb") as file:
                    await export_state(state, file, tmp_path)
                peak = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
        assert (tmp_path / "archive").stat().st_size > 48 << 20
        assert peak < 16 << 20


def members(archive: bytes) -> Archive:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return [(info, reader.read()) for info in tar if (reader := tar.extractfile(info))]


def packed(archive: Archive) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz") as tar:
        for info, content in archive:
            tar.addfile(info, io.BytesIO(content))
    return raw.getvalue()


def member(name: str, content: bytes = b"x", kind: bytes = tarfile.REGTYPE) -> Any:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = "/etc/passwd" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
    info.size = len(content) if kind == tarfile.REGTYPE else 0
    return info, content if kind == tarfile.REGTYPE else b""


def changed(name: str, change: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """The archive with one member changed, which its manifest does not know of."""

    def damage(archive: bytes) -> bytes:
        result = []
        for info, content in members(archive):
            after = change(content) if info.name.startswith(name) else content
            info.size = len(after)
            result.append((info, after))
        return packed(result)

    return damage


def rehashed(name: str, change: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """The archive with one member changed by somebody who can write a manifest."""

    def damage(archive: bytes) -> bytes:
        result = []
        for info, content in members(changed(name, change)(archive)):
            if info.name == MANIFEST:
                manifest = json.loads(content)
                for entry, data in result:
                    manifest["members"][entry.name] = {
                        "bytes": len(data),
                        "sha256": hashlib.sha256(data).hexdigest(),
                    }
                content = json.dumps(manifest).encode()
                info.size = len(content)
            result.append((info, content))
        return packed(result)

    return damage


def inserted(*extra: Any) -> Callable[[bytes], bytes]:
    def damage(archive: bytes) -> bytes:
        first, *rest = members(archive)
        return packed([first, *extra, *rest])

    return damage


def newer(header: bytes) -> bytes:
    return json.dumps({**json.loads(header), "schema_version": 99}).encode()


def bomb(_: bytes) -> bytes:
    info = tarfile.TarInfo("statistics.jsonl")
    info.size = 8 << 30
    head = [member("header.json", b'{"created_at": 1}')]
    raw = gzip.decompress(packed(head))[:1024]
    return gzip.compress(raw + info.tobuf(tarfile.GNU_FORMAT) + bytes(4 << 20))


def long_name(_: bytes) -> bytes:
    """An extended header that claims gigabytes, which a careless reader would take into memory."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 3 << 30
    return gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 20))


HOSTILE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "not gzip": (lambda _: b"PK\x03\x04 something else", "not a whole archive"),
    "empty": (lambda _: b"", "not a whole archive"),
    "cut short": (lambda a: a[: len(a) // 2], "not a whole archive"),
    "no manifest": (lambda a: packed(members(a)[:-1]), "manifest is missing"),
    "no header": (lambda a: packed(members(a)[1:]), "not an archive of Composer's state"),
    "another tar": (lambda _: packed([member("readme")]), "does not belong"),
    "newer schema": (changed("header.json", newer), "upgrade Composer"),
    "changed table": (changed("tables/keys", lambda c: c.replace(b"first", b"other")), "damaged"),
    "changed dataset": (changed("datasets/", lambda c: c[:-1] + b"!"), "damaged"),
    "traversal": (inserted(member("../../escaped")), "does not belong"),
    "traversal inside": (inserted(member("artefacts/../../../escaped")), "does not belong"),
    "absolute": (inserted(member("/tmp/escaped")), "does not belong"),
    "symlink": (inserted(member("datasets/a", kind=tarfile.SYMTYPE)), "something else than files"),
    "hard link": (inserted(member("datasets/a", kind=tarfile.LNKTYPE)), "something else than"),
    "device": (inserted(member("datasets/a", kind=tarfile.CHRTYPE)), "something else than files"),
    "folder": (inserted(member("datasets/a", kind=tarfile.DIRTYPE)), "something else than files"),
    "twice": (inserted(member("datasets/a"), member("datasets/a")), "twice"),
    "unlisted": (inserted(member("datasets/a")), "damaged"),
    "bomb": (bomb, "more than"),
    "long name": (long_name, "something else than files"),
    "not JSON": (rehashed("tables/experts", lambda c: b"{" + c), "tables/experts.jsonl:1"),
    "no record": (rehashed("tables/keys", lambda c: c.replace(b"digest", b"dug")), "tables/keys"),
    "wrong id": (rehashed("tables/keys", lambda c: c.replace(b"key-1", b"key-2", 1)), "wrong id"),
    "swapped data": (rehashed("datasets/", lambda c: c[:-1] + b"!"), "dataset 'data-1'"),
    "swapped router": (rehashed("artefacts/", lambda c: c + b" "), "version"),
    "foreign key": (rehashed("statistics", lambda c: c.replace(b":stats:", b":keys:")), "statist"),
}


class TestHostileArchives:
    async def test_nothing_is_written_when_the_archive_is_damaged_or_hostile(
        self, tmp_path: Path, cache_dir: Path
    ) -> None:
        async with installation(tmp_path / "old", cache_dir) as old:
            await furnish(old, tmp_path / "old", cache_dir)
            archive = await exported(old)
        limits = {"max_archive_bytes": 1 << 30}
        async with installation(tmp_path / "new", cache_dir, limits=limits) as new:
            before, files = await contents(new.state), sorted((tmp_path / "new").rglob("*"))
            for name, (damage, reason) in HOSTILE.items():
                status, report = await imported(new, damage(archive), replace=True)
                assert (status, report["error"]["code"]) == (400, "invalid_archive"), name
                assert reason in report["error"]["message"], (name, report)
                assert await contents(new.state) == before, name
                assert sorted((tmp_path / "new").rglob("*")) == files, name
            assert not (tmp_path / "escaped").exists()
            assert (await imported(new, archive))[0] == 200

    async def test_body_is_refused_when_it_is_over_the_bound(
        self, tmp_path: Path, cache_dir: Path
    ) -> None:
        limits = {"max_archive_bytes": 4096}
        async with installation(tmp_path / "new", cache_dir, limits=limits) as new:

            async def parts() -> AsyncIterator[bytes]:
                for _ in range(64):
                    yield bytes(1024)

            for body in (bytes(8192), parts()):
                async with new.session.post("/admin/v1/import", data=body) as reply:
                    assert reply.status == 413
                    assert (await reply.json())["error"]["code"] == "request_too_large"


class TestCommand:
    async def coe(self, running: Running, *arguments: str) -> tuple[int, str]:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "composer.cli",
            "state",
            *arguments,
            "--url",
            running.url,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        return process.returncode or 0, output.decode()

    async def test_state_moves_when_exported_and_imported_by_command(
        self, tmp_path: Path, cache_dir: Path
    ) -> None:
        file = tmp_path / "composer.tar.gz"
        async with installation(tmp_path / "old", cache_dir) as old:
            await furnish(old, tmp_path / "old", cache_dir)
            code, output = await self.coe(old, "export", str(file))
            assert (code, "1 datasets" in output) == (0, True), output
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
        async with installation(tmp_path / "new", cache_dir) as new:
            code, output = await self.coe(new, "import", str(file))
            assert (code, "added: 1 experts" in output) == (0, True), output
            await routes_one_way(new)
            file.write_bytes(file.read_bytes()[:500])
            code, output = await self.coe(new, "import", str(file))
            assert code == 1
            assert output.startswith("Error: status 400: this is not a whole archive"), output

    async def test_former_file_stays_when_the_export_fails(
        self, tmp_path: Path, cache_dir: Path
    ) -> None:
        file = tmp_path / "composer.tar.gz"
        file.write_bytes(b"the former one")
        async with installation(tmp_path / "old", cache_dir) as old:
            await old.redis.__aexit__(None, None, None)
            code, output = await self.coe(old, "export", str(file))
        assert code == 1
        assert output.startswith("Error: status 503"), output
        assert file.read_bytes() == b"the former one"
        assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".composer")] == []
