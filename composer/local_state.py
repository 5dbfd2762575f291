"""The state folder of this machine: who may use it, and the state that is in it."""

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from composer.config import Config
from composer.processes import Command, clean_stale
from composer.redis_server import redis_command, socket_path
from composer.services import Service
from composer.state import State
from experts.errors import ConfigError, StateUnavailable

REDIS_START_S = 15.0
POLL_S = 0.05


def local_redis_url(config: Config) -> str:
    """URL of the configured server, else of the packaged one of this state folder."""
    if config.redis_url is not None:
        return config.redis_url.get_secret_value()
    return f"unix://{socket_path(config.state_dir)}"


@asynccontextmanager
async def local_state(config: Config) -> AsyncIterator[State]:
    """The state itself, without a gateway: for an operator of this machine.

    Where no server is configured and none runs, the packaged one is started for the moment.

    Raises:
        StateUnavailable: the server can't be reached.
        ConfigError: the state folder can't be used.
    """
    async with State(local_redis_url(config)) as state:
        if config.redis_url is not None or await answers(state):
            await state.migrate()
            yield state
            return
        log = config.state_dir / "logs" / "redis.log"
        records = config.state_dir / "processes"
        with hold_folder(config.state_dir):
            await asyncio.to_thread(clean_stale, records)
            command = Command("redis", redis_command(config.state_dir), log=log)
            async with Service(command, records):
                await until_up(state)
                await state.migrate()
                yield state


async def answers(state: State) -> bool:
    """Whether the server can be reached now."""
    try:
        await state.ping()
    except StateUnavailable:
        return False
    return True


async def until_up(state: State) -> None:
    """
    Raises:
        StateUnavailable: Redis did not answer within its start time.
    """
    deadline = asyncio.get_running_loop().time() + REDIS_START_S
    while not await answers(state):
        if asyncio.get_running_loop().time() > deadline:
            await state.ping()
        await asyncio.sleep(POLL_S)


@contextmanager
def hold_folder(state_dir: Path) -> Iterator[None]:
    """Hold the state folder's lock: two supervisors would fight over processes and data.

    Raises:
        ConfigError: it is held, or the folder can't be written.
    """
    try:
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(state_dir / "supervisor.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise ConfigError(
            f"can't write to the state folder {state_dir}: {error.strerror}", param="state_dir"
        ) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(
                f"another Composer runs on the state folder {state_dir}: "
                "stop it, or choose another state_dir"
            ) from error
        yield
    finally:
        os.close(handle)
