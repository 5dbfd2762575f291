"""The gateway's copy of the shared state: polled every second, kept when Redis goes away."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

from composer.logs import get_logger
from composer.state import EMPTY_SNAPSHOT, CompositionVersion, Snapshot, State
from experts.errors import ArtefactError, StateUnavailable
from experts.registry import index_known
from routers.artefact import Artefact, load_artefact
from routers.encoders.base import Encoder

POLL_S = 0.5


@dataclass(frozen=True, slots=True)
class LiveComposition:
    """A composition version with its router loaded."""

    record: CompositionVersion
    artefact: Artefact

    @property
    def experts(self) -> tuple[str, ...]:
        return self.artefact.manifest.experts


@dataclass(frozen=True, slots=True)
class View:
    """What requests are served from: a snapshot and its loaded compositions."""

    snapshot: Snapshot
    compositions: Mapping[str, LiveComposition]


class SnapshotKeeper:
    """Owns the polling task. `view` is always whole and never older than what was last read."""

    def __init__(
        self,
        state: State,
        encoder: Encoder,
        on_change: Callable[[View], None] = lambda _: None,
    ) -> None:
        self.view = View(EMPTY_SNAPSHOT, MappingProxyType({}))
        self.connected = False
        self._state = state
        self._encoder = encoder
        self._on_change = on_change
        self._task: asyncio.Task[None] | None = None
        self._refreshing = asyncio.Lock()
        self._log = get_logger("snapshots")

    async def __aenter__(self) -> Self:
        await self.refresh()
        self._task = asyncio.create_task(self._poll(), name="snapshots")
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

    async def refresh(self) -> None:
        """Take over a newer generation if there is one; keep the old view if Redis is away."""
        async with self._refreshing:
            await self._refresh()

    async def _refresh(self) -> None:
        try:
            generation = await self._state.generation()
            if not self.connected:
                self._log.info("state connected", generation=generation)
            self.connected = True
            if generation != self.view.snapshot.generation:
                snapshot = await self._state.snapshot()
                if self.view.compositions and not snapshot.compositions:
                    self._log.error("the state has lost its compositions, keeping the last ones")
                else:
                    await self._adopt(snapshot)
        except StateUnavailable as error:
            if self.connected or self.view.snapshot is EMPTY_SNAPSHOT:
                self._log.warning("state away, serving from the last snapshot", error=str(error))
            self.connected = False

    async def _adopt(self, raw: Snapshot) -> None:
        compositions: dict[str, LiveComposition] = {}
        for name, record in raw.compositions.items():
            current = self.view.compositions.get(name)
            if current is not None and current.record.version == record.version:
                compositions[name] = LiveComposition(record, current.artefact)
                continue
            try:
                artefact = await asyncio.to_thread(load_artefact, Path(record.artefact))
                artefact.require_encoder(self._encoder.id, self._encoder.dimension)
                compositions[name] = LiveComposition(record, artefact)
                self._log.info("composition live", composition=name, version=record.version)
            except ArtefactError as error:
                self._log.error("composition refused", composition=name, error=str(error))
                if current is not None:
                    compositions[name] = current
        experts, problems = index_known(raw.experts.values())
        for expert, reason in problems.items():
            self._log.error("expert left out", expert=expert, reason=reason)
        snapshot = replace(raw, experts=experts)
        self.view = View(snapshot, MappingProxyType(compositions))
        self._on_change(self.view)

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(POLL_S)
            try:
                await self.refresh()
            except Exception as error:
                # The poller must outlive a record that it can't use: the view stays as it is.
                self._log.error("snapshot not taken over", error=repr(error))
