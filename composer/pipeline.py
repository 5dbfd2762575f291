"""From a `RouteQuery` to a `Decision`: scores (cached or computed), then the ranking."""

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from composer.batching import MicroBatcher
from composer.conditions import ConditionsTracker
from composer.packing import Entry
from composer.score_cache import DecisionCache
from composer.sessions import Sessions
from composer.snapshots import LiveComposition, SnapshotKeeper, View
from experts.errors import NotReady, UnknownModel
from experts.spec import ExpertSpec
from routers.encoders.base import Encoder
from routers.ranking import rank, stay
from routers.types import DIRECT, CacheState, Decision, RouteQuery, Scores
from routers.wording import normalise


@dataclass(frozen=True, slots=True)
class _Scored:
    """Scores, and where they came from."""

    scores: Scores
    cache: CacheState
    queue_ms: float = 0.0
    saved_ms: float = 0.0


class Pipeline:
    """Routes requests over the live compositions of the keeper's view."""

    def __init__(
        self,
        keeper: SnapshotKeeper,
        encoder: Encoder,
        batcher: MicroBatcher,
        cache: DecisionCache,
        conditions: ConditionsTracker,
        sessions: Sessions,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._keeper = keeper
        self._encoder = encoder
        self._batcher = batcher
        self._cache = cache
        self._conditions = conditions
        self._sessions = sessions
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
        kept = False
        if query.session:
            expert = await self._sessions.expert_of(model, query.session)
            gain = query.switch_gain
            gain = self._sessions.switch_gain if gain is None else gain
            ranked, ranking = ranking, stay(ranking, expert, gain)
            kept = ranking is not ranked
        return Decision(
            id=_decision_id(),
            composition=model,
            version=composition.record.version,
            scores=scores,
            ranking=ranking,
            cache=scored.cache,
            encoder=self._encoder.id,
            route_ms=(self._clock() - start) * 1000,
            queue_ms=scored.queue_ms,
            saved_ms=scored.saved_ms,
            kept=kept,
        )

    async def keep(self, query: RouteQuery, decision: Decision, expert: str) -> None:
        """`expert` answers: the session of the query, if it has one, is with it from now on.

        A canned answer is no reason to leave the expert that the session is with.
        """
        spec = self._keeper.view.snapshot.experts.get(expert)
        if query.session and decision.composition and spec is not None and spec.kind != "null":
            await self._sessions.keep(decision.composition, query.session, expert)

    async def _scores(self, composition: LiveComposition, text: str) -> _Scored:
        start = self._clock()
        text = normalise(text)
        cache = self._cache
        key = cache.key(composition.record.version, text)
        entry = cache.local.get(key) or await cache.find(composition, key)
        if entry is not None:
            saved_ms = entry.took_ms - (self._clock() - start) * 1000
            return _Scored(entry.scores, "hit", saved_ms=max(0.0, saved_ms))
        encoded = await self._batcher.submit(text)
        scores = composition.artefact.router.score(encoded.vector, text)
        cache.put(composition, key, Entry(scores, (self._clock() - start) * 1000))
        return _Scored(scores, "miss" if cache.enabled else "off", queue_ms=encoded.queue_ms)

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
