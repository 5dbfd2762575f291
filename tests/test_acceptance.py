"""The whole service as a user starts it: `coe up` with its defaults, real engines, real clients."""

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import psutil
import pytest
from openai import AsyncOpenAI, OpenAI

pytestmark = pytest.mark.timeout(300)

READY = re.compile(r"Composer answers at (http://\S+)/v1")
START_S = 240
MATHS = "What is 47 + 38?"
CHAT = "hey, how's it going? I had a long day at work and feel tired"


@dataclass(frozen=True)
class Demo:
    """`url` of the gateway, `pid` of the supervisor, `state` its folder, seconds to readiness."""

    url: str
    process: subprocess.Popen[str]
    state: Path
    ready_s: float

    @property
    def pid(self) -> int:
        return self.process.pid

    def child(self, name: str) -> psutil.Process:
        """The process of this name, once there is one."""
        file = self.state / "processes" / f"{name}.json"
        for _ in range(200):
            if file.exists():
                return psutil.Process(json.loads(file.read_text())["pid"])
            time.sleep(0.05)
        pytest.fail(f"there is no process {name}")

    def engine_url(self, name: str) -> str:
        argv = self.child(name).cmdline()
        return f"http://127.0.0.1:{argv[argv.index('--port') + 1]}"


def start(state: Path, cache_dir: Path) -> Demo:
    """`coe up` on a free port; waits for the line that says that it is ready."""
    environment = {
        **os.environ,
        "COMPOSER_STATE_DIR": str(state),
        "COMPOSER_CACHE_DIR": str(cache_dir),
    }
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "composer.cli", "up", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        cwd=state.parent,
        text=True,
    )
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if found := READY.search(line):
            return Demo(found[1], process, state, time.monotonic() - began)
        if time.monotonic() - began > START_S:
            break
    process.kill()
    pytest.fail("coe up did not become ready:\n" + "".join(lines))


def stop(demo: Demo, number: signal.Signals = signal.SIGINT) -> None:
    if demo.process.poll() is None:
        demo.process.send_signal(number)
        demo.process.wait(60)
    assert demo.process.stdout is not None
    demo.process.stdout.close()


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Iterator[Demo]:
    running = start(tmp_path_factory.mktemp("demo") / "state", cache_dir)
    yield running
    stop(running)


@pytest.fixture
def client(demo: Demo) -> OpenAI:
    return OpenAI(base_url=f"{demo.url}/v1", api_key="unused", max_retries=0, timeout=120)


