"""The dashboard's files over HTTP: policy, caching, compression, refusals."""

import gzip
import re
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from composer.state import Endpoint
from experts.spec import ExpertSpec
from gateway.dashboard.assets import STATIC, Assets
from tests.small_composition import small_gateway

SPEC = ExpertSpec(id="distant", kind="remote", engine="away")
ENDPOINT = Endpoint(engine="away", base_url="http://127.0.0.1:9", state="ready")
QUALITY = {"greeting": {"distant": 0.1}, "weather": {"distant": 0.1}}
AUTH = {"required": True}


@pytest.fixture
async def session(tmp_path: Path, cache_dir: Path) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of a gateway that takes bytes as they come."""
    async with (
        small_gateway(tmp_path, cache_dir, [SPEC], [ENDPOINT], QUALITY, auth=AUTH) as running,
        aiohttp.ClientSession(running.url, auto_decompress=False) as session,
    ):
        yield session


async def test_page_needs_no_key_and_has_a_strict_policy_when_anybody_asks(
    session: aiohttp.ClientSession,
) -> None:
    async with session.get("/admin/v1/experts") as reply:
        assert reply.status == 401
    for path in ("/dashboard", "/dashboard/", "/dashboard/index.html"):
        async with session.get(path) as reply:
            assert reply.status == 200
            assert reply.content_type == "text/html"
            assert reply.headers["x-content-type-options"] == "nosniff"
            policy = reply.headers["content-security-policy"]
            assert "default-src 'self'" in policy
            assert "script-src 'self';" in policy
            assert "frame-ancestors 'none'" in policy


async def test_plotly_is_cached_and_compressed_when_the_browser_takes_it(
    session: aiohttp.ClientSession,
) -> None:
    path = "/dashboard/plotly.min.js"
    async with session.get(path, headers={"accept-encoding": "br, gzip;q=0.8"}) as reply:
        compressed = await reply.read()
        assert reply.headers["content-encoding"] == "gzip"
        assert "max-age" in reply.headers["cache-control"]
        assert reply.headers["vary"] == "accept-encoding"
        etag = reply.headers["etag"]
    async with session.get(path, headers={"accept-encoding": "gzip;q=0, identity"}) as reply:
        plain = await reply.read()
        assert "content-encoding" not in reply.headers
    assert gzip.decompress(compressed) == plain
    assert b"plotly.js" in plain[:200]
    for known in (etag, f'"other", W/{etag}'):
        async with session.get(path, headers={"if-none-match": known}) as reply:
            assert (reply.status, await reply.read()) == (304, b"")
    async with session.head(path) as reply:
        assert reply.status == 200
        assert int(reply.headers["content-length"]) > 100_000


async def test_requests_are_refused_when_there_is_no_such_file_or_method(
    session: aiohttp.ClientSession,
) -> None:
    for path in (
        "/dashboard/no.js",
        "/dashboard/..%2f__init__.py",
        "/dashboard/a/b",
        "/dashboards",
    ):
        async with session.get(path, headers={"authorization": "Bearer no"}) as reply:
            assert reply.status in (401, 404), path
            assert (await reply.json())["error"]["message"]
    async with session.post("/dashboard") as reply:
        assert reply.status == 405
        assert reply.headers["allow"] == "GET"


def test_page_asks_no_other_host_when_it_is_loaded() -> None:
    for file in STATIC.iterdir():
        hosts = set(re.findall(r"https?://([^/\s`'\"]+)", file.read_text()))
        assert hosts <= {"www.w3.org", "127.0.0.1:8001"}, file.name


async def test_plotly_is_found_without_importing_its_package() -> None:
    asset = await Assets().get("plotly.min.js")
    assert len(asset.compressed) < len(asset.body) / 2
