"""Watching a server that somebody else runs: whether it can be reached, and nothing more."""

import asyncio
import secrets
from types import TracebackType
from typing import Self

import aiohttp

from composer.lifecycle.endpoints import EndpointBoard
from composer.lifecycle.plan import RemotePlan
from composer.state import Endpoint, EndpointState

PROBE_S = 5.0
PROBE_TIMEOUT_S = 3.0
AGAIN_S = 1.0
FAILED_PROBES = 2
"""So many in a row are a failure; of a server that was never reached, one."""


class RemoteWatch:
    """Owns the task that looks whether the server answers, and shows its endpoint."""

    def __init__(self, engine: str, plan: RemotePlan, board: EndpointBoard) -> None:
        self._engine = engine
        self._plan = plan
        self._board = board
        self._id = secrets.token_hex(4)
        self._failures_ever = 0
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._show("starting", "")
        self._task = asyncio.create_task(self._watch(), name=self._engine)
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

    async def _watch(self) -> None:
        failed = FAILED_PROBES - 1
        while True:
            reason = await why_unreachable(self._plan.url, PROBE_TIMEOUT_S)
            failed = failed + 1 if reason else 0
            if failed == FAILED_PROBES:
                self._failures_ever += 1
            if failed == 0 or failed >= FAILED_PROBES:
                self._show("failed" if reason else "ready", reason)
            await asyncio.sleep(AGAIN_S if 0 < failed < FAILED_PROBES else PROBE_S)

    def _show(self, state: EndpointState, reason: str) -> None:
        self._board.show(
            Endpoint(
                engine=self._engine,
                base_url=self._plan.url,
                state=state,
                reason=reason,
                api_key_env=self._plan.api_key_env,
                life=f"{self._id}.{self._failures_ever}",
            )
        )


async def why_unreachable(url: str, within_s: float) -> str:
    """Why no HTTP server answers at `url` (which ends before `/v1`) in time; empty if one does.

    No key is sent: whatever status comes back, somebody is there.
    """
    timeout = aiohttp.ClientTimeout(total=within_s)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()) as session,
            session.get(f"{url}/v1/models", allow_redirects=False),
        ):
            return ""
    except TimeoutError:
        return f"it did not answer within {within_s:g} s"
    except aiohttp.ClientConnectorError as error:
        return f"it can't be reached: {error.os_error.strerror or type(error.os_error).__name__}"
    except (aiohttp.ClientError, OSError, ValueError) as error:
        return f"it does not answer by HTTP ({type(error).__name__})"
