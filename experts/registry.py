"""Rules that hold between experts: unique ids, known bases, one engine for each."""

import hashlib
import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from experts.errors import ConfigError
from experts.spec import ExpertSpec

OWN_ENGINE = "own-"
"""How the names of engines begin that serve one expert's own weights or address."""


def index_experts(specs: Iterable[ExpertSpec]) -> Mapping[str, ExpertSpec]:
    """Index specs by id, with engine, size and served name of a base handed down.

    Raises:
        ConfigError: an id occurs twice, a base is missing, or a base is not of kind `model` or
            `remote` (an adapter stands on a `model` alone).
    """
    by_id: dict[str, ExpertSpec] = {}
    for spec in specs:
        if spec.id in by_id:
            raise ConfigError(f"expert '{spec.id}' is defined twice", param="experts")
        by_id[spec.id] = spec
    return MappingProxyType({spec.id: inherit(spec, by_id) for spec in by_id.values()})


def index_known(
    specs: Iterable[ExpertSpec],
) -> tuple[Mapping[str, ExpertSpec], Mapping[str, str]]:
    """As `index_experts`, of specs by unique ids, but what breaks a rule is left out.

    Returns:
        the specs that fit, and of the others why not (expert id -> reason).
    """
    by_id = {spec.id: spec for spec in specs}
    fitting: dict[str, ExpertSpec] = {}
    problems: dict[str, str] = {}
    for spec in by_id.values():
        try:
            fitting[spec.id] = inherit(spec, by_id)
        except ConfigError as error:
            problems[spec.id] = error.message
    return MappingProxyType(fitting), MappingProxyType(problems)


def own_engine_name(expert_id: str) -> str:
    """Name of the engine that serves one expert alone. It names files, so it is spelt plainly."""
    plain = re.sub(r"[^a-z0-9]+", "-", expert_id.lower()).strip("-")[:40]
    digest = hashlib.sha256(expert_id.encode()).hexdigest()[:6]
    return f"{OWN_ENGINE}{plain}" if plain == expert_id else f"{OWN_ENGINE}{plain}-{digest}"


def inherit(spec: ExpertSpec, by_id: Mapping[str, ExpertSpec]) -> ExpertSpec:
    """The spec with what its base hands down.

    Raises:
        ConfigError: its base is missing, or of a kind that it can't stand on.
    """
    if spec.base is None:
        if spec.engine is None and spec.kind != "null":
            return spec.model_copy(update={"engine": own_engine_name(spec.id)})
        return spec
    base = by_id.get(spec.base)
    allowed = ("model",) if spec.kind in ("lora", "mixer") else ("model", "remote")
    if base is None:
        raise ConfigError(
            f"expert '{spec.id}' stands on '{spec.base}', which is not registered: "
            "register the base first",
            param="base",
        )
    if base.kind not in allowed:
        raise ConfigError(
            f"expert '{spec.id}' of kind '{spec.kind}' can't stand on '{base.id}' "
            f"of kind '{base.kind}'",
            param="base",
        )
    return spec.model_copy(
        update={
            "engine": spec.engine or base.engine or own_engine_name(base.id),
            "params_b": base.params_b if spec.params_b is None else spec.params_b,
            "served_name": base.upstream_name if base.kind == "remote" else None,
        }
    )
