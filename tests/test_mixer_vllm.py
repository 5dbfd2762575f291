"""A mixer inside stock vLLM answers with the very tokens of the transformers reference.

`make test-vllm` runs these; elsewhere they are skipped.
"""

import asyncio
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import torch

from experts.engines.embedded import weights
from experts.engines.embedded.adapters import Adapter
from experts.mixer.checkpoint import save_mixture
from experts.mixer.mixture import Mixture, compose
from experts.mixer.routed import attach
from experts.mixer.spec import GateSpec
from experts.mixer.training.experts import fresh_adapter
from experts.mixer.training.tasks import Base
from experts.mixer.vllm_plugin.checkpoint import write_vllm_checkpoint
from tests.mixer_reference import (
    GENERATED,
    MASK,
    PRIORS,
    PROMPTS,
    Reference,
    demo_mixture,
    greedy,
    with_random_gates,
)
from tests.vllm_server import PYTHON, VllmServer

pytestmark = [
    pytest.mark.skipif(PYTHON is None, reason="COMPOSER_VLLM_PYTHON names no vLLM environment"),
    pytest.mark.timeout(1500),
]

SERVER = ("--dtype", "float32", "--max-model-len", "512", "--enforce-eager", "--max-num-seqs", "16")


@pytest.fixture(scope="module")
def base(cache_dir: Path) -> Path:
    return weights.prepare_smollm2(cache_dir, print)


@pytest.fixture(scope="module")
def mixture() -> Mixture:
    return demo_mixture()


