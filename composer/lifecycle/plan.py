"""Which engines the registered experts need: a pure function of configuration and experts."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from composer.config import Config
from experts.engine_spec import EmbeddedEngineSpec
from experts.registry import OWN_ENGINE
from experts.spec import ExpertSpec

MIN_CONTEXT, MAX_CONTEXT = 128, 1_000_000


@dataclass(frozen=True, slots=True)
class EmbeddedPlan:
    """A process of ours; `served` maps each expert to its adapter's folder (None: the base)."""

    engine: EmbeddedEngineSpec
    served: Mapping[str, Path | None]


@dataclass(frozen=True, slots=True)
class RemotePlan:
    """A server of somebody else; `url` ends before `/v1`."""

    url: str
    api_key_env: str | None


@dataclass(frozen=True, slots=True)
class BridgePlan:
    """A provider behind the bridge; `api_base` is its address if not the one that is known."""

    api_base: str | None
    api_key_env: str | None


EnginePlan = EmbeddedPlan | RemotePlan | BridgePlan


def plan_engines(config: Config, experts: Mapping[str, ExpertSpec]) -> dict[str, EnginePlan]:
    """The engines by name: the configured ones, and those of experts that have one of their own.

    An embedded engine without experts has nothing to serve and is not among them.
    """
    plans: dict[str, EnginePlan] = {}
    for engine in config.engines:
        if isinstance(engine, EmbeddedEngineSpec):
            if served := _served(engine.name, experts):
                plans[engine.name] = EmbeddedPlan(engine, served)
        else:
            plans[engine.name] = RemotePlan(base_url(str(engine.url)), engine.api_key_env)
    for spec in experts.values():
        if spec.base is None and spec.engine is not None and spec.engine.startswith(OWN_ENGINE):
            plans[spec.engine] = _own(spec, spec.engine, experts)
    return plans


def base_url(url: str) -> str:
    """The address of an OpenAI-compatible server as we keep it: what comes before `/v1`."""
    return url.rstrip("/").removesuffix("/v1")


def _own(spec: ExpertSpec, name: str, experts: Mapping[str, ExpertSpec]) -> EnginePlan:
    url = None if spec.url is None else str(spec.url).rstrip("/")
    if spec.path is not None:
        context = min(max(spec.context_length, MIN_CONTEXT), MAX_CONTEXT)
        engine = EmbeddedEngineSpec(
            kind="embedded", name=name, model=spec.path, max_context=context
        )
        return EmbeddedPlan(engine, _served(name, experts))
    if spec.provider is not None:
        return BridgePlan(url, spec.api_key_env)
    assert url is not None
    return RemotePlan(base_url(url), spec.api_key_env)


def _served(engine: str, experts: Mapping[str, ExpertSpec]) -> dict[str, Path | None]:
    return {spec.id: spec.adapter for spec in experts.values() if spec.engine == engine}
