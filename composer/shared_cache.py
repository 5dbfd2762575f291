"""The part of the decision cache that all gateways share: a table in Redis for each version.

The table is direct-mapped: an entry's digest gives its row, and a newer entry of that row replaces
it, so the table never has more rows than it may. A row holds the whole digest, so another entry's
row is a miss. Rows hold digests and numbers, and no text of a prompt.
"""

import asyncio
import time
from types import TracebackType
from typing import Any, Self

from composer.config import CacheConfig
from composer.logs import get_logger
from composer.quick_redis import QuickRedis
from composer.state import PREFIX, CacheFlush, State
from composer.state.store import EVERY_VERSION

TABLES = f"{PREFIX}scores:"
DIGEST_BYTES = 16
MAX_ROW_BYTES = 16 << 10
MAX_WAITING = 4096
"""Rows that wait to be written; while there are so many, new ones are left out."""

WRITE_S = 0.5
WRITE_DEADLINE_S = 1.0

_log = get_logger("shared-cache")


class SharedCache:
    """Reads on the path of a request, within the client's deadline; writes in batches, from a task
    that it owns."""

    def __init__(self, redis: QuickRedis, config: CacheConfig) -> None:
        self.capacity = config.shared_entries
        self._redis = redis
        self._ttl_s = max(1, round(config.ttl_s))
        self._waiting: dict[tuple[str, int], bytes] = {}
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        if self.capacity:
            self._task = asyncio.create_task(self._write_on(), name="shared-cache")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            await self._write()

    async def get(self, version: str, digest: bytes) -> bytes | None:
        """The entry of this digest, if it is there and Redis answers in time."""
        if not self.capacity:
            return None
        row = self._row(digest)

        async def read(client: Any) -> bytes | None:
            found: bytes | None = await client.hget(TABLES + version, row)
            return found

        found = await self._redis.ask(read, None)
        if found is None or found[:DIGEST_BYTES] != digest:
            return None
        return found[DIGEST_BYTES:]

    def put(self, version: str, digest: bytes, entry: bytes) -> None:
        """Have an entry written soon; one that is too large, or one too many, is left out."""
        if not self.capacity or DIGEST_BYTES + len(entry) > MAX_ROW_BYTES:
            return
        if len(self._waiting) < MAX_WAITING:
            self._waiting[version, self._row(digest)] = digest + entry

    def _row(self, digest: bytes) -> int:
        return int.from_bytes(digest[:8], "big") % self.capacity

    async def _write_on(self) -> None:
        while True:
            await asyncio.sleep(WRITE_S)
            try:
                await self._write()
            except Exception as error:
                # A cache that can't be written is no reason to stop writing it.
                _log.error("entries of the decision cache are lost", error=repr(error))

    async def _write(self) -> None:
        if not self._waiting:
            return
        tables: dict[str, dict[int, bytes]] = {}
        for (version, row), value in self._waiting.items():
            tables.setdefault(version, {})[row] = value
        self._waiting = {}

        async def write(client: Any) -> None:
            async with client.pipeline(transaction=False) as pipe:
                for version, rows in tables.items():
                    pipe.hset(TABLES + version, mapping=rows)
                    pipe.expire(TABLES + version, self._ttl_s)
                await pipe.execute()

        await self._redis.ask(write, None, timeout_s=WRITE_DEADLINE_S)


async def flush(state: State, version: str | None = None) -> None:
    """Forget what is cached for a version (None: for all), in Redis and in every gateway.

    A gateway stops using its own entries when it sees the record, within a second.
    """
    now = time.time()
    if version is None:
        former = await state.flushes.all()
        records: dict[str, CacheFlush | None] = dict.fromkeys(former)
        await state.flushes.put({**records, EVERY_VERSION: CacheFlush(at=now)})
    else:
        await state.flushes.put({version: CacheFlush(at=now)})
    connection = state.connection
    for name in [version] if version is not None else await entries(state):
        await connection.call(connection.redis.unlink(TABLES + name))


async def entries(state: State) -> dict[str, int]:
    """How many entries Redis holds of each version."""
    connection = state.connection

    async def names() -> list[str]:
        return [key async for key in connection.redis.scan_iter(match=f"{TABLES}*", count=1000)]

    found = {}
    for key in await connection.call(names()):
        found[key.removeprefix(TABLES)] = int(await connection.call(connection.redis.hlen(key)))
    return found
