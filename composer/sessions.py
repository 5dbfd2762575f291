"""Sessions: requests that belong together stay with the expert that answered the first of them."""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from composer.config import SessionConfig
from composer.quick_redis import QuickRedis
from composer.state import PREFIX

SESSIONS = f"{PREFIX}session:"
MAX_LOCAL = 10_000
READ_S = 0.25
WRITE_S = 1.0
"""A packaged server syncs each write to its disk, which can take longer than a look-up in the cache
may; and forgetting whom a session is with is worse than missing a cached score."""

RENEWALS = 4
"""How often a session's time to live is renewed within it. Only a new expert is written at once, so
that another worker may forget a session after three quarters of that time."""


@dataclass(slots=True)
class _Kept:
    expert: str
    until: float
    renew_at: float


class Sessions:
    """Knows the expert of each session: from Redis, where the other gateways' turns are known too,
    and from this process's memory when Redis is slow or gone."""

    def __init__(
        self,
        redis: QuickRedis,
        config: SessionConfig,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.switch_gain = config.switch_gain
        self._redis = redis
        self._ttl_s = config.ttl_s
        self._clock = clock
        self._local: OrderedDict[str, _Kept] = OrderedDict()

    async def expert_of(self, composition: str, session: str) -> str | None:
        """The expert that the session is with; None if it is new or was silent for too long."""
        name = _name(composition, session)
        kept = self._local.get(name)
        known = kept.expert if kept is not None and kept.until > self._clock() else None

        async def read(client: Any) -> bytes | None:
            found: bytes | None = await client.get(SESSIONS + name)
            return found

        found = await self._redis.ask(read, None)
        if found is None:
            return known
        expert = found.decode("utf-8", "replace")
        if expert != known:
            self._remember(name, expert)
        return expert

    async def keep(self, composition: str, session: str, expert: str) -> None:
        """An expert has answered: the session is with it from now on."""
        name = _name(composition, session)
        now = self._clock()
        kept = self._local.get(name)
        if kept is not None and kept.expert == expert and now < kept.renew_at:
            kept.until = now + self._ttl_s
            return
        kept = self._remember(name, expert)

        async def write(client: Any) -> bool:
            await client.set(SESSIONS + name, expert, px=round(self._ttl_s * 1000))
            return True

        if not await self._redis.ask(write, False, timeout_s=WRITE_S):
            kept.renew_at = now

    def _remember(self, name: str, expert: str) -> _Kept:
        now = self._clock()
        kept = self._local[name] = _Kept(expert, now + self._ttl_s, now + self._ttl_s / RENEWALS)
        self._local.move_to_end(name)
        if len(self._local) > MAX_LOCAL:
            self._local.popitem(last=False)
        return kept


def _name(composition: str, session: str) -> str:
    """What a client calls its session may be anything, and is nobody else's business."""
    return blake2b(f"{composition}\0{session}".encode(), digest_size=16).hexdigest()
