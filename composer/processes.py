"""Local processes: each in a session of its own, recorded so that a later start can clean them."""

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from composer.logs import get_logger
from experts.errors import ProcessError

START_TIME_TOLERANCE_S = 0.05
KILL_WAIT_S = 5.0
MAX_LOG_BYTES = 16 << 20
LAST_LINES_BYTES = 4096

_log = get_logger("processes")


@dataclass(frozen=True, slots=True)
class Command:
    """`log` is the file that takes the process's output; None lets it write to ours.
    `inherit` are file descriptors that the process gets under the same numbers."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str] | None = None
    log: Path | None = None
    inherit: tuple[int, ...] = ()


class ManagedProcess:
    """One running process and the session that it leads."""

    def __init__(
        self,
        command: Command,
        process: asyncio.subprocess.Process,
        record: Path,
        log_start: int,
    ) -> None:
        self.command = command
        self._log_start = log_start
        self._process = process
        self._record = record
        self._buried = False

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.returncode

    async def wait(self) -> int:
        """Wait for its end; what is left of its session is killed."""
        code = await self._process.wait()
        self._bury()
        return code

    async def stop(self, grace_s: float) -> None:
        """SIGTERM, then SIGKILL to the whole session after `grace_s`."""
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.terminate()
            try:
                await asyncio.wait_for(self._process.wait(), grace_s)
            except TimeoutError:
                _log.warning("killed after its grace time", name=self.command.name, pid=self.pid)
                self.kill()
                await self._process.wait()
        self._bury()

    def kill(self) -> None:
        """SIGKILL to the whole session."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def last_words(self) -> str:
        """The end of its log, to be shown when a start failed."""
        log = self.command.log
        return last_lines(log, self._log_start) if log is not None else ""

    def _bury(self) -> None:
        """Once: afterwards the process's id may be another's."""
        if not self._buried:
            self._buried = True
            self.kill()
            self._record.unlink(missing_ok=True)


async def start_process(command: Command, records: Path) -> ManagedProcess:
    """Start a process in a session of its own and record it.

    Raises:
        ProcessError: it can't be started at all.
    """
    output, log_start = None, 0
    try:
        if command.log is not None:
            output, log_start = _open_log(command.log)
        process = await asyncio.create_subprocess_exec(
            *command.argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=dict(command.env) if command.env is not None else None,
            start_new_session=True,
            pass_fds=command.inherit,
        )
    except OSError as error:
        raise ProcessError(f"can't start {command.name} ({command.argv[0]}): {error}") from error
    finally:
        if output is not None:
            os.close(output)
    record = records / f"{command.name}.json"
    try:
        _write_record(record, process.pid)
    except OSError as error:
        _signal_session(process.pid, signal.SIGKILL)
        await process.wait()
        raise ProcessError(f"can't record {command.name} in {records}: {error}") from error
    return ManagedProcess(command, process, record, log_start)


def clean_stale(records: Path) -> list[str]:
    """End processes that a former supervisor left behind; returns their names.

    A process is ours only if pid and start time are both as recorded: pids are used again.
    """
    stale = _find_stale(records)
    for process in stale.values():
        _signal_session(process.pid, signal.SIGTERM)
    gone_by = time.monotonic() + KILL_WAIT_S
    while time.monotonic() < gone_by and any(_runs(p) for p in stale.values()):
        time.sleep(0.05)
    for process in stale.values():
        _signal_session(process.pid, signal.SIGKILL)
    for file in records.glob("*.json"):
        file.unlink(missing_ok=True)
    return sorted(stale)


def last_lines(log: Path, start: int) -> str:
    """The end of a log file, of what stands in it from byte `start` on."""
    try:
        with log.open("rb") as file:
            file.seek(max(start, log.stat().st_size - LAST_LINES_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-20:])


def _find_stale(records: Path) -> dict[str, psutil.Process]:
    stale = {}
    for file in records.glob("*.json") if records.is_dir() else ():
        try:
            record = json.loads(file.read_text())
            process = psutil.Process(int(record["pid"]))
            same = abs(process.create_time() - float(record["started"])) < START_TIME_TOLERANCE_S
        except (OSError, ValueError, KeyError, TypeError, psutil.Error):
            continue
        if same:
            stale[file.stem] = process
    return stale


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _signal_session(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def _write_record(file: Path, pid: int) -> None:
    try:
        started = psutil.Process(pid).create_time()
    except psutil.Error:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps({"pid": pid, "started": started}))
    temporary.replace(file)


def _open_log(log: Path) -> tuple[int, int]:
    """A descriptor that appends to the log, and the log's size so far."""
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists() and log.stat().st_size > MAX_LOG_BYTES:
        log.replace(log.with_suffix(".log.1"))
    handle = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    return handle, os.fstat(handle).st_size


def child_environment(extra: Iterable[tuple[str, str]] = ()) -> dict[str, str]:
    """Our environment with what children need: no hub is ever asked for models."""
    return {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        **dict(extra),
    }
