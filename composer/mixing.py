"""What a mixer's engine is told besides the request: the prior of its experts, and a cache salt.

The prior is GLIDER's global view, taken from the router's decision: how probable the category is
that bears an expert's name. The keys and values that a mixer computes depend on the prior, which an
engine's prefix cache does not know: so the salt is a hash of tenant, mixer version and prior.
"""

import asyncio
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experts.errors import ArtefactError
from experts.mixer.description import mixer_version, read_spec
from experts.mixer.spec import MixerSpec
from experts.spec import ExpertSpec
from routers.types import Decision

INTERNALS = ("vllm_xargs", "cache_salt")
"""Fields that we alone set: a client's would choose a prior, or read what another's prior left."""


@dataclass(frozen=True, slots=True)
class _Mixer:
    spec: MixerSpec
    version: str


class Mixing:
    """Reads each mixer's description once."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, Path], _Mixer] = {}

    async def prepare(
        self, spec: ExpertSpec, payload: Mapping[str, Any], decision: Decision, tenant: str
    ) -> dict[str, Any]:
        """The request as a mixer's engine gets it.

        Raises:
            ArtefactError: the mixer's description can't be read any longer.
        """
        mixer = await self._read(spec)
        prior = prior_of(mixer.spec, decision.scores.probabilities)
        told = without_internals(payload)
        told["cache_salt"] = salt(tenant, mixer.version, prior)
        if prior is not None:
            told["vllm_xargs"] = {"mixer_prior": prior}
        return told

    async def _read(self, spec: ExpertSpec) -> _Mixer:
        if spec.adapter is None:
            raise ArtefactError(f"mixer {spec.id} names no folder: register it again")
        key = (spec.id, spec.adapter)
        if key not in self._known:
            self._known[key] = await asyncio.to_thread(_load, spec.adapter)
        return self._known[key]


def prior_of(mixer: MixerSpec, probabilities: Mapping[str, float]) -> list[float] | None:
    """`alpha * p(category of the expert's name)` for every expert, alpha as GLIDER weighs it; None
    where the mixer has no prior, or the decision knows none of its experts' names."""
    if mixer.prior is None or not any(name in probabilities for name in mixer.names):
        return None
    shares = [probabilities.get(name, 0.0) for name in mixer.names]
    certain = max(shares) > mixer.prior.threshold
    alpha = mixer.prior.gamma * certain + mixer.prior.beta
    return [round(alpha * share, 4) for share in shares]


def salt(tenant: str, version: str, prior: list[float] | None) -> str:
    """Hexadecimal, since vLLM refuses slashes in it."""
    told = "\0".join((tenant, version, repr(prior)))
    return hashlib.sha256(told.encode()).hexdigest()


def without_internals(payload: Mapping[str, Any]) -> dict[str, Any]:
    return {field: value for field, value in payload.items() if field not in INTERNALS}


def _load(folder: Path) -> _Mixer:
    spec, _ = read_spec(folder)
    return _Mixer(spec, mixer_version(folder))
