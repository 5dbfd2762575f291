"""The bridge to other providers: one process of ours that speaks the OpenAI API before LiteLLM."""

import secrets
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

from composer.commands import bridge_command, free_port
from composer.config import Config
from composer.lifecycle.endpoints import EndpointBoard
from composer.lifecycle.plan import BridgePlan
from composer.lifecycle.rolling import short_reason
from composer.services import Service, http_probe
from composer.state import Endpoint, EndpointState

NAME = "bridge"


class Bridge:
    """`async with` starts and stops the process; `want` names the engines that stand behind it."""

    def __init__(
        self,
        config: Config,
        board: EndpointBoard,
        tell: Callable[[str, EndpointState, str], None],
    ) -> None:
        port = free_port()
        self._url = f"http://127.0.0.1:{port}"
        self._board = board
        self._tell = tell
        self.plans: dict[str, BridgePlan] = {}
        self._id = secrets.token_hex(4)
        self._starts = 0
        self._state: EndpointState = "starting"
        self._reason = ""
        self._service = Service(
            bridge_command(config, port),
            config.state_dir / "processes",
            probe=http_probe(f"{self._url}/health"),
            on_state=self._hear,
            start_s=config.timeouts.start_s,
            drain_s=config.timeouts.drain_s,
        )

    async def __aenter__(self) -> Self:
        await self._service.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._service.__aexit__(kind, error, trace)

    def want(self, plans: Mapping[str, BridgePlan]) -> None:
        """Show an endpoint of each engine; those of others are the caller's to withdraw."""
        self.plans = dict(plans)
        self._show()

    def _hear(self, state: EndpointState, reason: str) -> None:
        if state == "starting":
            self._starts += 1
        self._state, self._reason = state, short_reason(reason)
        self._tell(NAME, state, self._reason)
        self._show()

    def _show(self) -> None:
        for engine, plan in self.plans.items():
            self._board.show(
                Endpoint(
                    engine=engine,
                    base_url=self._url,
                    state=self._state,
                    reason=self._reason,
                    api_key_env=plan.api_key_env,
                    api_base=plan.api_base,
                    life=f"{self._id}.{self._starts}",
                )
            )
