"""The composition root: the one module that builds the object graph of a gateway worker."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from composer.batching import MicroBatcher
from composer.conditions import ConditionsTracker
from composer.config import Config
from composer.dispatch import Dispatcher
from composer.mixing import Mixing
from composer.pipeline import Pipeline
from composer.quick_redis import QuickRedis
from composer.score_cache import DecisionCache, LocalCache
from composer.sessions import READ_S, Sessions
from composer.shared_cache import SharedCache
from composer.snapshots import SnapshotKeeper, View
from composer.state import State
from composer.stats import Recorder
from composer.upstream import UpstreamClient
from composer.workers import Heartbeat
from routers.encoders import load_encoder


@dataclass(frozen=True, slots=True)
class Parts:
    """What the gateway is made of below HTTP."""

    config: Config
    state: State
    keeper: SnapshotKeeper
    conditions: ConditionsTracker
    batcher: MicroBatcher
    scores: DecisionCache
    pipeline: Pipeline
    dispatcher: Dispatcher
    recorder: Recorder


@asynccontextmanager
async def build(config: Config, redis_url: str) -> AsyncIterator[Parts]:
    """Build and start the parts; all are stopped on leaving.

    Raises:
        SetupError: the encoder is not installed or can't be prepared.
    """
    encoder = load_encoder(config.encoder.backend, config.cache_dir, threads=config.encoder.threads)
    conditions = ConditionsTracker()
    async with AsyncExitStack() as stack:
        state = await stack.enter_async_context(State(redis_url))
        batcher = await stack.enter_async_context(
            MicroBatcher(
                encoder,
                max_batch=config.encoder.max_batch,
                max_waiting=config.encoder.max_waiting,
            )
        )
        await batcher.encode("warm-up")
        quick = await stack.enter_async_context(
            QuickRedis(redis_url, config.cache.timeout_ms / 1000)
        )
        # Of its own: what is too slow for the cache must not keep sessions from their experts.
        patient = await stack.enter_async_context(QuickRedis(redis_url, READ_S))
        shared = await stack.enter_async_context(SharedCache(quick, config.cache))
        scores = DecisionCache(LocalCache(config.cache.local_entries), shared, encoder.id)

        def follow(view: View) -> None:
            conditions.follow(view)
            scores.follow(view)

        client = await stack.enter_async_context(UpstreamClient(config.limits, config.timeouts))
        keeper = await stack.enter_async_context(SnapshotKeeper(state, encoder, on_change=follow))
        await stack.enter_async_context(Heartbeat(state, keeper, conditions))
        recorder = await stack.enter_async_context(Recorder(state, config.stats))
        yield Parts(
            config=config,
            state=state,
            keeper=keeper,
            conditions=conditions,
            batcher=batcher,
            scores=scores,
            pipeline=Pipeline(
                keeper,
                encoder,
                batcher,
                scores,
                conditions,
                Sessions(patient, config.sessions),
            ),
            dispatcher=Dispatcher(
                keeper,
                client,
                conditions,
                config.limits,
                mixing=Mixing(batcher.encode, encoder.id),
            ),
            recorder=recorder,
        )
