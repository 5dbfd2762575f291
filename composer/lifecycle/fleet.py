"""The engines of this host, which follow the experts that are registered."""

import asyncio
from collections.abc import Callable, Collection, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from composer.commands import engine_command
from composer.config import Config
from composer.lifecycle.bridge import Bridge
from composer.lifecycle.endpoints import EndpointBoard
from composer.lifecycle.plan import (
    BridgePlan,
    EmbeddedPlan,
    EnginePlan,
    RemotePlan,
    plan_engines,
)
from composer.lifecycle.remote import RemoteWatch
from composer.lifecycle.rolling import Making, ProcessNames, RollingEngine
from composer.processes import Command
from composer.state import EndpointState, State
from composer.workers import wait_for_generation
from experts.engine_spec import EmbeddedEngineSpec
from experts.errors import StateUnavailable
from experts.registry import OWN_ENGINE
from experts.spec import ExpertSpec

ADOPTION_S = 10.0
RETRY_S = 0.5


class Fleet:
    """`async with` stops all engines on leaving; `follow` starts, changes and stops them.

    `announce` takes a line for a person about what failed.
    """

    def __init__(
        self,
        config: Config,
        state: State,
        board: EndpointBoard,
        announce: Callable[[str], None],
    ) -> None:
        self._config = config
        self._state = state
        self._board = board
        self._announce = announce
        self._plans: dict[str, EnginePlan] = {}
        self._embedded: dict[str, RollingEngine] = {}
        self._remote: dict[str, RemoteWatch] = {}
        self._bridge: Bridge | None = None
        self._names = ProcessNames()
        self._closing: set[asyncio.Task[Any]] = set()

    @property
    def engines(self) -> Collection[str]:
        """Names of the engines that are cared for."""
        return self._plans.keys()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        parts: list[AbstractAsyncContextManager[Any]] = [
            *self._embedded.values(),
            *self._remote.values(),
        ]
        if self._bridge is not None:
            parts.append(self._bridge)
        closing = (part.__aexit__(None, None, None) for part in parts)
        await asyncio.gather(*closing, *self._closing)

    async def follow(
        self, experts: Mapping[str, ExpertSpec], trusted: Collection[str], *, own: bool = True
    ) -> None:
        """Run the engines that these experts need.

        `trusted` experts are known not to keep an engine from starting: one that starts first
        takes them alone, and the others are added to it. Without `own`, only configured engines
        are run: those of single experts are another supervisor's.
        """
        plans = plan_engines(self._config, experts)
        if not own:
            plans = {n: plan for n, plan in plans.items() if not n.startswith(OWN_ENGINE)}
        for name in [n for n, plan in self._plans.items() if _must_stop(plan, plans.get(n))]:
            self._stop(name)
        engines = sum(isinstance(plan, EmbeddedPlan) for plan in plans.values())
        for name, plan in plans.items():
            if isinstance(plan, EmbeddedPlan):
                await self._run_embedded(name, plan, trusted, engines)
            elif isinstance(plan, RemotePlan) and name not in self._remote:
                self._remote[name] = await RemoteWatch(name, plan, self._board).__aenter__()
        await self._run_bridge({n: p for n, p in plans.items() if isinstance(p, BridgePlan)})
        self._plans = plans

    def forgive(self, expert: str) -> None:
        """Try an expert again at once that an engine could not be started with."""
        for engine in self._embedded.values():
            engine.forgive(expert)

    async def _run_embedded(
        self, name: str, plan: EmbeddedPlan, trusted: Collection[str], engines: int
    ) -> None:
        running = self._embedded.get(name)
        if running is not None:
            running.want(plan.served)
            return
        config = self._config
        first = {e: folder for e, folder in plan.served.items() if e in trusted}
        engine = RollingEngine(
            name,
            first or plan.served,
            Making(
                command=partial(_command, config, plan.engine, engines),
                records=config.state_dir / "processes",
                start_s=config.timeouts.start_s,
                drain_s=config.timeouts.drain_s,
                request_s=config.timeouts.request_s,
            ),
            self._board,
            self._names,
            adopted=self._adopted,
            tell=self._tell,
        )
        self._embedded[name] = await engine.__aenter__()
        engine.want(plan.served)

    async def _run_bridge(self, plans: Mapping[str, BridgePlan]) -> None:
        if plans and self._bridge is None:
            bridge = Bridge(self._config, self._board, self._tell)
            self._bridge = await bridge.__aenter__()
        if self._bridge is not None:
            self._bridge.want(plans)

    def _stop(self, name: str) -> None:
        """Its endpoint goes at once, its processes when they have finished."""
        part = self._embedded.pop(name, None) or self._remote.pop(name, None)
        if part is not None:
            self._spawn(part.__aexit__(None, None, None))
        if self._bridge is not None:
            self._bridge.want({n: p for n, p in self._bridge.plans.items() if n != name})
        self._board.withdraw(name)

    async def _adopted(self) -> None:
        """Wait until the gateways serve what is written by now."""
        while True:
            try:
                generation = await self._state.generation()
                await wait_for_generation(self._state, generation, ADOPTION_S)
                return
            except StateUnavailable:
                await asyncio.sleep(RETRY_S)

    def _tell(self, name: str, state: EndpointState, reason: str) -> None:
        """A person wants to hear of what fails, at once."""
        if state == "failed":
            self._announce(f"{name} failed, starting it again: {reason}")

    def _spawn(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.create_task(coroutine)
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


def _must_stop(running: EnginePlan, wanted: EnginePlan | None) -> bool:
    """Whether an engine can't go on as it is; an embedded one takes other experts as it runs."""
    if isinstance(running, EmbeddedPlan) and isinstance(wanted, EmbeddedPlan):
        return running.engine != wanted.engine
    return running != wanted


def _command(
    config: Config,
    engine: EmbeddedEngineSpec,
    engines: int,
    name: str,
    served: Mapping[str, Path | None],
    port: int,
) -> Command:
    return engine_command(config, engine, served, port, name=name, engines=engines)
