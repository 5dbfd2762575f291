"""An embedded engine whose set of experts changes while it serves.

A change starts a new process with the new set beside the old one. When it is healthy, gateways are
pointed to it, and the old one is stopped once it has finished what it was asked.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import aiohttp

from composer.commands import free_port
from composer.lifecycle.endpoints import EndpointBoard
from composer.logs import get_logger
from composer.processes import Command
from composer.services import Service, http_probe
from composer.state import Endpoint, EndpointState

REFUSED_S = (10.0, 30.0, 120.0, 600.0)
"""Waits until an expert with which the engine could not be started is tried again."""

STALLED_S = 10.0
IDLE_POLL_S = 0.5
MAX_REASON = 300
"""Characters of a failure's reason that clients may see: the log has the rest."""

Served = Mapping[str, Path | None]


@dataclass(frozen=True, slots=True)
class Making:
    """How a process of the engine is made: its command on a port, and its deadlines."""

    command: Callable[[str, Served, int], Command]
    records: Path
    start_s: float
    drain_s: float
    request_s: float


@dataclass(frozen=True, slots=True)
class _Refusal:
    reason: str
    until: float
    failures: int


class ProcessNames:
    """Names of processes, none given twice at a time: an engine's name, or with a number."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def take(self, engine: str) -> str:
        number, name = 1, engine
        while name in self._taken:
            number += 1
            name = f"{engine}.{number}"
        self._taken.add(name)
        return name

    def give_back(self, name: str) -> None:
        self._taken.discard(name)


class _Run:
    """One process, kept alive, with one set of experts."""

    def __init__(
        self, name: str, served: Served, making: Making, on_change: Callable[["_Run"], None]
    ) -> None:
        port = free_port()
        self.name = name
        self.served = dict(served)
        self.url = f"http://127.0.0.1:{port}"
        self.id = secrets.token_hex(4)
        self.state: EndpointState = "starting"
        self.reason = ""
        self.starts = 0
        self.heard = asyncio.Event()
        self._on_change = on_change
        self.service = Service(
            making.command(name, served, port),
            making.records,
            probe=http_probe(f"{self.url}/health"),
            on_state=self._hear,
            start_s=making.start_s,
            drain_s=making.drain_s,
        )

    @property
    def life(self) -> str:
        return f"{self.id}.{self.starts}"

    def _hear(self, state: EndpointState, reason: str) -> None:
        if state == "starting":
            self.starts += 1
        self.state, self.reason = state, short_reason(reason)
        self.heard.set()
        self._on_change(self)

    async def outcome(self) -> str:
        """Wait until it is ready or has failed; returns why it failed, or nothing."""
        while self.state not in ("ready", "failed"):
            self.heard.clear()
            await self.heard.wait()
        return self.reason if self.state == "failed" else ""


class RollingEngine:
    """`async with` starts it with `served` and stops all of its processes.

    `adopted` waits until the gateways have taken over what was written; `tell` hears of states.
    """

    def __init__(
        self,
        engine: str,
        served: Served,
        making: Making,
        board: EndpointBoard,
        names: ProcessNames,
        *,
        adopted: Callable[[], Awaitable[None]],
        tell: Callable[[str, EndpointState, str], None],
    ) -> None:
        self._engine = engine
        self._making = making
        self._board = board
        self._names = names
        self._adopted = adopted
        self._tell = tell
        self._wanted: dict[str, Path | None] = dict(served)
        self._refused: dict[str, _Refusal] = {}
        self._news = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._old: set[_Run] = set()
        self._current = self._make(served)
        self._log = get_logger("engines")

    async def __aenter__(self) -> Self:
        self._show()
        await self._current.service.__aenter__()
        self._spawn(self._follow())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(self._stop(run) for run in {self._current, *self._old}))

    def want(self, served: Served) -> None:
        """Serve these from now on, as soon as it can be done without losing a request."""
        if served == self._wanted:
            return
        self._wanted = dict(served)
        for expert in [e for e in self._refused if e not in served]:
            del self._refused[expert]
        self._show()
        self._news.set()

    def forgive(self, expert: str) -> None:
        """Try at once an expert with which the engine could not be started."""
        if self._refused.pop(expert, None) is not None:
            self._show()
            self._news.set()

    async def _follow(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            now = loop.time()
            target = {
                expert: folder
                for expert, folder in self._wanted.items()
                if expert not in self._refused or self._refused[expert].until <= now
            }
            if target == self._current.served:
                due = [r.until - now for r in self._refused.values() if r.until > now]
                await self._wait(min(due, default=None))
            elif not await self._change(target):
                # Nothing is to blame but the start itself: don't try in a tight loop.
                await self._wait(STALLED_S)

    async def _wait(self, seconds: float | None) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._news.wait()
        except TimeoutError:
            pass
        self._news.clear()

    async def _change(self, target: Served) -> bool:
        """Roll to `target`; when that fails, add the new ones one by one to find who is to blame.

        Returns:
            whether anything came of it: a new process, or a refusal.
        """
        served = self._current.served
        new = [e for e, folder in target.items() if e not in served or served[e] != folder]
        reason = await self._roll(target)
        if not reason:
            for expert in new:
                self._refused.pop(expert, None)
            return True
        if len(new) == 1:
            self._refuse(new[0], reason)
            return True
        kept = {e: folder for e, folder in target.items() if e not in new}
        for expert in new:
            reason = await self._roll({**kept, expert: target[expert]})
            if reason:
                self._refuse(expert, reason)
            else:
                kept[expert] = target[expert]
        return bool(new)

    def _refuse(self, expert: str, reason: str) -> None:
        before = self._refused.get(expert)
        failures = 0 if before is None else before.failures + 1
        wait = REFUSED_S[min(failures, len(REFUSED_S) - 1)]
        until = asyncio.get_running_loop().time() + wait
        self._log.error("expert refused", engine=self._engine, expert=expert, reason=reason)
        why = f"its engine can't be started with it: {reason}"
        self._refused[expert] = _Refusal(why, until, failures)
        self._show()

    async def _roll(self, target: Served) -> str:
        """Put a process with `target` in the place of the current one; returns why it failed."""
        run = self._make(target)
        self._old.add(run)
        await run.service.__aenter__()
        reason = await run.outcome()
        if reason:
            await self._stop(run)
            return reason
        former, self._current = self._current, run
        self._old = (self._old - {run}) | {former}
        self._show()
        self._log.info("engine rolled", engine=self._engine, experts=sorted(run.served))
        self._spawn(self._retire(former))
        return ""

    async def _retire(self, run: _Run) -> None:
        """Stop a former process when nobody sends to it any more and it has answered all."""
        await self._board.written(self._engine)
        await self._adopted()
        try:
            async with asyncio.timeout(self._making.request_s):
                while True:
                    await asyncio.sleep(IDLE_POLL_S)
                    if run.state != "ready" or await _is_idle(run.url):
                        break
        except TimeoutError:
            self._log.warning("engine stopped with requests running", engine=self._engine)
        await self._stop(run)

    async def _stop(self, run: _Run) -> None:
        await run.service.__aexit__(None, None, None)
        self._old.discard(run)
        self._names.give_back(run.name)

    def _make(self, served: Served) -> _Run:
        return _Run(self._names.take(self._engine), served, self._making, self._changed)

    def _changed(self, run: _Run) -> None:
        if run is self._current:
            self._tell(self._engine, run.state, run.reason)
            self._show()

    def _show(self) -> None:
        run = self._current
        self._board.show(
            Endpoint(
                engine=self._engine,
                base_url=run.url,
                state=run.state,
                reason=run.reason,
                life=run.life,
                serves=tuple(sorted(run.served)),
                refused={e: r.reason for e, r in sorted(self._refused.items())},
            )
        )

    def _spawn(self, coroutine: Awaitable[None]) -> None:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _is_idle(url: str) -> bool:
    """Whether the engine has neither running nor waiting requests; one that is gone is idle."""
    timeout = aiohttp.ClientTimeout(total=2)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(f"{url}/metrics") as reply,
        ):
            text = await reply.text()
    except TimeoutError:
        return False
    except (aiohttp.ClientError, OSError):
        return True
    counts = dict(line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("engine_"))
    return not any(
        float(counts.get(name, 0))
        for name in ("engine_requests_running", "engine_requests_waiting")
    )


def short_reason(reason: str) -> str:
    """What failed, and the last thing that the process said."""
    first, *rest = [line for line in reason.splitlines() if line.strip()] or [""]
    if rest:
        first = f"{first.removesuffix('; it said last:')}: {rest[-1].strip()}"
    return first[:MAX_REASON]
