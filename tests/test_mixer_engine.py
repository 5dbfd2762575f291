"""A mixer on the embedded engine, beside its base and a plain adapter: a real process over HTTP."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from experts.engines.embedded import weights
from experts.mixer.checkpoint import save_mixture
from experts.mixer.mixture import Mixture
from tests.mixer_reference import GENERATED, MASK, PRIORS, PROMPTS, Reference, View, demo_mixture
from tests.test_embedded_engine import EngineProcess

pytestmark = pytest.mark.timeout(300)

MATHS = Path(__file__).parents[1] / "experts" / "demo" / "adapters" / "maths"


@pytest.fixture(scope="module")
def base(cache_dir: Path) -> Path:
    return weights.prepare_smollm2(cache_dir, print)


@pytest.fixture(scope="module")
def mixture() -> Mixture:
    return demo_mixture()


@pytest.fixture(scope="module")
def engine(
    base: Path, mixture: Mixture, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EngineProcess]:
    folder = tmp_path_factory.mktemp("mixer") / "mixer"
    save_mixture(mixture, folder, base)
    served = ("--serve", "base", "--serve", f"mixed={folder}", "--serve", f"maths={MATHS}")
    process = EngineProcess(base, *served, "--dtype", "float32", "--log-level", "warning")
    yield process
    log = process.end()
    assert "Traceback" not in log, log


@pytest.fixture
async def http(engine: EngineProcess) -> AsyncIterator[aiohttp.ClientSession]:
    timeout = aiohttp.ClientTimeout(total=200)
    async with aiohttp.ClientSession(engine.url, timeout=timeout) as session:
        await engine.ready(session)
        yield session


async def ask(session: aiohttp.ClientSession, model: str, text: str, **more: Any) -> Any:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": GENERATED,
        "temperature": 0,
        **more,
    }
    async with session.post("/v1/chat/completions", json=body) as response:
        return response.status, await response.json()


async def text_of(session: aiohttp.ClientSession, model: str, text: str, **more: Any) -> str:
    status, answer = await ask(session, model, text, **more)
    assert status == 200, answer
    said: str = answer["choices"][0]["message"]["content"]
    return said


async def test_greedy_text_equals_the_reference_with_different_priors_in_one_batch(
    http: aiohttp.ClientSession, base: Path, mixture: Mixture
) -> None:
    """Beside other requests of the same batch, which go to the base and to a plain adapter."""
    reference = Reference(base, mixture)
    views: list[View] = [*((prior, None) for prior in PRIORS), (PRIORS[2], MASK)]
    cases = [(text, *view) for text in PROMPTS[:3] for view in views]
    expected = [tokens for text in PROMPTS[:3] for tokens in reference.answers(text, views)]
    others = [(model, text) for model in ("base", "maths") for text in PROMPTS[:2]]
    alone = [await text_of(http, model, text) for model, text in others]
    found = await asyncio.gather(
        *(text_of(http, "mixed", text, vllm_xargs=arguments(p, m)) for text, p, m in cases),
        *(text_of(http, model, text) for model, text in others),
    )
    assert found[len(cases) :] == alone
    end = reference.tokenizer.eos_token_id
    for said, tokens in zip(found, expected, strict=False):
        tokens = tokens[: tokens.index(end)] if end in tokens else tokens
        assert said == reference.tokenizer.decode(tokens, skip_special_tokens=True)
    assert len(set(found[: len(views)])) >= 2


def arguments(prior: list[float] | None, mask: list[int] | None) -> dict[str, Any]:
    told: dict[str, Any] = {}
    if prior is not None:
        told["mixer_prior"] = prior
    if mask is not None:
        told["mixer_mask"] = mask
    return told


@pytest.mark.parametrize(
    ("model", "told", "message"),
    [
        ("mixed", {"mixer_prior": [1.0]}, "the prior has 1 values, the mixer has 4 experts"),
        ("mixed", {"mixer_mask": [0, 0, 0, 0]}, "removes all experts"),
        ("mixed", {"mixer_prior": [1e30, 0, 0, 0]}, "remove an expert by the mask"),
        ("mixed", {"other": 1}, "vllm_xargs.other"),
        ("maths", {"mixer_prior": [1.0]}, "'maths' is no mixer"),
    ],
)
async def test_a_prior_that_does_not_fit_is_refused(
    http: aiohttp.ClientSession, model: str, told: dict[str, Any], message: str
) -> None:
    status, answer = await ask(http, model, "hello", vllm_xargs=told)
    assert status == 400
    assert message in json.dumps(answer)
    assert "vllm_xargs" in answer["error"]["param"]


def test_a_damaged_mixer_keeps_the_engine_from_starting(
    base: Path, mixture: Mixture, tmp_path: Path
) -> None:
    save_mixture(mixture, tmp_path / "mixer", base)
    (tmp_path / "mixer" / "mixer.safetensors").unlink()
    process = EngineProcess(base, "--serve", f"mixed={tmp_path / 'mixer'}")
    try:
        assert process.wait(60) == 2
    finally:
        log = process.end()
    assert "copy the folder again" in log
    assert "Traceback" not in log
