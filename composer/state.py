"""Shared state in Redis: experts, engines' endpoints, compositions, a generation counter.

Every write raises the generation in the same transaction, so a reader that polls it sees each
change whole.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType, TracebackType
from typing import Any, Literal, Self, TypeVar

import redis.asyncio as redis
from pydantic import BaseModel, ConfigDict, ValidationError
from redis.exceptions import RedisError

from experts.errors import ConfigError, StateUnavailable
from experts.spec import ExpertSpec

SCHEMA_VERSION = 1
PREFIX = "composer:"
_SCHEMA = f"{PREFIX}schema"
_GENERATION = f"{PREFIX}generation"
_EXPERTS = f"{PREFIX}experts"
_ENDPOINTS = f"{PREFIX}endpoints"
_COMPOSITIONS = f"{PREFIX}compositions"

M = TypeVar("M", bound=BaseModel)
EndpointState = Literal["starting", "ready", "unresponsive", "failed"]


class Endpoint(BaseModel):
    """Where an engine listens, and whether it can be asked. `base_url` ends before `/v1`."""

    model_config = ConfigDict(frozen=True)

    engine: str
    base_url: str
    state: EndpointState
    reason: str = ""
    api_key_env: str | None = None


class CompositionRecord(BaseModel):
    """The live version of a composition; `artefact` is its folder on this host."""

    model_config = ConfigDict(frozen=True)

    name: str
    version: str
    artefact: str
    quality_weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The whole shared state at one generation."""

    generation: int
    experts: Mapping[str, ExpertSpec]
    endpoints: Mapping[str, Endpoint]
    compositions: Mapping[str, CompositionRecord]


EMPTY_SNAPSHOT = Snapshot(-1, MappingProxyType({}), MappingProxyType({}), MappingProxyType({}))


class State:
    """Client of the shared state. Every call has a deadline and raises `StateUnavailable`."""

    def __init__(self, url: str, *, timeout_s: float = 1.0) -> None:
        try:
            self._redis = redis.Redis.from_url(
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

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._redis.aclose()

    async def ping(self) -> None:
        await self._call(self._redis.ping())

    async def migrate(self) -> None:
        """Bring the state to this version's schema; refuse one that a newer version wrote."""
        await self._call(self._redis.set(_SCHEMA, SCHEMA_VERSION, nx=True))
        found = await self._call(self._redis.get(_SCHEMA))
        if int(found) > SCHEMA_VERSION:
            raise StateUnavailable(
                f"the state has schema {found}, this version knows "
                f"{SCHEMA_VERSION}: upgrade Composer"
            )

    async def generation(self) -> int:
        return int(await self._call(self._redis.get(_GENERATION)) or 0)

    async def put_experts(self, specs: Iterable[ExpertSpec]) -> None:
        """Register experts, each replacing one of the same id."""
        await self._put(_EXPERTS, {spec.id: spec.model_dump_json() for spec in specs})

    async def put_endpoint(self, endpoint: Endpoint) -> None:
        await self._put(_ENDPOINTS, {endpoint.engine: endpoint.model_dump_json()})

    async def retain(
        self, experts: Iterable[str], engines: Iterable[str], compositions: Iterable[str]
    ) -> None:
        """Forget every expert, endpoint and composition that is not named."""
        async with self._redis.pipeline(transaction=True) as pipe:
            for key, names in (
                (_EXPERTS, experts),
                (_ENDPOINTS, engines),
                (_COMPOSITIONS, compositions),
            ):
                keep = set(names)
                known = set(await self._call(self._redis.hkeys(key)))
                if known - keep:
                    pipe.hdel(key, *sorted(known - keep))
            pipe.incr(_GENERATION)
            await self._call(pipe.execute())

    async def put_composition(self, record: CompositionRecord) -> None:
        """Make a version of a composition live."""
        await self._put(_COMPOSITIONS, {record.name: record.model_dump_json()})

    async def snapshot(self) -> Snapshot:
        """Read everything at one generation.

        Raises:
            StateUnavailable: Redis can't be reached, or holds what this version can't read.
        """
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.get(_GENERATION)
            pipe.hgetall(_EXPERTS)
            pipe.hgetall(_ENDPOINTS)
            pipe.hgetall(_COMPOSITIONS)
            generation, experts, endpoints, compositions = await self._call(pipe.execute())
        try:
            return Snapshot(
                generation=int(generation or 0),
                experts=_read(ExpertSpec, experts),
                endpoints=_read(Endpoint, endpoints),
                compositions=_read(CompositionRecord, compositions),
            )
        except ValidationError as error:
            raise StateUnavailable(
                f"the state holds a record that can't be read: {error}"
            ) from error

    async def _put(self, key: str, fields: Mapping[str, str]) -> None:
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hset(key, items=[part for pair in fields.items() for part in pair])
            pipe.incr(_GENERATION)
            await self._call(pipe.execute())

    async def _call(self, awaitable: Any) -> Any:
        try:
            return await awaitable
        except (RedisError, OSError) as error:
            raise StateUnavailable(f"the state (Redis) can't be reached: {error}") from error


def _read(model: type[M], raw: Mapping[str, str]) -> Mapping[str, M]:
    return MappingProxyType({key: model.model_validate_json(value) for key, value in raw.items()})
