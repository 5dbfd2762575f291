"""A lease in Redis: of all who want it one holds it; when that one is gone, another takes over."""

import asyncio
import hashlib
import secrets
import socket
from pathlib import Path
from types import TracebackType
from typing import Self

from composer.logs import get_logger
from composer.state import PREFIX, Connection
from experts.errors import StateUnavailable

TTL_S = 5.0
RENEWALS = 4
"""How often it is renewed within its time to live."""

# Sets the key if it is free, ours, or of a former holder in our place; answers who holds it then.
_TAKE = """
local holder = redis.call('GET', KEYS[1])
if not holder or string.sub(holder, 1, string.len(ARGV[2])) == ARGV[2] then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[3])
  return ARGV[1]
end
return holder
"""
_RELEASE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then
  return redis.call('DEL', KEYS[1])
end
return 0
"""


class Lease:
    """`async with` keeps trying to hold the lease, renews it, and gives it back.

    `place` names where the holder runs and must be held by one process at a time, as a supervisor
    holds the lock of its state folder: so whoever held the lease there before is surely gone, and
    its lease is taken over at once.
    """

    def __init__(
        self, connection: Connection, name: str, place: Path, *, ttl_s: float = TTL_S
    ) -> None:
        where = f"{socket.gethostname()}:{place.resolve()}"
        self._place = hashlib.sha256(where.encode()).hexdigest()[:16] + ":"
        self._token = self._place + secrets.token_hex(8)
        self._key = f"{PREFIX}lease:{name}"
        self._connection = connection
        self._ttl_s = ttl_s
        self._held_until = 0.0
        self._task: asyncio.Task[None] | None = None
        self._log = get_logger("lease")
        self.elsewhere = False
        """Whether somebody else was seen to hold it."""

    @property
    def held(self) -> bool:
        """Whether it is surely ours at this moment."""
        return asyncio.get_running_loop().time() < self._held_until

    async def __aenter__(self) -> Self:
        await self._try()
        self._task = asyncio.create_task(self._keep(), name="lease")
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
        self._held_until = 0.0
        c = self._connection
        try:
            await c.call(c.redis.eval(_RELEASE, 1, self._key, self._token))
        except StateUnavailable:
            self._log.info("lease not given back: it runs out by itself")

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(self._ttl_s / RENEWALS)
            await self._try()

    async def _try(self) -> None:
        """Take or renew it. While Redis is away it runs out, for us as for everybody."""
        asked_at = asyncio.get_running_loop().time()
        c, ttl_ms = self._connection, int(self._ttl_s * 1000)
        try:
            holder = await c.call(
                c.redis.eval(_TAKE, 1, self._key, self._token, self._place, ttl_ms)
            )
        except StateUnavailable:
            return
        was, self.elsewhere = self.elsewhere, holder != self._token
        if not self.elsewhere:
            self._held_until = asked_at + self._ttl_s
        elif not was:
            self._held_until = 0.0
            self._log.info("another supervisor holds the lease: standing by")