def say(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


class TestOpenAIClient:
    def test_chat_goes_to_the_expert_of_its_category(self, client: OpenAI) -> None:
        raw = client.chat.completions.with_raw_response.create(
            model="auto", messages=say(MATHS), temperature=0, max_tokens=60
        )
        answer = raw.parse()
        assert raw.headers["x-composer-category"] == "arithmetic"
        assert raw.headers["x-composer-expert"] == "maths"
        assert answer.model == "maths"
        assert "85" in answer.choices[0].message.content
        assert answer.usage.completion_tokens > 0

    def test_streamed_chat_adds_up_and_ends_with_usage(self, client: OpenAI) -> None:
        stream = client.chat.completions.create(
            model="auto",
            messages=say(MATHS),
            temperature=0,
            max_tokens=60,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = list(stream)
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert "85" in text
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens > 0
        assert {c.model for c in chunks} == {"maths"}

    async def test_batch_of_32_is_answered_whole(self, demo: Demo) -> None:
        prompts = [
            MATHS,
            CHAT,
            "Table pets(id, name, age). SQL for the names of pets older than 3.",
            "What is the weather in Paris right now?",
        ]
        async with AsyncOpenAI(
            base_url=f"{demo.url}/v1", api_key="unused", max_retries=0, timeout=120
        ) as client:
            answers = await asyncio.gather(
                *(
                    client.chat.completions.create(
                        model="auto", messages=say(prompts[i % 4]), max_tokens=24
                    )
                    for i in range(32)
                )
            )
        assert all(answer.choices[0].message.content for answer in answers)
        assert len({answer.model for answer in answers}) >= 3

    async def test_engine_stops_generating_when_a_stream_is_cancelled(self, demo: Demo) -> None:
        async with AsyncOpenAI(base_url=f"{demo.url}/v1", api_key="unused") as client:
            stream = await client.chat.completions.create(
                model="general",
                messages=say("Tell me a very long story about a ship."),
                max_tokens=1500,
                stream=True,
            )
            seen = 0
            async for _ in stream:
                seen += 1
                if seen == 5:
                    break
            await stream.close()
        url = demo.engine_url("generalists")
        async with aiohttp.ClientSession() as session, asyncio.timeout(20):
            while await metric(session, url, "engine_requests_running") > 0:
                await asyncio.sleep(0.05)
            before = await metric(session, url, "engine_generated_tokens_total")
            await asyncio.sleep(0.5)
            assert await metric(session, url, "engine_generated_tokens_total") == before
            assert before < 1400

    def test_models_can_be_listed_and_called_by_name(self, client: OpenAI) -> None:
        models = {model.id for model in client.models.list()}
        assert {"auto", "general", "maths", "extract", "sql", "triage", "offline"} <= models
        answer = client.chat.completions.create(
            model="general", messages=say("Say hello."), max_tokens=8
        )
        assert answer.model == "general"


async def metric(session: aiohttp.ClientSession, url: str, name: str) -> float:
    """One metric without labels."""
    async with session.get(f"{url}/metrics") as reply:
        text = await reply.text()
    return float(re.search(rf"^{name} (\S+)$", text, re.MULTILINE)[1])  # type: ignore[index]


class TestFaults:
    async def test_next_expert_answers_and_the_engine_comes_back_when_it_is_killed_mid_request(
        self, demo: Demo
    ) -> None:
        async with aiohttp.ClientSession(demo.url) as session:
            body = {"model": "auto", "messages": say(MATHS), "max_tokens": 200}
            engine = demo.child("specialists")
            # A stopped engine holds the request, so that the kill surely comes in its middle.
            engine.suspend()
            request = asyncio.create_task(post(session, body))
            await asyncio.sleep(0.5)
            assert not request.done()
            engine.kill()
            status, headers, answer = await request
            assert status == 200
            assert headers["x-composer-attempts"] != "1"
            assert headers["x-composer-expert"] in ("general", "concise")
            assert answer["choices"][0]["message"]["content"]
            async with asyncio.timeout(60):
                while True:
                    status, headers, _ = await post(session, body)
                    assert status == 200
                    if headers["x-composer-expert"] == "maths":
                        break
                    await asyncio.sleep(0.2)
            assert demo.child("specialists").pid != engine.pid

    async def test_answers_go_on_and_the_state_is_written_again_when_redis_loses_its_data(
        self, demo: Demo
    ) -> None:
        redis = demo.child("redis")
        redis.kill()
        shutil.rmtree(demo.state / "redis" / "appendonlydir")
        body = {"model": "auto", "messages": say("What is the weather in Paris right now?")}
        async with aiohttp.ClientSession(demo.url) as session, asyncio.timeout(60):
            while True:
                status, headers, _ = await post(session, body)
                assert (status, headers["x-composer-expert"]) == (200, "offline")
                async with session.get("/health/ready") as reply:
                    report = await reply.json()
                if report["status"] == "ready" and demo.child("redis").pid != redis.pid:
                    break
                await asyncio.sleep(0.1)
            async with session.get("/v1/models") as reply:
                assert len((await reply.json())["data"]) == 9

    def test_second_supervisor_on_the_same_state_is_refused(
        self, demo: Demo, cache_dir: Path
    ) -> None:
        result = subprocess.run(
            [sys.executable, "-m", "composer.cli", "up", "--port", "0"],
            env={
                **os.environ,
                "COMPOSER_STATE_DIR": str(demo.state),
                "COMPOSER_CACHE_DIR": str(cache_dir),
            },
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert result.returncode == 1
        assert "another Composer runs" in result.stderr


async def post(
    session: aiohttp.ClientSession, body: dict[str, object]
) -> tuple[int, dict[str, str], dict[str, object]]:
    async with session.post("/v1/chat/completions", json=body) as reply:
        return reply.status, {k.lower(): v for k, v in reply.headers.items()}, await reply.json()


class TestCommands:
    def test_route_says_where_a_prompt_would_go_and_why(self, demo: Demo) -> None:
        output = coe("route", MATHS, "--url", demo.url, "--explain")
        assert output.startswith("maths: category 'arithmetic'")
        decision = json.loads(coe("route", MATHS, "--url", demo.url, "--json"))
        assert decision["expert"] == "maths"

    def test_help_answers_in_under_half_a_second(self) -> None:
        times = []
        for _ in range(3):
            began = time.monotonic()
            assert "Commands" in coe("--help")
            times.append(time.monotonic() - began)
        assert min(times) < 0.5

    @pytest.mark.parametrize(
        "name", ["up", "demo", "serve", "setup", "train", "route", "config", "bench"]
    )
    def test_every_command_has_an_example_in_its_help(self, name: str) -> None:
        help_text = coe(name, "--help")
        if name == "config":
            help_text = coe(name, "check", "--help") + coe(name, "show", "--help")
        assert "Example:" in help_text


def coe(*arguments: str) -> str:
    result = subprocess.run(
        [sys.executable, "-m", "composer.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return result.stdout


class TestLifetime:
    def test_second_start_is_quick_and_ctrl_c_leaves_no_process_behind(
        self, demo: Demo, cache_dir: Path
    ) -> None:
        stop(demo)
        again = start(demo.state, cache_dir)
        children = psutil.Process(again.pid).children(recursive=True)
        stop(again)
        assert again.process.returncode == 0
        assert again.ready_s < 15
        assert len(children) >= 4
        assert [p for p in children if p.is_running() and p.status() != "zombie"] == []

    async def test_requests_that_outlive_the_drain_time_are_told_that_the_gateway_stops(
        self, demo: Demo, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stop(demo)
        monkeypatch.setenv("COMPOSER_TIMEOUTS__DRAIN_S", "1")
        again = start(demo.state, cache_dir)
        body = {"model": "general", "messages": say("Tell me a very long story."), "seed": 1}
        async with aiohttp.ClientSession(again.url) as session:
            path = "/v1/chat/completions"
            async with session.post(path, json={**body, "max_tokens": 1500, "stream": True}) as one:
                await one.content.readany()
                other = asyncio.create_task(post(session, {**body, "max_tokens": 1500}))
                await asyncio.sleep(0.5)
                again.process.send_signal(signal.SIGTERM)
                events = (await one.read()).rstrip().split(b"\n\n")
                assert json.loads(events[-1][6:])["error"]["code"] == "shutting_down"
                status, _, _ = await other
                assert status == 503
        await asyncio.to_thread(stop, again)

    def test_start_cleans_what_a_killed_supervisor_left_behind(
        self, demo: Demo, cache_dir: Path
    ) -> None:
        stop(demo)
        first = start(demo.state, cache_dir)
        left = psutil.Process(first.pid).children(recursive=True)
        stop(first, signal.SIGKILL)
        assert any(p.is_running() for p in left)
        second = start(demo.state, cache_dir)
        assert [p for p in left if p.is_running() and p.status() != "zombie"] == []
        stop(second)
