"""Plain completions and embeddings, as an OpenAI client uses them."""

import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI

from composer.state import Endpoint
from experts.spec import ExpertSpec
from routers.encoders import load_encoder
from tests.faulty import FaultyServer, faulty_server
from tests.small_composition import SENTENCES, Running, small_gateway

pytestmark = pytest.mark.asyncio(loop_scope="module")

GREETING, WEATHER = SENTENCES["greeting"], SENTENCES["weather"]
OWN = "all-minilm-l6-v2"


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def upstream() -> AsyncIterator[FaultyServer]:
    async with faulty_server() as server:
        yield server


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def gateway(
    upstream: FaultyServer, tmp_path_factory: pytest.TempPathFactory, cache_dir: Path
) -> AsyncIterator[Running]:
    """`prompted` is the best for greetings, but has a system prompt; `canned` for weather."""
    specs = [
        ExpertSpec(id="good", kind="remote", engine="one", capabilities=frozenset({"n"})),
        ExpertSpec(id="single", kind="remote", engine="one"),
        ExpertSpec(id="chat-only", kind="remote", engine="one"),
        ExpertSpec(id="prompted", kind="prompt", base="good", system_prompt="Be brief."),
        ExpertSpec(id="canned", kind="null", text="I can't know that."),
    ]
    quality = {
        "greeting": {
            "prompted": 0.9,
            "good": 0.6,
            "single": 0.5,
            "chat-only": 0.7,
            "canned": 0,
        },
        "weather": {"prompted": 0.3, "good": 0.2, "single": 0.2, "chat-only": 0.1, "canned": 1.0},
    }
    endpoints = [Endpoint(engine="one", base_url=upstream.url, state="ready")]
    folder = tmp_path_factory.mktemp("gateway")
    async with small_gateway(folder, cache_dir, specs, endpoints, quality) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def client(gateway: Running) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="x", max_retries=0) as one:
        yield one


class TestCompletions:
    async def test_prompt_goes_to_the_best_expert_without_a_system_prompt(
        self, client: AsyncOpenAI
    ) -> None:
        raw = await client.completions.with_raw_response.create(model="auto", prompt=GREETING)
        assert raw.headers["x-composer-category"] == "greeting"
        answer = raw.parse()
        assert answer.model == "good"
        assert answer.choices[0].text == f"{GREETING} and so on"

    async def test_stream_is_relayed_to_its_end(self, client: AsyncOpenAI) -> None:
        stream = await client.completions.create(model="auto", prompt=GREETING, stream=True)
        chunks = [chunk async for chunk in stream]
        assert "".join(chunk.choices[0].text for chunk in chunks) == "and so on"
        assert chunks[-1].choices[0].finish_reason == "stop"

    async def test_canned_answer_has_the_shape_of_a_text_completion(
        self, client: AsyncOpenAI
    ) -> None:
        whole = await client.completions.create(model="auto", prompt=WEATHER)
        assert (whole.object, whole.model) == ("text_completion", "canned")
        assert whole.choices[0].text == "I can't know that."
        stream = await client.completions.create(
            model="auto", prompt=WEATHER, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        assert "".join(c.choices[0].text for c in chunks if c.choices) == "I can't know that."
        assert chunks[-1].usage is not None

    async def test_list_of_one_prompt_is_that_prompt(
        self, client: AsyncOpenAI, upstream: FaultyServer
    ) -> None:
        await client.completions.create(model="single", prompt=[GREETING])
        assert upstream.requests[-1][0]["prompt"] == GREETING

    async def test_several_prompts_go_only_to_experts_that_take_them(
        self, client: AsyncOpenAI
    ) -> None:
        answer = await client.completions.create(model="good", prompt=["a", "b"])
        assert [choice.text for choice in answer.choices] == ["a and so on", "b and so on"]
        with pytest.raises(openai.BadRequestError, match="one prompt a request"):
            await client.completions.create(model="single", prompt=["a", "b"])

    async def test_prompt_expert_that_is_named_is_refused_with_the_reason(
        self, client: AsyncOpenAI
    ) -> None:
        with pytest.raises(openai.BadRequestError, match="no place for its system prompt"):
            await client.completions.create(model="prompted", prompt="x")

    async def test_next_expert_answers_when_an_engine_serves_chats_only(
        self, client: AsyncOpenAI, gateway: Running
    ) -> None:
        body = {"prompt": GREETING, "composer": {"experts": ["chat-only"]}}
        async with gateway.session.post("/v1/completions", json=body) as reply:
            error = (await reply.json())["error"]
            assert (reply.status, error["code"]) == (400, "unsupported_interface")
        raw = await client.completions.with_raw_response.create(model="auto", prompt=GREETING)
        assert raw.headers["x-composer-expert"] == "good"
        assert raw.headers["x-composer-attempts"] == "2"


class TestEmbeddings:
    @pytest.mark.parametrize("model", [OWN, "all-MiniLM-L6-v2", "auto"])
    async def test_vectors_are_the_encoders_own(
        self, client: AsyncOpenAI, cache_dir: Path, model: str
    ) -> None:
        texts = [GREETING, WEATHER, GREETING]
        expected = load_encoder("onnx", cache_dir, threads=1).encode(texts)
        plain = await client.embeddings.create(model=model, input=texts, encoding_format="float")
        # Without a format, the client asks for base64 and decodes it.
        packed = await client.embeddings.create(model=model, input=texts)
        for answer in (plain, packed):
            assert answer.model == OWN
            assert [item.index for item in answer.data] == [0, 1, 2]
            vectors = np.array([item.embedding for item in answer.data])
            np.testing.assert_allclose(vectors, expected, atol=1e-4)
            assert answer.usage.prompt_tokens == answer.usage.total_tokens > 20

    async def test_long_list_is_embedded_whole_and_in_order(self, client: AsyncOpenAI) -> None:
        texts = [f"number {i}" for i in range(70)]
        answer = await client.embeddings.create(model=OWN, input=texts, dimensions=384)
        last = await client.embeddings.create(model=OWN, input=texts[-1])
        assert [item.index for item in answer.data] == list(range(70))
        np.testing.assert_allclose(answer.data[-1].embedding, last.data[0].embedding, atol=1e-4)

    async def test_base64_is_of_little_endian_floats(self, gateway: Running) -> None:
        body = {"input": GREETING, "encoding_format": "base64"}
        async with gateway.session.post("/v1/embeddings", json=body) as reply:
            item = (await reply.json())["data"][0]["embedding"]
        vector = np.frombuffer(base64.b64decode(item), "<f4")
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-4)

    async def test_named_expert_is_asked_through_its_engine(self, client: AsyncOpenAI) -> None:
        answer = await client.embeddings.create(model="good", input="x", encoding_format="float")
        assert (answer.model, answer.data[0].embedding) == ("good", [0.0, 1.0])

    @pytest.mark.parametrize(
        ("fields", "said"),
        [
            ({"model": "canned"}, "no embeddings"),
            ({"model": "prompted"}, "no place for its system prompt"),
            ({"model": "chat-only"}, "does not serve"),
            ({"dimensions": 64}, "384"),
        ],
    )
    async def test_what_can_not_be_embedded_is_refused_with_the_reason(
        self, client: AsyncOpenAI, fields: dict[str, Any], said: str
    ) -> None:
        with pytest.raises(openai.BadRequestError, match=said):
            await client.embeddings.create(**{"model": OWN, "input": "x", **fields})

    async def test_encoder_is_listed_among_the_models(self, client: AsyncOpenAI) -> None:
        model = await client.models.retrieve(OWN)
        assert model.id == OWN
        assert OWN in {model.id async for model in client.models.list()}
