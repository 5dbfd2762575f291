"""Redis on the path of a request: asked with a tight deadline, and left alone when it fails."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self, TypeVar

import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from composer.logs import get_logger

BREAK_S = 1.0
"""How long Redis is left alone after a call that failed or was late."""

MAX_CONNECTIONS = 16
SOCKET_S = 1.0

T = TypeVar("T")


class QuickRedis:
    """Every call ends within `timeout_s`, and gives the caller's default if Redis is slow or gone.

    Then nobody asks for a moment, and after it one caller finds out for the others: so a Redis that
    is away costs a request the deadline once, not each request each time.
    """

    def __init__(
        self, url: str, timeout_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._timeout_s = timeout_s
        self._clock = clock
        self._broken = False
        self._probing = False
        self._closed_until = 0.0
        self._log = get_logger("quick-redis")
        pool = redis.BlockingConnectionPool.from_url(
            url,
            max_connections=MAX_CONNECTIONS,
            timeout=SOCKET_S,
            socket_timeout=SOCKET_S,
            socket_connect_timeout=SOCKET_S,
            # A connection that a restarted server dropped is opened anew once.
            retry=Retry(NoBackoff(), 1),
        )
        self._redis: Any = redis.Redis.from_pool(pool)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._redis.aclose()

    @property
    def available(self) -> bool:
        """Whether the last call was answered in time."""
        return not self._broken

    async def ask(
        self, call: Callable[[Any], Awaitable[T]], default: T, timeout_s: float | None = None
    ) -> T:
        """What `call` gets from the client in time, else `default`."""
        if self._broken:
            if self._probing or self._clock() < self._closed_until:
                return default
            self._probing = True
        try:
            async with asyncio.timeout(self._timeout_s if timeout_s is None else timeout_s):
                answer = await call(self._redis)
        except (TimeoutError, RedisError, OSError) as error:
            if not self._broken:
                self._log.warning("redis is slow or away, going on without", error=repr(error))
            self._broken = True
            self._closed_until = self._clock() + BREAK_S
            return default
        finally:
            self._probing = False
        self._broken = False
        return answer
