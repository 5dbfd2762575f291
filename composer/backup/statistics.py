"""The statistics as plain data: Redis keys of every type, in pieces of bounded size.

A line is `{"key", "type", "items", "until"}`; a key of many items has several lines. `until` is
when the key passes away (Unix seconds, null: never).
"""

import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import orjson

from composer.state import PREFIX, Connection
from composer.stats.keys import SEQUENCE
from experts.errors import ArchiveError, StateUnavailable

PATTERN = f"{PREFIX}stats:*"
MAX_LINE = 64 << 20
PIECE = 500
"""Items of a key that are read or written at a time."""
BATCH_BYTES = 1 << 20
_STAGED_S = 3600
"""What an import that was killed left behind passes away by itself."""

Items = Sequence[Any]


async def dump(connection: Connection) -> AsyncIterator[bytes]:
    """Lines of all statistics, as they are while this runs."""
    redis = connection.redis
    for key in sorted({key async for key in _scan(connection)}):
        kind = await connection.call(redis.type(key))
        left_ms = await connection.call(redis.pttl(key))
        until = time.time() + left_ms / 1000 if left_ms >= 0 else None
        if kind not in _READERS:
            continue
        async for items in _READERS[kind](connection, key):
            line = {"key": key, "type": kind, "items": items, "until": until}
            yield orjson.dumps(line) + b"\n"


class StagedStatistics:
    """Statistics that stand in Redis under other names, to be renamed in one write."""

    def __init__(self, connection: Connection) -> None:
        self.keys: dict[str, float | None] = {}
        self._connection = connection
        self._prefix = f"{PREFIX}import:{secrets.token_hex(8)}:"

    async def add(self, lines: Iterable[bytes]) -> None:
        """
        Raises:
            ArchiveError: a line is none of `dump`.
        """
        for batch in _batches(lines):
            async with self._connection.redis.pipeline(transaction=True) as pipe:
                for line in batch:
                    key, kind, items, until = _parse(line)
                    if until is not None and until <= time.time():
                        continue
                    for command in _WRITERS[kind](self._prefix + key, items):
                        pipe.execute_command(*command)
                    pipe.expire(self._prefix + key, _STAGED_S)
                    self.keys[key] = until
                await self._connection.call(pipe.execute())

    def take_over(self, pipe: Any, *, replace: bool) -> None:
        """Queue the renaming. Without `replace`, what is there already stays."""
        for key, until in self.keys.items():
            staged = self._prefix + key
            pipe.persist(staged)
            if until is not None:
                pipe.pexpireat(staged, int(until * 1000))
            (pipe.rename if replace else pipe.renamenx)(staged, key)

    async def discard(self) -> None:
        """Forget what was not taken over; what can't be reached now passes away by itself."""
        with suppress(StateUnavailable):
            for key in self.keys:
                await self._connection.call(self._connection.redis.unlink(self._prefix + key))


async def existing(connection: Connection) -> set[str]:
    """Names of the statistics that are there. How far each worker has counted is none of them."""
    return {key async for key in _scan(connection)}


def _batches(lines: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Lines to be written at once: the server syncs every write to the disk."""
    batch: list[bytes] = []
    size = 0
    for line in lines:
        batch.append(line)
        size += len(line)
        if size > BATCH_BYTES or len(batch) == PIECE:
            yield batch
            batch, size = [], 0
    yield batch


async def _scan(connection: Connection) -> AsyncIterator[str]:
    cursor = 0
    while True:
        cursor, keys = await connection.call(
            connection.redis.scan(cursor, match=PATTERN, count=PIECE)
        )
        for key in keys:
            if not key.startswith(SEQUENCE):
                yield key
        if cursor == 0:
            return


async def _string(connection: Connection, key: str) -> AsyncIterator[Items]:
    value = await connection.call(connection.redis.get(key))
    if value is not None:
        yield [value]


async def _list(connection: Connection, key: str) -> AsyncIterator[Items]:
    start = 0
    while items := await connection.call(connection.redis.lrange(key, start, start + PIECE - 1)):
        yield items
        start += PIECE


def _scanned(name: str) -> Callable[[Connection, str], AsyncIterator[Items]]:
    async def read(connection: Connection, key: str) -> AsyncIterator[Items]:
        cursor = 0
        scan: Callable[..., Awaitable[Any]] = getattr(connection.redis, name)
        while True:
            cursor, found = await connection.call(scan(key, cursor, count=PIECE))
            if found:
                yield list(found.items()) if isinstance(found, dict) else list(found)
            if cursor == 0:
                return

    return read


async def _stream(connection: Connection, key: str) -> AsyncIterator[Items]:
    start = "-"
    while entries := await connection.call(connection.redis.xrange(key, min=start, count=PIECE)):
        yield [[entry, list(fields.items())] for entry, fields in entries]
        start = f"({entries[-1][0]}"


_READERS: dict[str, Callable[[Connection, str], AsyncIterator[Items]]] = {
    "string": _string,
    "list": _list,
    "hash": _scanned("hscan"),
    "set": _scanned("sscan"),
    "zset": _scanned("zscan"),
    "stream": _stream,
}
_WRITERS: dict[str, Callable[[str, Items], list[tuple[Any, ...]]]] = {
    "string": lambda key, items: [("SET", key, items[0])],
    "list": lambda key, items: [("RPUSH", key, *items)],
    "hash": lambda key, items: [("HSET", key, *(part for pair in items for part in pair))],
    "set": lambda key, items: [("SADD", key, *items)],
    "zset": lambda key, items: [("ZADD", key, *(part for m, s in items for part in (s, m)))],
    "stream": lambda key, items: [
        ("XADD", key, entry, *(part for pair in fields for part in pair)) for entry, fields in items
    ],
}


def _parse(line: bytes) -> tuple[str, str, Items, float | None]:
    try:
        row = orjson.loads(line)
        key, kind, items, until = row["key"], row["type"], row["items"], row["until"]
        good = (
            isinstance(key, str)
            and key.startswith(PATTERN.removesuffix("*"))
            and isinstance(items, list)
            and bool(items)
            and isinstance(until, int | float | None)
        )
        if good:
            _WRITERS[kind](key, items)
            return key, kind, items, until
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ArchiveError(f"the archive's statistics can't be read: {error!r}") from error
    raise ArchiveError("the archive's statistics can't be read")
