"""Running a coroutine until it ends or a signal asks it to stop."""

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any


def run_until_stopped(coroutine: Coroutine[Any, Any, int]) -> int:
    """Run to the end; the first SIGINT or SIGTERM cancels it once, so that it can clean up.

    Returns the coroutine's exit code, 0 if it was stopped.
    """
    return asyncio.run(_supervise(coroutine))


async def _supervise(coroutine: Coroutine[Any, Any, int]) -> int:
    task = asyncio.ensure_future(coroutine)
    stopped = False

    def stop() -> None:
        nonlocal stopped
        if not stopped:
            stopped = True
            task.cancel()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    try:
        return await task
    except asyncio.CancelledError:
        if stopped:
            return 0
        raise
