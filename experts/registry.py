"""Rules that hold between experts: unique ids, known bases, one engine for each."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from experts.errors import ConfigError
from experts.spec import ExpertSpec


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
    return MappingProxyType({spec.id: _inherit(spec, by_id) for spec in by_id.values()})


def _inherit(spec: ExpertSpec, by_id: Mapping[str, ExpertSpec]) -> ExpertSpec:
    if spec.base is None:
        return spec
    base = by_id.get(spec.base)
    allowed = ("model",) if spec.kind == "lora" else ("model", "remote")
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
            "engine": spec.engine or base.engine,
            "params_b": base.params_b if spec.params_b is None else spec.params_b,
            "served_name": base.upstream_name if base.kind == "remote" else None,
        }
    )
