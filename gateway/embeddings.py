"""`POST /v1/embeddings`: by the gateway's own encoder, or by an expert that is named."""

import asyncio
import base64
import time
from typing import Any

from composer.batching import MicroBatcher, Vector
from composer.config import Config
from composer.pipeline import Pipeline
from experts.errors import DeadlineExceeded, InvalidRequest, NotReady
from gateway.asgi import ClientGone, Receive, Scope, Send, read_body, send_json
from gateway.bodies import parse_json, validate
from gateway.hangup import Hangup
from gateway.models import embedding_model
from gateway.relay import RelayEndpoint
from gateway.requests import EmbeddingsRequest

AT_ONCE = 16
"""Texts of one request that wait for the encoder together: prompts that are to be routed wait there
too, and must not wait for a long list."""


class EmbeddingsEndpoint:
    """A composition's embeddings are those of its encoder; an expert's own come from its engine."""

    def __init__(
        self, pipeline: Pipeline, batcher: MicroBatcher, relay: RelayEndpoint, config: Config
    ) -> None:
        self._pipeline = pipeline
        self._batcher = batcher
        self._relay = relay
        self._limits = config.limits
        self._timeouts = config.timeouts
        self._name = embedding_model(pipeline.encoder)

    async def __call__(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        start = time.perf_counter()
        body = await read_body(scope, receive, self._limits, self._timeouts)
        payload = parse_json(body)
        request = validate(EmbeddingsRequest, payload)
        if not self._is_ours(request.model):
            await self._relay.relay(request, payload, scope, receive, send, request_id, start)
            return
        async with Hangup(receive) as hangup:
            try:
                answer = await self._embed(request)
            except asyncio.CancelledError as cancelled:
                if hangup.happened:
                    raise
                message = "the gateway is shutting down: send the request again"
                raise NotReady(message) from cancelled
        if hangup.happened:
            raise ClientGone
        await send_json(send, answer, [(b"x-request-id", request_id.encode())])

    def _is_ours(self, model: str) -> bool:
        view = self._pipeline.view
        if model in view.snapshot.experts:
            return False
        return model == "auto" or model.lower() == self._name or model in view.compositions

    async def _embed(self, request: EmbeddingsRequest) -> dict[str, Any]:
        dimension = self._pipeline.encoder.dimension
        if request.dimensions not in (None, dimension):
            raise InvalidRequest(
                f"'dimensions': {self._name} makes vectors of {dimension}", param="dimensions"
            )
        try:
            async with asyncio.timeout(self._timeouts.request_s):
                vectors = await self._vectors(request.inputs)
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"the embeddings were not ready within {self._timeouts.request_s:g} s"
            ) from error
        tokens = sum(await asyncio.to_thread(self._pipeline.encoder.count, request.inputs))
        return {
            "object": "list",
            "data": [
                {
                    "object": "embedding",
                    "index": index,
                    "embedding": written(vector, request.encoding_format),
                }
                for index, vector in enumerate(vectors)
            ],
            "model": self._name,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }

    async def _vectors(self, texts: list[str]) -> list[Vector]:
        vectors: list[Vector] = []
        for start in range(0, len(texts), AT_ONCE):
            group = texts[start : start + AT_ONCE]
            vectors += await asyncio.gather(*(self._batcher.encode(text) for text in group))
        return vectors


def written(vector: Vector, encoding: str) -> list[float] | str:
    """A vector as a list of numbers, or as the base64 of its little-endian 32-bit floats."""
    if encoding == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    numbers: list[float] = vector.tolist()
    return numbers
