"""`State`: the tables of the shared state, and snapshots of what gateways serve from."""

import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType, TracebackType
from typing import Any, Self

import orjson

from composer.state.connection import GENERATION, PREFIX, Connection, Table, write
from composer.state.records import (
    CacheFlush,
    CompositionVersion,
    DatasetRecord,
    Endpoint,
    ExpertRecord,
    ExpertStatus,
    JobRecord,
    KeyRecord,
    LiveRecord,
    TrainingRecord,
    WorkerRecord,
)
from experts.errors import StateUnavailable
from experts.spec import ExpertSpec

SCHEMA_VERSION = 2
EVERY_VERSION = "*"
"""Stands for all versions among the flushes of the decision cache."""

_SCHEMA = f"{PREFIX}schema"
_IDENTITY = f"{PREFIX}identity"


def _none() -> Mapping[str, Any]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What gateways serve from, at one generation; `keys` are by the digest of their secret,
    `flushes` of the decision cache by version."""

    generation: int
    records: Mapping[str, ExpertRecord] = field(default_factory=_none)
    statuses: Mapping[str, ExpertStatus] = field(default_factory=_none)
    endpoints: Mapping[str, Endpoint] = field(default_factory=_none)
    compositions: Mapping[str, CompositionVersion] = field(default_factory=_none)
    keys: Mapping[str, KeyRecord] = field(default_factory=_none)
    flushes: Mapping[str, float] = field(default_factory=_none)
    experts: Mapping[str, ExpertSpec] = field(default_factory=_none)
    """The specs of `records`, with what each inherits from its base."""


EMPTY_SNAPSHOT = Snapshot(-1)


class State:
    """Client of the shared state. Every call has a deadline and raises `StateUnavailable`.

    Tables whose records gateways serve from are watched: writing them raises the generation.
    """

    def __init__(self, url: str, *, timeout_s: float = 1.0) -> None:
        self._url = url
        self.connection = Connection(url, timeout_s=timeout_s)
        c = self.connection
        self.experts = Table(c, "experts", ExpertRecord)
        self.statuses = Table(c, "statuses", ExpertStatus)
        self.endpoints = Table(c, "endpoints", Endpoint)
        self.live = Table(c, "live", LiveRecord)
        self.keys = Table(c, "keys", KeyRecord)
        self.flushes = Table(c, "flushes", CacheFlush)
        self.versions = Table(c, "versions", CompositionVersion, watched=False)
        self.datasets = Table(c, "datasets", DatasetRecord, watched=False)
        self.trainings = Table(c, "trainings", TrainingRecord, watched=False)
        self.jobs = Table(c, "jobs", JobRecord, watched=False)
        self.workers = Table(c, "workers", WorkerRecord, watched=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.connection.close()

    def patient(self, timeout_s: float) -> "State":
        """Another client of the same state, for work of which one call takes long."""
        return State(self._url, timeout_s=timeout_s)

    async def ping(self) -> None:
        await self.connection.call(self.connection.redis.ping())

    async def migrate(self) -> None:
        """Bring the state to this version's schema; refuse one that a newer version wrote."""
        c = self.connection
        await c.call(c.redis.set(_IDENTITY, secrets.token_hex(8), nx=True))
        await c.call(c.redis.set(_SCHEMA, SCHEMA_VERSION, nx=True))
        found = int(await c.call(c.redis.get(_SCHEMA)) or 0)
        if found > SCHEMA_VERSION:
            raise StateUnavailable(
                f"the state has schema {found}, this version knows "
                f"{SCHEMA_VERSION}: upgrade Composer"
            )
        if found == 1:
            await self._from_schema_1()

    async def identity(self) -> str | None:
        """A name that the state was given at its first use: another one, or none, is a state that
        has lost what was in it."""
        c = self.connection
        found: str | None = await c.call(c.redis.get(_IDENTITY))
        return found

    async def _from_schema_1(self) -> None:
        """Schema 1 held bare specs, and one version of each composition."""
        c = self.connection
        specs = await c.call(c.redis.hgetall(self.experts.key))
        compositions = await c.call(c.redis.hgetall(f"{PREFIX}compositions"))
        async with c.redis.pipeline(transaction=True) as pipe:
            for expert, raw in specs.items():
                spec = orjson.loads(raw)
                if "spec" not in spec:
                    record = ExpertRecord(spec=ExpertSpec.model_validate(spec))
                    pipe.hset(self.experts.key, expert, record.model_dump_json())
            for name, raw in compositions.items():
                live = LiveRecord(current=CompositionVersion.model_validate_json(raw))
                pipe.hset(self.live.key, name, live.model_dump_json())
                key = version_key(name, live.current.version)
                pipe.hset(self.versions.key, key, live.current.model_dump_json())
            pipe.delete(f"{PREFIX}compositions")
            pipe.set(_SCHEMA, SCHEMA_VERSION)
            pipe.incr(GENERATION)
            await c.call(pipe.execute())

    async def generation(self) -> int:
        return int(await self.connection.call(self.connection.redis.get(GENERATION)) or 0)

    async def write(self, changes: Iterable[tuple[Table[Any], Mapping[str, Any]]]) -> None:
        """Write records of several tables, all or none; None deletes."""
        await write(self.connection, changes)

    async def together(
        self, tables: Sequence[Table[Any]]
    ) -> tuple[int, tuple[dict[str, Any], ...]]:
        """The generation and several tables whole, as of one moment."""
        async with self.connection.redis.pipeline(transaction=True) as pipe:
            pipe.get(GENERATION)
            for table in tables:
                pipe.hgetall(table.key)
            generation, *raws = await self.connection.call(pipe.execute())
        read = tuple(table.read(raw) for table, raw in zip(tables, raws, strict=True))
        return int(generation or 0), read

    async def snapshot(self) -> Snapshot:
        """Read what gateways serve from, at one generation.

        Raises:
            StateUnavailable: Redis can't be reached, or holds what this version can't read.
        """
        tables: tuple[Table[Any], ...] = (
            self.experts,
            self.statuses,
            self.endpoints,
            self.live,
            self.keys,
            self.flushes,
        )
        generation, raws = await self.together(tables)
        records, statuses, endpoints, live, keys, flushes = raws
        return Snapshot(
            generation=generation,
            records=MappingProxyType(records),
            statuses=MappingProxyType(statuses),
            endpoints=MappingProxyType(endpoints),
            compositions=MappingProxyType({name: r.current for name, r in live.items()}),
            keys=MappingProxyType({key.digest: key for key in keys.values()}),
            flushes=MappingProxyType({version: flush.at for version, flush in flushes.items()}),
            experts=MappingProxyType({e: record.spec for e, record in records.items()}),
        )


def version_key(name: str, version: str) -> str:
    """Id of a composition's version in the table of versions."""
    return f"{name}@{version}"
