"""Versions of compositions: import of good and hostile archives, promotion, rollback, removal."""

import asyncio
import io
import json
import shutil
import tarfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from composer.compositions import artefacts_folder
from composer.state.store import version_key
from routers.artefact import ARRAYS, MANIFEST
from tests.small_composition import write_artefact
from tests.training_gateway import INCUMBENT, NEWCOMER, Trained, training_gateway

pytestmark = pytest.mark.asyncio(loop_scope="module")

IMPORT = "/compositions/import?name="
Files = dict[str, bytes]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def running(
    tmp_path_factory: pytest.TempPathFactory, cache_dir: Path
) -> AsyncIterator[Trained]:
    folder = tmp_path_factory.mktemp("compositions")
    limits = {"max_dataset_bytes": 1 << 20}
    async with training_gateway(folder, cache_dir, run=False, limits=limits) as trained:
        yield trained


def artefact_files(
    folder: Path, cache_dir: Path, expert: str = NEWCOMER, score: float = 0.7
) -> Files:
    write_artefact(
        folder / "made", cache_dir, {"greeting": {expert: score}, "weather": {expert: 0.5}}
    )
    return {name: (folder / "made" / name).read_bytes() for name in (MANIFEST, ARRAYS)}


def tar_of(files: Files, change: Callable[[tarfile.TarInfo], None] = lambda member: None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            change(member)
            tar.addfile(member, io.BytesIO(content) if member.isreg() else None)
    return buffer.getvalue()


def left_over(running: Trained) -> list[str]:
    folder = artefacts_folder(running.config)
    hidden = (file.name for file in folder.iterdir() if file.name.startswith("."))
    return sorted(hidden) if folder.exists() else []


async def test_imported_version_is_served_once_it_is_promoted(
    running: Trained, tmp_path: Path, cache_dir: Path
) -> None:
    files = artefact_files(tmp_path, cache_dir)
    folder = {f"./artefact/{name}": content for name, content in files.items()}
    version = await running.call("POST", IMPORT + "imported", data=tar_of(folder), expect=201)
    assert version["source"] == "import"
    assert version["experts"] == [NEWCOMER]
    again = await running.call("POST", IMPORT + "imported", data=tar_of(files), expect=201)
    assert again == version
    kept = artefacts_folder(running.config) / version["version"]
    assert {f.name: f.read_bytes() for f in kept.iterdir()} == files
    shown = await running.call("GET", "/compositions/imported")
    assert shown["live"] is None
    ask = {"model": "imported", "prompt": "hello there, how are you"}
    async with running.gateway.session.post("/v1/route", json=ask) as reply:
        assert reply.status == 404
    promotion = {"version": version["version"]}
    promoted = await running.call("POST", "/compositions/imported/promote", promotion)
    assert promoted["workers"] == {"total": 1, "current": 1}
    async with running.gateway.session.post("/v1/route", json=ask) as reply:
        assert (await reply.json())["expert"] == NEWCOMER
    await running.call("POST", "/compositions/imported/promote", promotion)
    assert (await running.call("GET", "/compositions/imported"))["former"] == []
    listed = await running.call("GET", "/compositions")
    assert [c["name"] for c in listed["data"]] == ["auto", "imported"]
    assert left_over(running) == []


def _as_link(member: tarfile.TarInfo) -> None:
    member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"


def _as_hard_link(member: tarfile.TarInfo) -> None:
    member.type, member.linkname = tarfile.LNKTYPE, MANIFEST


def _as_device(member: tarfile.TarInfo) -> None:
    member.type = tarfile.CHRTYPE


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda files: tar_of({**files, "../../evil": b"x"}), "holds '../../evil'"),
        (lambda files: tar_of({**files, "/etc/evil": b"x"}), "holds '/etc/evil'"),
        (lambda files: tar_of({**files, f"b/{MANIFEST}": b"x"}), "twice"),
        (lambda files: tar_of(files, _as_link), "an artefact is the two files"),
        (lambda files: tar_of(files, _as_hard_link), "an artefact is the two files"),
        (lambda files: tar_of(files, _as_device), "an artefact is the two files"),
        (lambda files: tar_of({MANIFEST: files[MANIFEST]}), f"lacks {ARRAYS}"),
        (lambda files: tar_of({f"d{i}/": b"" for i in range(20)}), "d0/"),
        (lambda files: tar_of(files)[:3000], "no tar archive"),
        (lambda files: b"garbage" * 1000, "no tar archive"),
        (lambda files: tar_of({**files, ARRAYS: files[ARRAYS][:-9]}), "damaged"),
        (lambda files: tar_of({**files, MANIFEST: b"{}"}), "Field required"),
    ],
)
async def test_hostile_or_damaged_archive_is_refused_and_nothing_is_left(
    running: Trained,
    tmp_path: Path,
    cache_dir: Path,
    spoil: Callable[[Files], bytes],
    reason: str,
) -> None:
    before = sorted(p for p in running.config.state_dir.rglob("*") if "artefacts" in str(p))
    body = spoil(artefact_files(tmp_path, cache_dir))
    answer = await running.call("POST", IMPORT + "hostile", data=body, expect=400)
    assert answer["error"]["code"] == "invalid_artefact"
    assert reason in answer["error"]["message"]
    assert str(running.config.state_dir) not in answer["error"]["message"]
    after = sorted(p for p in running.config.state_dir.rglob("*") if "artefacts" in str(p))
    assert [p for p in after if p not in before] in ([], [artefacts_folder(running.config)])
    await running.call("GET", "/compositions/hostile", expect=404)