@pytest.fixture(scope="module")
def checkpoint(mixture: Mixture, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mixer")
    save_mixture(mixture, root / "mixer", base)
    write_vllm_checkpoint(root / "mixer", base, root / "served")
    return root / "served"


@pytest.fixture(scope="module")
def server(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    """Small chunks and a cache that can't hold all requests at once: prompts are cut, requests are
    preempted and begin again."""
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
    chunked = ("--max-num-batched-tokens", "128", "--block-size", "32")
    few = ("--num-gpu-blocks-override", "24")
    work = tmp_path_factory.mktemp("server")
    started = VllmServer(checkpoint, work, *SERVER, *chunked, *few)
    started.wait_until_ready()
    yield started
    started.end()


@pytest.fixture(scope="module")
def reference(base: Path, mixture: Mixture) -> Reference:
    return Reference(base, mixture)


async def ask(
    session: aiohttp.ClientSession,
    ids: list[int],
    prior: list[float] | None = None,
    mask: list[int] | None = None,
    **more: Any,
) -> list[int]:
    xargs: dict[str, Any] = {}
    if prior is not None:
        xargs["mixer_prior"] = prior
    if mask is not None:
        xargs["mixer_mask"] = mask
    body = {
        "model": "mixed",
        "prompt": ids,
        "max_tokens": GENERATED,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
        "vllm_xargs": xargs or None,
        "cache_salt": hashlib.sha256(repr((prior, mask)).encode()).hexdigest(),
        **more,
    }
    async with session.post("/v1/completions", json=body) as response:
        answer = await response.json()
        assert response.status == 200, answer
        tokens: list[int] = answer["choices"][0]["token_ids"]
        return tokens


async def test_greedy_tokens_equal_the_reference_with_different_priors_in_one_batch(
    server: VllmServer, reference: Reference
) -> None:
    """All requests at once, twice over: with chunked prompts, preempted requests, and four priors
    and a mask beside one another."""
    views = [*((prior, None) for prior in PRIORS), (PRIORS[2], MASK)]
    cases = [(reference.prompt(text), *view) for text in PROMPTS for view in views]
    expected = [tokens for text in PROMPTS for tokens in reference.answers(text, views)]
    timeout = aiohttp.ClientTimeout(total=900)
    async with aiohttp.ClientSession(server.url, timeout=timeout) as session:
        for _ in range(2):
            found = await asyncio.gather(*(ask(session, *case) for case in cases))
            wrong = [number for number in range(len(cases)) if found[number] != expected[number]]
            assert not wrong, [(cases[n][1:], found[n], expected[n]) for n in wrong]
        metrics = await metrics_of(session)
    # The priors do change the answers, so that mixing them up would be seen.
    assert len({tuple(tokens) for tokens in expected[:6]}) >= 3
    assert figure(metrics, "vllm:num_preemptions_total") > 0


async def test_prefixes_from_the_cache_are_right_when_salted_by_the_prior_and_wrong_when_not(
    server: VllmServer, reference: Reference
) -> None:
    """Why the gateway sets `cache_salt`: vLLM's own hash of a block knows nothing of a prior."""
    first, second = PRIORS[1], PRIORS[3]
    mixed_up = 0
    # The server closes connections that rest while the reference is computed.
    connector = aiohttp.TCPConnector(force_close=True)
    async with aiohttp.ClientSession(server.url, connector=connector) as session:
        before = figure(await metrics_of(session), "vllm:prefix_cache_hits_total")
        for text in PROMPTS[:4]:
            repeated = " ".join([text] * 8)
            ids = reference.prompt(repeated)
            expected = reference.answers(repeated, [(first, None), (second, None)])
            for _ in range(2):
                salted = await asyncio.gather(ask(session, ids, first), ask(session, ids, second))
                assert salted == expected
            await ask(session, ids, first, cache_salt="shared")
            mixed_up += await ask(session, ids, second, cache_salt="shared") != expected[1]
        after = figure(await metrics_of(session), "vllm:prefix_cache_hits_total")
    assert after > before
    assert mixed_up > 0


async def metrics_of(session: aiohttp.ClientSession) -> str:
    async with session.get("/metrics") as response:
        return await response.text()


@pytest.mark.parametrize(
    ("xargs", "message"),
    [
        ({"mixer_prior": [1.0, 2.0]}, "mixer_prior has 2 values, the mixer has 4 experts"),
        ({"mixer_prior": [1.0, 2.0, 3.0, "x"]}, "mixer_prior takes numbers alone"),
        ({"mixer_prior": [1.0, 2.0, 3.0, 1e30]}, "remove an expert by mixer_mask"),
        ({"mixer_prior": 1.0}, "give one for each"),
        ({"mixer_mask": [0, 0, 0, 0]}, "removes every expert: leave at least one"),
        ({"mixer_mask": [0, 2, 0, 0]}, "mixer_mask takes 1"),
    ],
)
async def test_a_prior_that_is_no_prior_is_refused(
    server: VllmServer, xargs: dict[str, Any], message: str
) -> None:
    body = {"model": "mixed", "prompt": "hello", "max_tokens": 1, "vllm_xargs": xargs}
    async with aiohttp.ClientSession(server.url) as session:
        async with session.post("/v1/completions", json=body) as response:
            assert response.status == 400
            assert message in await response.text()
        nan = '{"model": "mixed", "prompt": "hello", "vllm_xargs": {"mixer_prior": [NaN, 0, 0, 0]}}'
        headers = {"content-type": "application/json"}
        async with session.post("/v1/completions", data=nan, headers=headers) as response:
            assert response.status in (400, 422)
        assert await ask(session, [1, 2, 3]) is not None


def figure(metrics: str, name: str) -> float:
    return sum(
        float(line.rpartition(" ")[2])
        for line in metrics.splitlines()
        if line.startswith((name + "{", name + " "))
    )


async def test_it_composes_with_torch_compile(
    checkpoint: Path, reference: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_USE_AOT_COMPILE", "0")
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "cache"))
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    compiled = [argument for argument in SERVER if argument != "--enforce-eager"]
    server = VllmServer(checkpoint, tmp_path, *compiled)
    try:
        server.wait_until_ready()
        views = [(prior, None) for prior in PRIORS]
        ids, expected = reference.prompt(PROMPTS[0]), reference.answers(PROMPTS[0], views)
        timeout = aiohttp.ClientTimeout(total=900)
        async with aiohttp.ClientSession(server.url, timeout=timeout) as session:
            found = await asyncio.gather(*(ask(session, ids, prior) for prior, _ in views))
    finally:
        server.end()
    assert found == expected


FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3": ("Qwen3Config", {}),
    "gemma2": ("Gemma2Config", {}),
}
TINY = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "initializer_range": 0.2,
}


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("gate", [GateSpec(kind="vector", top_k=2), GateSpec(scope="layer")])
async def test_other_families_and_gates_equal_the_reference_too(
    family: str, gate: GateSpec, tmp_path: Path
) -> None:
    """Random bases; the feed-forward layers are routed as well, and one expert lacks q."""
    import transformers

    torch.manual_seed(1)
    name, values = FAMILIES[family]
    config = getattr(transformers, name)(**TINY, **values)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(tmp_path / "base")
    targets = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    adapters = [
        random_adapter(model, f"expert{number}", targets[number % 2 :], seed=number)
        for number in range(3)
    ]
    mixture = with_random_gates(compose(adapters, targets=targets, gate=gate), 1.0)
    save_mixture(mixture, tmp_path / "mixer", tmp_path / "base")
    write_vllm_checkpoint(tmp_path / "mixer", tmp_path / "base", tmp_path / "served")
    routing = attach(model, mixture)
    prompts = [[5, 9, 200, 31], [77, 3], list(range(100, 160))]
    priors = [None, [4.0, 0.0, 0.0], [0.0, 0.0, 9.0]]
    expected = []
    for ids, prior in zip(prompts, priors, strict=True):
        with routing.request(None if prior is None else torch.tensor([prior])):
            expected += greedy(model, torch.tensor([ids]))
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
    server = VllmServer(tmp_path / "served", tmp_path, *SERVER, "--skip-tokenizer-init")
    try:
        server.wait_until_ready()
        async with aiohttp.ClientSession(server.url) as session:
            found = await asyncio.gather(
                *(
                    ask(session, ids, prior, detokenize=False)
                    for ids, prior in zip(prompts, priors, strict=True)
                )
            )
    finally:
        server.end()
    assert found == expected


def random_adapter(model: Any, name: str, targets: tuple[str, ...], seed: int) -> Adapter:
    fresh = fresh_adapter(Base(model, None, Path()), name, 4, 4.0, targets, seed)
    generator = torch.Generator().manual_seed(seed)
    matrices = {
        module: (a, torch.randn(b.shape, generator=generator) * 0.3)
        for module, (a, b) in fresh.matrices.items()
    }
    return Adapter(name, fresh.rank, fresh.scale, matrices)
