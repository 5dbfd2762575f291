"""Local processes: started in their own session, kept alive, ended whole, cleaned after a crash."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from composer.processes import Command, clean_stale, start_process
from composer.services import Service
from experts.errors import ProcessError

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]
# A parent that ignores SIGTERM, with a child of its own.
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, subprocess, sys, time\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
    "print('up', flush=True)\n"
    "time.sleep(60)",
]


def session_of(pid: int) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == pid and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.Error):
            continue
    return found


async def test_stop_ends_the_whole_session_when_the_process_ignores_sigterm(
    tmp_path: Path,
) -> None:
    log = tmp_path / "log"
    process = await start_process(Command("stubborn", STUBBORN, log=log), tmp_path)
    async with asyncio.timeout(10):
        while "up" not in process.last_words():
            await asyncio.sleep(0.02)
    assert len(session_of(process.pid)) == 2
    await process.stop(grace_s=0.2)
    assert session_of(process.pid) == []
    assert list(tmp_path.glob("*.json")) == []


async def test_process_that_a_former_supervisor_left_is_cleaned(tmp_path: Path) -> None:
    process = await start_process(Command("left", SLEEP), tmp_path)
    assert clean_stale(tmp_path) == ["left"]
    await process.wait()
    assert clean_stale(tmp_path) == []


async def test_process_with_a_reused_pid_is_left_alone(tmp_path: Path) -> None:
    process = await start_process(Command("mine", SLEEP), tmp_path)
    record = tmp_path / "mine.json"
    record.write_text(json.dumps({"pid": process.pid, "started": 1.0}))
    (tmp_path / "broken.json").write_text("{")
    assert clean_stale(tmp_path) == []
    assert process.returncode is None
    await process.stop(1)


async def test_program_that_is_absent_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ProcessError, match="no-such-program"):
        await start_process(Command("x", ["/no-such-program"]), tmp_path)


async def test_nothing_is_left_running_when_a_process_cannot_be_recorded(tmp_path: Path) -> None:
    records = tmp_path / "records"
    records.write_text("a file where a folder should be")
    before = set(psutil.Process().children())
    with pytest.raises(ProcessError, match="can't record"):
        await start_process(Command("x", SLEEP), records)
    assert set(psutil.Process().children()) == before


def test_log_line_is_lost_and_nothing_else_when_the_log_is_broken() -> None:
    argv = [
        sys.executable,
        "-c",
        "from composer.logs import configure_logs, get_logger\n"
        "configure_logs('info', 'json', 'test')\n"
        "get_logger('x').error('lost', reason='full disk')\n"
        "print('alive')",
    ]
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(argv, stdout=subprocess.PIPE, stderr=full, text=True, timeout=30)
    assert result.stdout == "alive\n"


class TestService:
    async def test_dead_process_is_started_again_and_every_state_is_told(
        self, tmp_path: Path
    ) -> None:
        states: list[tuple[str, str]] = []
        service = Service(
            Command("worker", SLEEP), tmp_path, on_state=lambda s, r: states.append((s, r))
        )
        async with service:
            await self.until(states, "ready")
            assert service._process is not None
            first = service._process.pid
            service._process.kill()
            states.clear()
            await self.until(states, "ready")
            assert service._process.pid != first
            assert [state for state, _ in states] == ["failed", "starting", "ready"]
            assert "worker ended (-9)" in states[0][1]
            last = service._process.pid
        assert not psutil.pid_exists(last) or session_of(last) == []

    async def test_reason_holds_the_last_words_when_a_start_fails(self, tmp_path: Path) -> None:
        async def never() -> bool:
            return False

        argv = [sys.executable, "-c", "import sys; sys.exit('no such model')"]
        states: list[tuple[str, str]] = []
        service = Service(
            Command("bad", argv, log=tmp_path / "log"),
            tmp_path,
            probe=never,
            on_state=lambda s, r: states.append((s, r)),
        )
        async with service:
            await self.until(states, "failed")
        assert "no such model" in dict(states)["failed"]

    async def test_hung_process_is_killed_and_started_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("composer.services.PROBE_S", 0.05)
        healthy = True

        async def probe() -> bool:
            return healthy

        states: list[tuple[str, str]] = []
        service = Service(
            Command("hung", SLEEP),
            tmp_path,
            probe=probe,
            on_state=lambda s, r: states.append((s, r)),
        )
        async with service:
            await self.until(states, "ready")
            healthy = False
            await self.until(states, "failed")
            healthy = True
            states.clear()
            await self.until(states, "ready")

    async def until(self, states: list[tuple[str, str]], wanted: str) -> None:
        async with asyncio.timeout(20):
            while wanted not in [state for state, _ in states]:
                await asyncio.sleep(0.02)
