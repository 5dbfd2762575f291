"""The loop that brings every registered expert to where it should be."""

import asyncio
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

from composer.lease import Lease
from composer.lifecycle.endpoints import EndpointBoard
from composer.lifecycle.fleet import Fleet
from composer.lifecycle.transitions import Seen, Step, advance, after_verification
from composer.lifecycle.verification import Verifier
from composer.logs import get_logger
from composer.state import EMPTY_SNAPSHOT, Endpoint, ExpertStatus, Snapshot, State, WorkerRecord
from composer.workers import has_let_go, live_workers, prune_workers
from experts.errors import NotFound, StateUnavailable
from experts.registry import OWN_ENGINE, index_known
from experts.spec import ExpertSpec

POLL_S = 0.5
PRUNE_S = 5.0


class Controller:
    """Follows the shared state, about twice a second and when an engine changes.

    Engines follow what is registered in any case; statuses are written under the lease alone.
    `on_lost` is told, again and again, that the shared state has lost what was in it; nothing is
    done then until `forget`.
    """

    def __init__(
        self,
        state: State,
        fleet: Fleet,
        board: EndpointBoard,
        lease: Lease,
        verifier: Verifier,
        *,
        drain_s: float,
        on_lost: Callable[[], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._state = state
        self._fleet = fleet
        self._board = board
        self._lease = lease
        self._verifier = verifier
        self._drain_s = drain_s
        self._on_lost = on_lost
        self._clock = clock
        self._identity: str | None = None
        self._snapshot = EMPTY_SNAPSHOT
        self._experts: Mapping[str, ExpertSpec] = {}
        self._problems: Mapping[str, str] = {}
        self._drains: dict[str, int] = {}
        self._verifying: dict[str, asyncio.Task[None]] = {}
        self._wake = asyncio.Event()
        self._pruned_at = 0.0
        self._task: asyncio.Task[None] | None = None
        self._log = get_logger("controller")

    async def __aenter__(self) -> Self:
        """The first round is made at once: engines are started when this returns.

        Raises:
            StateUnavailable: Redis can't be reached.
        """
        await self._round()
        self._board.on_change = self._wake.set
        self._task = asyncio.create_task(self._keep(), name="controller")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._board.on_change = lambda: None
        tasks = [*self._verifying.values(), *([self._task] if self._task is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _keep(self) -> None:
        while True:
            try:
                async with asyncio.timeout(POLL_S):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            try:
                await self._round()
            except StateUnavailable as error:
                self._log.warning("state away: experts stay as they are", error=str(error))
                await asyncio.sleep(POLL_S)
            except Exception as error:
                # Whatever it is, the loop must go on: nobody else cares for the experts.
                self._log.error("round failed", error=repr(error))
                await asyncio.sleep(POLL_S)

    async def _round(self) -> None:
        if not await self._read():
            return
        await self._fleet.follow(
            self._experts, self._trusted(), own=self._lease.held or not self._lease.elsewhere
        )
        if not self._lease.held:
            return
        draining = {e for e, r in self._snapshot.records.items() if r.removing or r.drained}
        self._drains = {
            expert: self._drains.get(expert, self._snapshot.generation) for expert in draining
        }
        workers = await live_workers(self._state, self._clock) if draining else ()
        now = self._clock()
        for expert in self._snapshot.records:
            await self._take(expert, self._step(expert, workers, now))
        await self._tidy(now)

    async def lost(self) -> Snapshot | None:
        """What was in the shared state, if it has lost it since; None if it has not.

        Raises:
            StateUnavailable: Redis can't be reached.
        """
        known = self._identity
        return self._snapshot if known and await self._state.identity() != known else None

    def forget(self) -> None:
        """Take the state as it is from now on: what was lost has been written again."""
        self._identity = None
        self._snapshot = EMPTY_SNAPSHOT
        self._wake.set()

    async def _read(self) -> bool:
        """Take over the newest snapshot; whether there is one to go by."""
        generation = await self._state.generation()
        if generation == self._snapshot.generation:
            return True
        if await self.lost() is not None:
            self._on_lost()
            return False
        self._identity = self._identity or await self._state.identity()
        snapshot = self._snapshot = await self._state.snapshot()
        specs = (record.spec for record in snapshot.records.values())
        self._experts, self._problems = index_known(specs)
        for expert, status in snapshot.statuses.items():
            if status.state == "registered":
                self._fleet.forgive(expert)
        return True

    def _trusted(self) -> set[str]:
        """Experts that an engine was once started with, or that the operator configured."""
        known = self._snapshot.statuses
        return {
            expert
            for expert, record in self._snapshot.records.items()
            if record.source == "config" or (expert in known and known[expert].life)
        }

    def _endpoint(self, expert: str) -> Endpoint | None:
        """Of our own engines we know the newest; of other hosts', what the state says."""
        spec = self._experts.get(expert)
        engine = spec.engine if spec is not None else None
        if engine is None:
            return None
        return self._board.endpoints.get(engine) or self._snapshot.endpoints.get(engine)

    def _step(self, expert: str, workers: tuple[WorkerRecord, ...], now: float) -> Step:
        seen = Seen(
            record=self._snapshot.records[expert],
            status=self._snapshot.statuses.get(expert),
            endpoint=self._endpoint(expert),
            problem=self._problems.get(expert, ""),
            let_go=expert in self._drains and has_let_go(workers, expert, self._drains[expert]),
        )
        return advance(seen, now, self._drain_s)

    async def _take(self, expert: str, step: Step) -> None:
        before = self._snapshot.statuses.get(expert)
        if step.act == "remove":
            self._log.info("expert removed", expert=expert)
            gone = {expert: None}
            await self._state.write([(self._state.experts, gone), (self._state.statuses, gone)])
        elif step.status != before:
            self._log.info("expert", expert=expert, state=step.status.state)
            await self._state.statuses.change(
                # What somebody else wrote meanwhile is looked at in the next round.
                expert,
                lambda now: step.status if now is None or now == before else now,
            )
        if step.act == "verify" and expert not in self._verifying:
            endpoint = self._endpoint(expert)
            assert endpoint is not None
            task = asyncio.create_task(self._verify(self._experts[expert], endpoint))
            self._verifying[expert] = task

    async def _verify(self, spec: ExpertSpec, endpoint: Endpoint) -> None:
        try:
            finding = await self._verifier.verify(spec, endpoint)
            now = self._clock()

            def after(status: ExpertStatus) -> ExpertStatus:
                return after_verification(status, finding, endpoint.life, now)

            status = await self._state.statuses.update(spec.id, after)
            self._log.info(
                "expert verified", expert=spec.id, state=status.state, reason=finding.reason
            )
        except NotFound:
            self._log.info("expert gone while it was verified", expert=spec.id)
        except StateUnavailable as error:
            self._log.warning("verification lost, to be made again", error=str(error))
        finally:
            del self._verifying[spec.id]
            self._wake.set()

    async def _tidy(self, now: float) -> None:
        """Forget what belongs to nobody any more."""
        if now - self._pruned_at < PRUNE_S:
            return
        self._pruned_at = now
        await prune_workers(self._state, self._clock)
        snapshot = self._snapshot
        orphans = {e: None for e in snapshot.statuses if e not in snapshot.records}
        stale = {
            engine: None
            for engine in snapshot.endpoints
            if engine.startswith(OWN_ENGINE) and engine not in self._fleet.engines
        }
        if orphans or stale:
            state = self._state
            await state.write([(state.statuses, orphans), (state.endpoints, stale)])
