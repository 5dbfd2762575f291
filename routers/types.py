"""The frozen types of routing: what is asked (`RouteQuery`) and what was chosen (`Decision`)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from experts.spec import Capability

GENERAL = "general"
"""The category of prompts that the category router is unsure of."""

DIRECT = "direct"
"""Stands for the category of a request that names its expert."""

CacheState = Literal["hit", "miss", "off"]
Interface = Literal["chat", "completions", "embeddings"]
"""Which call of the OpenAI API an expert must speak."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What an expert must be able to do to answer the request at all.

    `context_tokens` is a lower bound on the prompt's length in tokens; `output_tokens` is what
    the request allows for the answer (None: the engine's default). A plain completion may ask for
    several `prompts` at once.
    """

    context_tokens: int = 0
    output_tokens: int | None = None
    capabilities: frozenset[Capability] = frozenset()
    interface: Interface = "chat"
    prompts: int = 1


@dataclass(frozen=True, slots=True)
class Policy:
    """What a request may spend.

    `max_params_b` in billions of parameters; `max_price` in USD for the whole request;
    `max_latency_ms` to the first token; `quality_weight` in [0, 1], where 1 looks at quality
    alone (None: the composition's own); `experts` limits the choice to these ids.
    """

    max_params_b: float | None = None
    max_price: float | None = None
    max_latency_ms: float | None = None
    quality_weight: float | None = None
    experts: frozenset[str] | None = None

    @property
    def is_free(self) -> bool:
        """Whether no limit is set on size, price or latency."""
        return self.max_params_b is self.max_price is self.max_latency_ms is None


@dataclass(frozen=True, slots=True)
class RouteQuery:
    """A request as routing sees it. Requests of one `session` (empty: none) go to one expert, until
    another is expected to score more than `switch_gain` above it (None: the operator's setting)."""

    text: str
    needs: Needs = field(default_factory=Needs)
    policy: Policy = field(default_factory=Policy)
    session: str = ""
    switch_gain: float | None = None


@dataclass(frozen=True, slots=True)
class Scores:
    """What the router thinks of one text, before any need or policy: the decision cache's entry.

    `quality` maps every expert of the composition to its expected score in [0, 1];
    `probabilities` is the category distribution. `category` is the one routed on: the most
    probable, or `general` when the router is unsure. `uncertainty` is the distribution's entropy
    over its maximum, in [0, 1]; `similarity` the cosine to the nearest training prompt.
    """

    quality: Mapping[str, float]
    probabilities: Mapping[str, float]
    category: str
    uncertainty: float
    similarity: float
    unsure_because: str | None = None

    @property
    def category_probability(self) -> float:
        """Probability of the most probable category, whether or not it was trusted."""
        return max(self.probabilities.values(), default=0.0)


class RankedExpert(NamedTuple):
    """One candidate: `quality` is the expected score, `utility` what it was ranked by.

    A named tuple, because one is made for every expert of every request.
    """

    id: str
    quality: float
    utility: float


@dataclass(frozen=True, slots=True)
class Ranking:
    """Candidates, best first, and why each of the others was ruled out (id -> reason)."""

    experts: tuple[RankedExpert, ...]
    ruled_out: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Decision:
    """The result of routing one request. The tail of `experts` is the fallback chain.

    `composition` and `version` are empty when the request named its expert. Of `route_ms`,
    `queue_ms` was spent waiting for the encoder; a cache hit spared `saved_ms`, the time that its
    scores took when they were made. `kept`: the first expert stands there because the session is
    with it.
    """

    id: str
    composition: str
    version: str
    scores: Scores
    ranking: Ranking
    cache: CacheState
    encoder: str
    route_ms: float
    queue_ms: float = 0.0
    saved_ms: float = 0.0
    kept: bool = False

    @property
    def experts(self) -> tuple[RankedExpert, ...]:
        """Candidates, best first."""
        return self.ranking.experts

    @property
    def expert(self) -> str:
        """Id of the expert ranked first."""
        return self.ranking.experts[0].id

    @property
    def category(self) -> str:
        """The category routed on."""
        return self.scores.category

    @property
    def general(self) -> bool:
        """Whether the router was unsure and fell back to the general row of the mapping."""
        return self.scores.category == GENERAL
