"""Files to and from a running gateway, with a progress bar for a person who watches."""

import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import aiohttp

from composer.cli.client import GatewayError, auth_headers, refusal, request
from experts.errors import ConfigError

PIECE = 256 << 10
SILENCE = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=600)
"""However long a transfer takes, something must come now and then."""

T = TypeVar("T")
Advance = Callable[[int], None]


def download(url: str, path: str, file: Path, *, check: Callable[[Path], T], show: bool) -> T:
    """Write what `path` answers to `file`, readable by its owner alone, once it is whole and
    `check` found it good. Returns what `check` says.

    Raises:
        GatewayError: with the gateway's own words.
        ConfigError: the file can't be written.
    """
    try:
        handle, name = tempfile.mkstemp(prefix=f".{file.name}-", dir=file.parent)
    except OSError as error:
        raise ConfigError(f"can't write {file}: {error.strerror}") from error
    try:
        with os.fdopen(handle, "wb") as target:
            asyncio.run(_download(url.rstrip("/") + path, target, show))
            target.flush()
            os.fsync(target.fileno())
        found = check(Path(name))
        os.replace(name, file)
    except OSError as error:
        raise ConfigError(f"can't write {file}: {error.strerror}") from error
    finally:
        with suppress(FileNotFoundError):
            os.unlink(name)
    return found


def upload(url: str, path: str, file: Path, *, show: bool) -> Any:
    """Post a file; returns the JSON answer.

    Raises:
        GatewayError: with the gateway's own words.
        ConfigError: the file can't be read.
    """

    async def run(body: AsyncIterator[bytes]) -> Any:
        async with aiohttp.ClientSession(timeout=SILENCE) as session:
            answer, _ = await request(session, "POST", url.rstrip("/") + path, data=body)
            return answer

    try:
        with file.open("rb") as source, _progress(file.stat().st_size, show) as advance:
            return asyncio.run(run(_pieces(source, advance)))
    except OSError as error:
        raise ConfigError(f"can't read {file}: {error.strerror}") from error


async def _download(url: str, target: Any, show: bool) -> None:
    try:
        async with (
            aiohttp.ClientSession(timeout=SILENCE) as session,
            session.get(url, headers=auth_headers()) as reply,
        ):
            if reply.status != 200:
                raise refusal(url, reply.status, await reply.read())
            with _progress(reply.content_length, show) as advance:
                async for piece in reply.content.iter_chunked(PIECE):
                    target.write(piece)
                    advance(len(piece))
    except (aiohttp.ClientError, TimeoutError) as error:
        raise GatewayError(f"no whole answer from {url}: {type(error).__name__} {error}") from error


async def _pieces(source: Any, advance: Advance) -> AsyncIterator[bytes]:
    while piece := source.read(PIECE):
        yield piece
        advance(len(piece))


@contextmanager
def _progress(total: int | None, show: bool) -> Iterator[Advance]:
    if not show or not sys.stderr.isatty():
        yield lambda n: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda n: bar.advance(task, n)
