"""`coe chat` and `coe route`, as a person at a terminal and a script use them."""

import asyncio
import os
import pty
import re
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from composer.state import Endpoint
from experts.spec import ExpertSpec
from tests.faulty import FaultyServer, faulty_server
from tests.small_composition import SENTENCES, Running, small_gateway

pytestmark = pytest.mark.asyncio(loop_scope="module")

GREETING, WEATHER = SENTENCES["greeting"], SENTENCES["weather"]
EXPERTS = ("good", "other", "endless", "cut-late", "escapes", "error-500")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def upstream() -> AsyncIterator[FaultyServer]:
    async with faulty_server() as server:
        yield server


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def gateway(
    upstream: FaultyServer, tmp_path_factory: pytest.TempPathFactory, cache_dir: Path
) -> AsyncIterator[Running]:
    specs = [ExpertSpec(id=name, kind="remote", engine="one") for name in EXPERTS]
    specs.append(ExpertSpec(id="canned", kind="null", text="I can't know that."))
    low = dict.fromkeys([*EXPERTS, "canned"], 0.1)
    quality = {"greeting": {**low, "good": 0.9}, "weather": {**low, "other": 0.8}}
    endpoints = [Endpoint(engine="one", base_url=upstream.url, state="ready")]
    folder = tmp_path_factory.mktemp("gateway")
    async with small_gateway(folder, cache_dir, specs, endpoints, quality) as running:
        yield running