async def test_compressed_archive_is_refused_without_unpacking_it(running: Trained) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        member = tarfile.TarInfo(ARRAYS)
        member.size = 50 << 20
        tar.addfile(member, io.BytesIO(bytes(member.size)))
    answer = await running.call("POST", IMPORT + "bomb", data=buffer.getvalue(), expect=400)
    assert "uncompressed" in answer["error"]["message"]


async def test_import_is_refused_when_experts_are_not_registered_or_the_encoder_differs(
    running: Trained, tmp_path: Path, cache_dir: Path
) -> None:
    strange = artefact_files(tmp_path, cache_dir, expert="stranger")
    answer = await running.call("POST", IMPORT + "x", data=tar_of(strange), expect=400)
    assert "not registered are the experts stranger" in answer["error"]["message"]
    files = artefact_files(tmp_path, cache_dir)
    manifest = json.loads(files[MANIFEST]) | {"encoder": "another:0"}
    files[MANIFEST] = json.dumps(manifest).encode()
    answer = await running.call("POST", IMPORT + "x", data=tar_of(files), expect=400)
    assert "trained on encoder 'another:0'" in answer["error"]["message"]
    answer = await running.call("POST", IMPORT + INCUMBENT, data=tar_of(files), expect=409)
    assert "is an expert" in answer["error"]["message"]
    assert left_over(running) == []


async def test_version_with_another_weight_is_refused_because_versions_do_not_change(
    running: Trained, tmp_path: Path, cache_dir: Path
) -> None:
    body = tar_of(artefact_files(tmp_path, cache_dir, score=0.61))
    await running.call("POST", IMPORT + "weighed&quality_weight=0.5", data=body, expect=201)
    answer = await running.call("POST", IMPORT + "weighed", data=body, expect=409)
    assert "versions don't change" in answer["error"]["message"]


async def test_version_whose_artefact_is_gone_is_not_promoted(
    running: Trained, tmp_path: Path, cache_dir: Path
) -> None:
    body = tar_of(artefact_files(tmp_path, cache_dir, score=0.62))
    version = (await running.call("POST", IMPORT + "gone", data=body, expect=201))["version"]
    shutil.rmtree(artefacts_folder(running.config) / version)
    promotion = {"version": version}
    answer = await running.call("POST", "/compositions/gone/promote", promotion, expect=400)
    assert "can't be served" in answer["error"]["message"]
    assert await running.state.live.find("gone") is None
    await running.call("POST", IMPORT + "gone", data=body, expect=201)
    await running.call("POST", "/compositions/gone/promote", promotion)


async def test_unknown_version_and_unknown_composition_are_not_found(running: Trained) -> None:
    promotion = {"version": "0" * 12}
    await running.call("POST", "/compositions/auto/promote", promotion, expect=404)
    await running.call("POST", "/compositions/nobody/promote", promotion, expect=404)
    await running.call("POST", "/compositions/nobody/rollback", expect=404)
    await running.call("GET", "/compositions/nobody", expect=404)
    answer = await running.call("POST", "/compositions/auto/promote", {"v": 1}, expect=400)
    assert answer["error"]["param"] in ("version", "v")


async def test_rollbacks_go_back_one_by_one_and_deleted_versions_are_left_out(
    running: Trained, tmp_path: Path, cache_dir: Path
) -> None:
    versions = []
    for score in (0.51, 0.52, 0.53, 0.54):
        body = tar_of(artefact_files(tmp_path, cache_dir, score=score))
        made = await running.call("POST", IMPORT + "steps", data=body, expect=201)
        versions.append(made["version"])
        await running.call("POST", "/compositions/steps/promote", {"version": versions[-1]})
    a, b, c, d = versions
    answer = await running.call("DELETE", f"/compositions/steps/versions/{d}", expect=409)
    assert "is live" in answer["error"]["message"]
    await running.call("DELETE", f"/compositions/steps/versions/{b}", expect=204)
    assert not (artefacts_folder(running.config) / b).exists()
    await running.call("DELETE", f"/compositions/steps/versions/{b}", expect=404)
    for expected, former in ((c, [a]), (a, [])):
        back = await running.call("POST", "/compositions/steps/rollback")
        assert (back["live"]["version"], back["former"]) == (expected, former)
    await running.call("POST", "/compositions/steps/rollback", expect=409)


async def test_one_of_two_rollbacks_at_once_is_refused_or_both_go_one_step_each(
    running: Trained, tmp_path: Path, cache_dir: Path
) -> None:
    for score in (0.31, 0.32, 0.33):
        body = tar_of(artefact_files(tmp_path, cache_dir, score=score))
        made = await running.call("POST", IMPORT + "race", data=body, expect=201)
        await running.call("POST", "/compositions/race/promote", {"version": made["version"]})

    async def back() -> int:
        url = "/admin/v1/compositions/race/rollback"
        async with running.gateway.session.post(url) as reply:
            return reply.status

    done = await asyncio.gather(back(), back())
    assert set(done) <= {200, 409}
    live = await running.state.live.get("race")
    assert len(live.former) == 2 - done.count(200)


async def test_artefact_that_another_composition_uses_outlives_a_deleted_version(
    running: Trained, tmp_path: Path, cache_dir: Path
) -> None:
    body = tar_of(artefact_files(tmp_path, cache_dir, score=0.41))
    for name in ("one", "two"):
        version = (await running.call("POST", IMPORT + name, data=body, expect=201))["version"]
    await running.call("DELETE", f"/compositions/one/versions/{version}", expect=204)
    assert (artefacts_folder(running.config) / version / MANIFEST).is_file()
    assert await running.state.versions.find(version_key("two", version)) is not None
