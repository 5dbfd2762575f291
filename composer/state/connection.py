"""A connection to Redis whose every call has a deadline, and hashes of records on it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Generic, TypeVar

import redis.asyncio as redis
from pydantic import BaseModel, ValidationError
from redis.exceptions import RedisError, WatchError

from experts.errors import ConfigError, Conflict, NotFound, StateUnavailable

PREFIX = "composer:"
GENERATION = f"{PREFIX}generation"
MAX_RACES = 50

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")


class Connection:
    """The client of one Redis server. Every call raises `StateUnavailable` when it can't be had."""

    def __init__(self, url: str, *, timeout_s: float = 1.0) -> None:
        try:
            # Its stubs say bytes | str everywhere; with decode_responses it is str.
            self.redis: Any = redis.Redis.from_url(
                url,
                socket_timeout=timeout_s,
                socket_connect_timeout=timeout_s,
                decode_responses=True,
            )
        except ValueError as error:
            # The URL may hold a password, and the error may hold the URL.
            raise ConfigError("redis_url is not a URL of a Redis server", param="redis_url") from (
                None if "@" in url else error
            )

    async def close(self) -> None:
        await self.redis.aclose()

    async def call(self, awaitable: Awaitable[T]) -> T:
        """
        Raises:
            StateUnavailable: the server can't be reached, or answered with an error.
        """
        try:
            return await _heeding(awaitable)
        except WatchError:
            raise
        except (TimeoutError, RedisError, OSError) as error:
            raise StateUnavailable(f"the state (Redis) can't be reached: {error}") from error

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Any]:
        """A pipeline of the client that is a transaction; what it watches is let go at the end."""
        pipe = self.redis.pipeline(transaction=True)
        try:
            yield pipe
        finally:
            await self.call(pipe.reset())


async def _heeding(awaitable: Awaitable[T]) -> T:
    """Await, and be cancelled when cancelled.

    The client waits for its socket by `asyncio.wait_for`, which before Python 3.12 forgets a
    cancellation that comes as it is done: a task in a loop would then never end.
    """
    task = asyncio.current_task()
    before = 0 if task is None else task.cancelling()
    try:
        return await awaitable
    finally:
        if task is not None and task.cancelling() > before:
            raise asyncio.CancelledError


class Table(Generic[M]):
    """A Redis hash of records by id.

    With `watched` every write raises the generation in the same transaction, so a reader that
    polls it sees each change whole.
    """

    def __init__(
        self, connection: Connection, name: str, model: type[M], *, watched: bool = True
    ) -> None:
        self.key = f"{PREFIX}{name}"
        self.watched = watched
        self._connection = connection
        self._model = model
        self._what = name.removesuffix("s").replace("_", " ")

    def read(self, raw: Mapping[str, str]) -> dict[str, M]:
        """
        Raises:
            StateUnavailable: a record was written by something that this version can't read.
        """
        try:
            return {key: self._model.model_validate_json(value) for key, value in raw.items()}
        except ValidationError as error:
            raise StateUnavailable(
                f"the state holds a record that can't be read: {error}"
            ) from error

    async def all(self) -> dict[str, M]:
        return self.read(await self._connection.call(self._connection.redis.hgetall(self.key)))

    async def find(self, record_id: str) -> M | None:
        raw = await self._connection.call(self._connection.redis.hget(self.key, record_id))
        return None if raw is None else self.read({record_id: raw})[record_id]

    async def get(self, record_id: str) -> M:
        """
        Raises:
            NotFound: there is no record of this id.
        """
        record = await self.find(record_id)
        if record is None:
            raise NotFound(f"there is no {self._what} '{record_id}'")
        return record

    async def put(self, records: Mapping[str, M | None]) -> None:
        """Write records, each replacing one of the same id; None deletes. All or none."""
        await write(self._connection, [(self, records)])

    async def create(self, record_id: str, record: M) -> None:
        """
        Raises:
            Conflict: there is a record of this id.
        """

        def only_new(current: M | None) -> M:
            if current is not None:
                raise Conflict(f"there is a {self._what} '{record_id}' already")
            return record

        await self.change(record_id, only_new)

    async def update(self, record_id: str, change: Callable[[M], M]) -> M:
        """Replace a record by what `change` makes of it, as if nobody else wrote meanwhile.

        Raises:
            NotFound: there is no record of this id.
        """

        def only_known(current: M | None) -> M:
            if current is None:
                raise NotFound(f"there is no {self._what} '{record_id}'")
            return change(current)

        return await self.change(record_id, only_known)

    async def remove(
        self, record_id: str, allow: Callable[[Mapping[str, M]], None] = lambda _: None
    ) -> None:
        """Delete a record if `allow`, which is shown all records, does not raise; as if nobody else
        wrote meanwhile.

        Raises:
            NotFound: there is no record of this id.
        """
        for _ in range(MAX_RACES):
            async with self._connection.transaction() as pipe:
                await self._connection.call(pipe.watch(self.key))
                records = self.read(await self._connection.call(pipe.hgetall(self.key)))
                if record_id not in records:
                    raise NotFound(f"there is no {self._what} '{record_id}'")
                allow(records)
                pipe.multi()
                pipe.hdel(self.key, record_id)
                if self.watched:
                    pipe.incr(GENERATION)
                try:
                    await self._connection.call(pipe.execute())
                except WatchError:
                    continue
                return
        raise StateUnavailable(f"'{record_id}' is changed by too many at once: try again")

    async def change(self, record_id: str, change: Callable[[M | None], M]) -> M:
        """Set a record to what `change` makes of it (None: there is none), as if nobody else wrote
        meanwhile. What `change` raises is raised, and nothing is written."""
        for _ in range(MAX_RACES):
            async with self._connection.transaction() as pipe:
                await self._connection.call(pipe.watch(self.key))
                raw = await self._connection.call(pipe.hget(self.key, record_id))
                before = None if raw is None else self.read({record_id: raw})[record_id]
                after = change(before)
                if before is not None and after == before:
                    return after
                pipe.multi()
                pipe.hset(self.key, record_id, after.model_dump_json())
                if self.watched:
                    pipe.incr(GENERATION)
                try:
                    await self._connection.call(pipe.execute())
                except WatchError:
                    continue
                return after
        raise StateUnavailable(f"'{record_id}' is changed by too many at once: try again")


async def write(
    connection: Connection, changes: Iterable[tuple[Table[Any], Mapping[str, Any]]]
) -> None:
    """Write records of several tables, all or none; None deletes."""
    watched = False
    async with connection.transaction() as pipe:
        for table, records in changes:
            gone = [key for key, record in records.items() if record is None]
            kept = {k: r.model_dump_json() for k, r in records.items() if r is not None}
            if gone:
                pipe.hdel(table.key, *gone)
            if kept:
                pipe.hset(table.key, mapping=kept)
            watched = watched or (table.watched and bool(records))
        if watched:
            pipe.incr(GENERATION)
        await connection.call(pipe.execute())
