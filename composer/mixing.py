"""What a mixer's engine is told besides the request: the prior of its experts, and a cache salt.

The prior is GLIDER's global view: how near each expert's instruction is to the request, by the
gateway's encoder. For a mixer without embedded instructions it is how probable the category is that
bears an expert's name, by the router's decision. The keys and values that a mixer computes depend
on the prior, which an engine's prefix cache does not know: so the salt is a hash of tenant, mixer
version and prior.
"""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experts.errors import ArtefactError, Retryable
from experts.mixer.description import mixer_version, read_instructions, read_spec
from experts.mixer.prior import Vector, global_prior
from experts.mixer.spec import MixerSpec
from experts.spec import ExpertSpec
from routers.types import Decision

INTERNALS = ("vllm_xargs", "cache_salt")
"""Fields that we alone set: a client's would choose a prior, or read what another's prior left."""


_KEPT_PRIORS = 4096

Embed = Callable[[str], Awaitable[Vector]]


@dataclass(frozen=True, slots=True)
class _Mixer:
    spec: MixerSpec
    version: str
    instructions: Vector | None


class Mixing:
    """Reads each mixer's description once, and makes every request's prior.

    `embed` is the gateway's encoder, `encoder` its id. Where a mixer's instructions were embedded
    by another, or the encoder is overloaded, the decision's categories stand in.
    """

    def __init__(self, embed: Embed | None = None, encoder: str = "") -> None:
        self._embed = embed
        self._encoder = encoder
        self._known: dict[tuple[str, Path], _Mixer] = {}
        self._priors: OrderedDict[tuple[str, str], list[float]] = OrderedDict()

    async def prepare(
        self,
        spec: ExpertSpec,
        payload: Mapping[str, Any],
        decision: Decision,
        tenant: str,
        text: str,
    ) -> tuple[dict[str, Any], dict[str, float]]:
        """The request as a mixer's engine gets it, and its prior by the experts' names, if any.
        `text` is what routing read of the request.

        Raises:
            ArtefactError: the mixer's description can't be read any longer.
        """
        mixer = await self._read(spec)
        prior = await self._by_instructions(mixer, text)
        if prior is None:
            prior = prior_of(mixer.spec, decision.scores.probabilities)
        told = without_internals(payload)
        told["cache_salt"] = salt(tenant, mixer.version, prior)
        if prior is not None:
            told["vllm_xargs"] = {"mixer_prior": prior}
        return told, dict(zip(mixer.spec.names, prior or (), strict=False))

    async def _by_instructions(self, mixer: _Mixer, text: str) -> list[float] | None:
        """GLIDER's: the nearness of each expert's instruction to the request."""
        weight, instructions = mixer.spec.prior, mixer.instructions
        if weight is None or instructions is None or self._embed is None or not text:
            return None
        if mixer.spec.encoder != self._encoder:
            return None
        key = (mixer.version, hashlib.sha256(text.encode("utf-8", "replace")).hexdigest())
        if key not in self._priors:
            try:
                query = await self._embed(text)
            except Retryable:
                return None
            found = global_prior(instructions, query, weight)
            self._priors[key] = [round(float(value), 4) for value in found]
            while len(self._priors) > _KEPT_PRIORS:
                self._priors.popitem(last=False)
        return self._priors[key]

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
    return _Mixer(spec, mixer_version(folder), read_instructions(folder, spec))
