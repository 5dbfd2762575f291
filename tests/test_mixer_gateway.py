"""A mixer behind the gateway: its prior, its cache salt, and what clients may not say."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import torch

from composer.admission import admit
from composer.mixing import Mixing, prior_of, salt
from composer.state import Endpoint
from experts.errors import InvalidRequest, Overloaded
from experts.mixer.checkpoint import load_mixture, save_mixture
from experts.mixer.mixture import compose
from experts.mixer.spec import GlobalSpec, MixerSpec
from experts.registry import index_experts
from experts.spec import ExpertSpec
from routers.encoders import load_encoder
from routers.types import Decision, Ranking, Scores
from tests.faulty import FaultyServer, faulty_server
from tests.mixer_parts import save_base, write_adapter
from tests.small_composition import SENTENCES, Running, gateway_config, small_gateway

pytestmark = pytest.mark.asyncio(loop_scope="module")

NAMES = ("greeting", "weather", "elsewhere")
UNDECIDED = Decision(
    id="d",
    composition="auto",
    version="v",
    scores=Scores(
        quality={},
        probabilities={"greeting": 0.3, "weather": 0.5},
        category="weather",
        uncertainty=0.5,
        similarity=0.5,
    ),
    ranking=Ranking((), {}),
    cache="off",
    encoder="",
    route_ms=0.0,
)
GREETING, WEATHER = SENTENCES["greeting"], SENTENCES["weather"]


def write_mixer(root: Path) -> tuple[Path, Path]:
    """A mixer whose experts bear the names of categories, and its base."""
    from experts.engines.embedded.adapters import read_adapter

    base = save_base("llama", root / "base")
    adapters = [
        read_adapter(name, write_adapter("llama", root / name, seed=seed, rank=2, alpha=2))
        for seed, name in enumerate(NAMES)
    ]
    mixture = compose(adapters, prior=GlobalSpec(gamma=10, threshold=0.6, beta=1))
    save_mixture(mixture, root / "mixer", base)
    return root / "mixer", base


@pytest.fixture(scope="module")
def mixer(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_mixer(tmp_path_factory.mktemp("mixer"))


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def upstream() -> AsyncIterator[FaultyServer]:
    async with faulty_server() as server:
        yield server


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def gateway(
    upstream: FaultyServer,
    mixer: tuple[Path, Path],
    tmp_path_factory: pytest.TempPathFactory,
    cache_dir: Path,
) -> AsyncIterator[Running]:
    specs = [
        ExpertSpec(id="mixed", kind="mixer", engine="one", adapter=mixer[0], served_name="good"),
        ExpertSpec(id="good", kind="remote", engine="one"),
    ]
    quality = {category: {"mixed": 0.9, "good": 0.5} for category in SENTENCES}
    endpoints = [Endpoint(engine="one", base_url=upstream.url, state="ready")]
    folder = tmp_path_factory.mktemp("gateway")
    async with small_gateway(folder, cache_dir, specs, endpoints, quality) as running:
        yield running


async def told(
    gateway: Running, upstream: FaultyServer, text: str, model: str = "auto", **more: Any
) -> dict[str, Any]:
    """What the engine was sent for a request of a client."""
    body = {"model": model, "messages": [{"role": "user", "content": text}], **more}
    async with gateway.session.post("/v1/chat/completions", json=body) as response:
        assert response.status == 200, await response.text()
    sent: dict[str, Any] = upstream.requests[-1][0]
    return sent


async def test_the_prior_follows_the_decision_and_the_salt_follows_the_prior(
    gateway: Running, upstream: FaultyServer
) -> None:
    greeting = await told(gateway, upstream, GREETING)
    weather = await told(gateway, upstream, WEATHER)
    first, second = (sent["vllm_xargs"]["mixer_prior"] for sent in (greeting, weather))
    assert first[0] > 6 > first[1]
    assert second[1] > 6 > second[0]
    assert first[2] == second[2] == 0
    assert greeting["cache_salt"] != weather["cache_salt"]
    assert (await told(gateway, upstream, GREETING))["cache_salt"] == greeting["cache_salt"]


async def test_what_a_client_says_of_priors_and_caches_is_replaced(
    gateway: Running, upstream: FaultyServer
) -> None:
    own = {"vllm_xargs": {"mixer_mask": [1, 0, 0]}, "cache_salt": "theirs"}
    sent = await told(gateway, upstream, GREETING, **own)
    assert set(sent["vllm_xargs"]) == {"mixer_prior"}
    assert sent["cache_salt"] != "theirs"


async def test_a_mixer_that_is_named_gets_no_prior_but_a_salt(
    gateway: Running, upstream: FaultyServer
) -> None:
    sent = await told(gateway, upstream, GREETING, model="mixed", vllm_xargs={"mixer_prior": [9]})
    assert "vllm_xargs" not in sent
    assert len(sent["cache_salt"]) == 64


async def test_a_prior_is_shown_to_who_asks_for_an_explanation(gateway: Running) -> None:
    body = {"messages": [{"role": "user", "content": GREETING}]}
    for explain in (False, True):
        options = {"composer": {"explain": explain}}
        async with gateway.session.post("/v1/chat/completions", json=body | options) as response:
            shown = response.headers.get("x-composer-prior")
            assert response.status == 200
        assert (shown is not None) == explain
    assert shown is not None
    assert shown.startswith("greeting=")
    assert shown.endswith("elsewhere=0")


async def test_a_server_of_somebody_else_gets_what_the_client_says(
    gateway: Running, upstream: FaultyServer
) -> None:
    sent = await told(gateway, upstream, GREETING, model="good", cache_salt="theirs")
    assert sent["cache_salt"] == "theirs"


def spec_of(*names: str, prior: GlobalSpec | None) -> MixerSpec:
    members = [{"name": name, "rank": 2, "scale": 1.0} for name in names]
    return MixerSpec.model_validate({"members": members, "prior": prior})


async def test_the_prior_decides_only_where_the_router_is_certain() -> None:
    mixer = spec_of("a", "b", prior=GlobalSpec(gamma=100, threshold=0.8, beta=3))
    assert prior_of(mixer, {"a": 0.9, "b": 0.1}) == [92.7, 10.3]
    assert prior_of(mixer, {"a": 0.5, "c": 0.5}) == [1.5, 0.0]
    assert prior_of(mixer, {"c": 1.0}) is None
    assert prior_of(spec_of("a", prior=None), {"a": 1.0}) is None


async def test_the_prior_comes_from_the_instructions_where_they_are_embedded(
    mixer: tuple[Path, Path], tmp_path: Path, cache_dir: Path
) -> None:
    encoder = load_encoder("onnx", cache_dir, threads=1)
    known = load_mixture(mixer[0])
    said = ["Greet the user politely.", "Tell the weather of a place.", "Translate into French."]
    embedded = replace(
        known,
        spec=known.spec.model_copy(update={"encoder": encoder.id}),
        instructions=torch.from_numpy(encoder.encode(said)),
    )
    save_mixture(embedded, tmp_path / "mixer", mixer[1])
    spec = ExpertSpec(id="mixed", kind="mixer", engine="one", adapter=tmp_path / "mixer")
    asked: list[str] = []

    async def embed(text: str) -> Any:
        asked.append(text)
        return encoder.encode([text])[0]

    async def prior(mixing: Mixing, text: str) -> list[float]:
        told, _ = await mixing.prepare(spec, {}, UNDECIDED, "tenant", text)
        found: list[float] = told["vllm_xargs"]["mixer_prior"]
        return found

    mixing = Mixing(embed, encoder.id)
    rain = await prior(mixing, "Will it rain in Paris tomorrow?")
    assert rain[1] == max(rain)
    french = await prior(mixing, "Please translate this sentence into French.")
    assert french[2] == max(french)
    assert await prior(mixing, "Will it rain in Paris tomorrow?") == rain
    assert len(asked) == 2

    async def overloaded(text: str) -> Any:
        raise Overloaded("too many texts wait")

    for other in (Mixing(embed, "another encoder"), Mixing(overloaded, encoder.id)):
        assert await prior(other, "Will it rain in Paris tomorrow?") == [0.3, 0.5, 0.0]


async def test_the_salt_tells_tenants_versions_and_priors_apart() -> None:
    salts = {
        salt("one", "v1", None),
        salt("two", "v1", None),
        salt("one", "v2", None),
        salt("one", "v1", [0.0]),
        salt("one", "v1", [1.0]),
    }
    assert len(salts) == 5
    assert all(len(value) <= 128 and value.isalnum() for value in salts)


async def test_a_mixer_is_admitted_on_its_base_and_refused_elsewhere(
    mixer: tuple[Path, Path], tmp_path: Path
) -> None:
    folder, base = mixer
    roots = (folder.parent, tmp_path)
    other = save_base("qwen", tmp_path / "other")
    config = gateway_config(tmp_path, tmp_path, model_roots=roots)

    async def register(path: Path, adapter: Path) -> None:
        model = ExpertSpec(id="base", kind="model", path=path)
        spec = ExpertSpec(id="mixed", kind="mixer", base="base", adapter=adapter)
        known = index_experts([model, spec])
        await admit(spec, known["mixed"], known, config, {})

    await register(base, folder)
    with pytest.raises(InvalidRequest, match="whose geometry differs"):
        await register(other, folder)
    with pytest.raises(InvalidRequest, match="read mixer"):
        await register(base, folder.parent / "greeting")
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "mixer.json").write_bytes((folder / "mixer.json").read_bytes())
    with pytest.raises(InvalidRequest, match="is missing or damaged: copy"):
        await register(base, tmp_path / "cut")
