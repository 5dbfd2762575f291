"""From a `RouteQuery` to a `Decision`: scores (cached or computed), then the ranking."""

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from composer.batching import MicroBatcher
from composer.conditions import ConditionsTracker
from composer.score_cache import ScoreCache, cache_key, normalise
from composer.snapshots import LiveComposition, SnapshotKeeper, View
from experts.errors import NotReady, UnknownModel
from experts.spec import ExpertSpec
from routers.encoders.base import Encoder
from routers.ranking import rank
from routers.types import DIRECT, CacheState, Decision, RouteQuery, Scores


@dataclass(frozen=True, slots=True)
class _Scored:
    scores: Scores
    cache: CacheState


class Pipeline:
    """Routes requests over the live compositions of the keeper's view."""

    def __init__(
        self,
        keeper: SnapshotKeeper,
        encoder: Encoder,
        batcher: MicroBatcher,
        cache: ScoreCache,
        conditions: ConditionsTracker,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._keeper = keeper
        self._encoder = encoder
        self._batcher = batcher
        self._cache = cache
        self._conditions = conditions
        self._clock = clock

    @property
    def encoder(self) -> Encoder:
        """What turns texts into vectors."""
        return self._encoder

    @property
    def view(self) -> View:
        """What requests are served from at this moment."""
        return self._keeper.view

    async def decide(self, model: str, query: RouteQuery) -> Decision:
        """Route one request.

        Raises:
            UnknownModel: `model` is neither a live composition nor an expert.
            NotReady: there is no live composition yet.
            NoEligibleExpert, ExpertUnavailable: see `routers.ranking.rank`.
            Overloaded: too many prompts wait for the encoder.
        """
        start = self._clock()
        view = self._keeper.view
        composition = view.compositions.get(model)
        if composition is None:
            spec = view.snapshot.experts.get(model)
            if spec is None:
                self._refuse(model)
            return self._direct(spec, query, start)
        scored = await self._scores(composition, query.text)
        scores = scored.scores
        ranking = rank(
            scores.quality,
            view.snapshot.experts,
            query,
            self._conditions.current(),
            composition.record.quality_weight,
        )
        return Decision(
            id=_decision_id(),
            composition=model,
            version=composition.record.version,
            scores=scores,
            ranking=ranking,
            cache=scored.cache,
            encoder=self._encoder.id,
            route_ms=(self._clock() - start) * 1000,
        )

    async def _scores(self, composition: LiveComposition, text: str) -> _Scored:
        text = normalise(text)
        key = cache_key(composition.record.version, self._encoder.id, text)
        known = self._cache.get(key)
        if known is not None:
            return _Scored(known, "hit")
        embedding = await self._batcher.encode(text)
        scores = composition.artefact.router.score(embedding)
        self._cache.put(key, scores)
        return _Scored(scores, "miss" if self._cache.capacity else "off")

    def _direct(self, spec: ExpertSpec, query: RouteQuery, start: float) -> Decision:
        """A request that names its expert is ranked alone, so its needs are still checked."""
        ranking = rank({spec.id: 1.0}, {spec.id: spec}, query, self._conditions.current())
        return Decision(
            id=_decision_id(),
            composition="",
            version="",
            scores=Scores({spec.id: 1.0}, {}, DIRECT, uncertainty=0.0, similarity=1.0),
            ranking=ranking,
            cache="off",
            encoder=self._encoder.id,
            route_ms=(self._clock() - start) * 1000,
        )

    def _refuse(self, model: str) -> NoReturn:
        view = self._keeper.view
        if not view.compositions:
            raise NotReady("no composition is live yet: the service is starting")
        known = ", ".join([*view.compositions, *view.snapshot.experts])
        raise UnknownModel(
            f"model '{model}' is neither a composition nor an expert; known are: {known}",
            param="model",
        )


def _decision_id() -> str:
    return f"dec-{secrets.token_hex(12)}"