async def coe(gateway: Running, *arguments: str, typed: str = "") -> tuple[int, str, str]:
    """Exit code, output and errors of a command whose input is a pipe."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "composer.cli",
        *arguments,
        env={**os.environ, "COMPOSER_URL": gateway.url},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(30):
        output, errors = await process.communicate(typed.encode())
    return process.returncode or 0, output.decode(), errors.decode()


class TestPiped:
    async def test_each_line_is_a_turn_that_shows_its_expert_and_reason(
        self, gateway: Running, upstream: FaultyServer
    ) -> None:
        code, output, _ = await coe(
            gateway,
            "chat",
            "--switch-gain",
            "1",
            "--system",
            "Be kind.",
            typed=f"{GREETING}\n\n{WEATHER}\n",
        )
        assert code == 0
        lines = output.splitlines()
        assert lines[0].startswith("good: category 'greeting'")
        assert lines[1] == "Hello"
        # The session keeps the second turn with the first one's expert.
        assert lines[2].startswith("good: the session is with 'good'")
        sent = [m["content"] for m in upstream.requests[-1][0]["messages"]]
        assert sent == ["Be kind.", GREETING, "Hello", WEATHER]

    async def test_expert_is_chosen_anew_at_each_turn_when_it_is_not_sticky(
        self, gateway: Running
    ) -> None:
        _, output, _ = await coe(gateway, "chat", "--no-sticky", typed=f"{GREETING}\n{WEATHER}\n")
        assert output.splitlines()[2].startswith("other: category 'weather'")

    async def test_expert_that_is_clearly_better_takes_over(self, gateway: Running) -> None:
        typed = f"{GREETING}\n{WEATHER}\n"
        _, output, _ = await coe(gateway, "chat", typed=typed)
        assert output.splitlines()[2].startswith("other: category 'weather'")

    async def test_named_session_goes_on_in_a_later_conversation(self, gateway: Running) -> None:
        stay = ("chat", "--session", "mine", "--switch-gain", "1")
        await coe(gateway, *stay, typed=f"{GREETING}\n")
        _, output, _ = await coe(gateway, *stay, typed=f"{WEATHER}\n")
        assert output.startswith("good: the session is with 'good'")

    async def test_commands_change_the_model_and_begin_anew(
        self, gateway: Running, upstream: FaultyServer
    ) -> None:
        typed = f"{GREETING}\n/new\n/model other\n{WEATHER}\n/quit\n{GREETING}\n"
        code, output, _ = await coe(gateway, "chat", typed=typed)
        assert code == 0
        assert output.count("Hello") == 2
        body = upstream.requests[-1][0]
        assert body["model"] == "other"
        assert [m["content"] for m in body["messages"]] == [WEATHER]

    async def test_errors_are_told_and_the_next_turn_goes_on(
        self, gateway: Running, upstream: FaultyServer
    ) -> None:
        typed = f"{GREETING}\n/model absent\nlost\n/model cut-late\nhalf\n/model good\n{WEATHER}\n"
        code, output, errors = await coe(gateway, "chat", typed=typed)
        assert code == 1
        assert "status 404" in errors
        assert "broke off" in errors
        assert output.rstrip().endswith("Hello")
        sent = [m["content"] for m in upstream.requests[-1][0]["messages"]]
        assert sent == [GREETING, "Hello", "half", "Hello", WEATHER]

    async def test_answer_can_not_command_the_terminal(self, gateway: Running) -> None:
        _, output, _ = await coe(gateway, "chat", "--model", "escapes", typed="x\n")
        assert "\x1b" not in output
        assert "clean" in output

    async def test_gateway_that_is_away_is_one_clear_line(self) -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "composer.cli", "chat", "--url", "http://127.0.0.1:9"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        _, errors = await process.communicate(b"hello\n")
        assert process.returncode == 1
        assert errors.decode().startswith("error: no answer from http://127.0.0.1:9")
        assert errors.count(b"\n") == 1


class Terminal:
    """A person at a terminal: types, and waits for what it shows."""

    def __init__(self, url: str, *arguments: str) -> None:
        self.shown = ""
        self._pid, self._file = pty.fork()
        if self._pid == 0:
            environment = {**os.environ, "COMPOSER_URL": url, "TERM": "xterm"}
            argv = [sys.executable, "-m", "composer.cli", "chat", *arguments]
            os.execve(sys.executable, argv, environment)
        os.set_blocking(self._file, False)

    async def until(self, pattern: str) -> None:
        """Wait for a pattern in what is shown from now on; what came before it is dropped."""
        async with asyncio.timeout(20):
            while not (found := re.search(pattern, self.shown)):
                await asyncio.sleep(0.02)
                self._read()
        self.shown = self.shown[found.end() :]

    def type(self, text: str) -> None:
        os.write(self._file, text.encode())

    async def end(self) -> int:
        async with asyncio.timeout(20):
            while (status := self._status()) is None:
                self._read()
                await asyncio.sleep(0.02)
        os.close(self._file)
        return os.waitstatus_to_exitcode(status)

    def _status(self) -> int | None:
        pid, status = os.waitpid(self._pid, os.WNOHANG)
        return status if pid else None

    def _read(self) -> None:
        try:
            self.shown += os.read(self._file, 65536).decode(errors="replace")
        except (BlockingIOError, OSError):
            return


class TestTerminal:
    async def test_ctrl_c_stops_the_answer_and_ctrl_d_ends(
        self, gateway: Running, upstream: FaultyServer
    ) -> None:
        dropped = upstream.dropped
        terminal = Terminal(gateway.url, "--model", "endless")
        await terminal.until("Ctrl-C stops an answer")
        await terminal.until("> ")
        terminal.type("go on and on\n")
        await terminal.until("endless: the request names")
        await terminal.until("again again again")
        terminal.type("\x03")
        await terminal.until(r"\(stopped\)")
        async with asyncio.timeout(5):
            while upstream.dropped == dropped:
                await asyncio.sleep(0.02)
        await terminal.until("> ")
        terminal.type("\x03")
        await terminal.until("Ctrl-D ends")
        terminal.type("/model good\n")
        await terminal.until("asking good")
        terminal.type(f"{GREETING}\n")
        await terminal.until("Hello")
        kept = upstream.requests[-1][0]["messages"]
        assert kept[0]["content"] == "go on and on"
        assert kept[1]["content"].startswith("Helloagain")
        terminal.type("\x1b[A")
        await terminal.until(re.escape(GREETING))
        terminal.type("\x15\x04")
        assert await terminal.end() == 0

    async def test_hang_up_ends_it(self, gateway: Running) -> None:
        terminal = Terminal(gateway.url)
        await terminal.until("> ")
        os.kill(terminal._pid, signal.SIGTERM)
        assert await terminal.end() == -signal.SIGTERM


class TestRoute:
    async def test_explanation_shows_scores_categories_and_who_was_ruled_out(
        self, gateway: Running
    ) -> None:
        await coe(gateway, "chat", "--session", "known", typed=f"{GREETING}\n")
        _, output, _ = await coe(gateway, "route", WEATHER, "--explain", "--session", "known")
        text = " ".join(output.split())
        assert output.startswith("good: the session is with 'good'")
        for said in (
            "session stays with good",
            "category weather",
            "all-MiniLM-L6-v2:",
            "expert expected utility",
            "canned ruled out: a canned answer is no fallback",
            "category probability",
        ):
            assert said in text, said
        assert re.search(r"good 0\.\d+ 0\.\d+ first", text)
        assert re.search(r"cache (hit|miss): \d", text)

    async def test_named_expert_and_unsure_prompt_are_explained_too(self, gateway: Running) -> None:
        code, output, _ = await coe(gateway, "route", "x", "--model", "good", "--explain")
        assert (code, output.partition("\n")[0]) == (0, "good: the request names the expert 'good'")
        code, output, _ = await coe(gateway, "route", "SELECT id; xq zz 0x7f", "--explain")
        assert code == 0
        assert "unsure" in output
