"""The endpoints of this host's engines, written to the shared state as they change."""

import asyncio
from collections.abc import Callable, Mapping
from types import MappingProxyType, TracebackType
from typing import Self

from composer.state import Endpoint, State
from experts.errors import StateUnavailable

RETRY_S = 0.2


class EndpointBoard:
    """Takes endpoints without waiting; a task writes the newest of each, also after Redis was away.

    `on_change` hears of every change; it must neither block nor raise.
    """

    def __init__(self, state: State, on_change: Callable[[], None] = lambda: None) -> None:
        self.on_change = on_change
        self._state = state
        self._endpoints: dict[str, Endpoint] = {}
        self._pending: set[str] = set()
        self._changed = asyncio.Event()
        self._settled = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None

    @property
    def endpoints(self) -> Mapping[str, Endpoint]:
        """The newest of each engine."""
        return MappingProxyType(self._endpoints)

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._write(), name="endpoints")
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

    def show(self, endpoint: Endpoint) -> None:
        """Make this the endpoint of its engine."""
        if self._endpoints.get(endpoint.engine) != endpoint:
            self._endpoints[endpoint.engine] = endpoint
            self._touch(endpoint.engine)

    def withdraw(self, engine: str) -> None:
        """The engine is no more."""
        self._endpoints.pop(engine, None)
        self._touch(engine)

    def show_again(self) -> None:
        """Write all of them once more: the shared state may have lost them."""
        self._pending |= set(self._endpoints)
        self._changed.set()

    async def written(self, engine: str) -> None:
        """Wait until what is shown of the engine stands in the shared state."""
        async with self._settled:
            await self._settled.wait_for(lambda: engine not in self._pending)

    def _touch(self, engine: str) -> None:
        self._pending.add(engine)
        self._changed.set()
        self.on_change()

    async def _write(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            batch = {engine: self._endpoints.get(engine) for engine in self._pending}
            if not batch:
                continue
            try:
                await self._state.endpoints.put(batch)
            except StateUnavailable:
                self._changed.set()
                await asyncio.sleep(RETRY_S)
                continue
            for engine, endpoint in batch.items():
                if self._endpoints.get(engine) is endpoint:
                    self._pending.discard(engine)
            async with self._settled:
                self._settled.notify_all()
