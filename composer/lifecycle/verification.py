"""Verification: a real completion of a few tokens, sent as the gateway would send it."""

import asyncio
import secrets
from collections.abc import Mapping
from typing import Any

import orjson

from composer.dispatch import expert_body
from composer.lifecycle.transitions import Finding
from composer.state import Endpoint
from composer.upstream import UpstreamClient, UpstreamFailure
from experts.errors import ComposerError
from experts.spec import ExpertSpec

VERIFY_S = 60.0
CHAT, EMBEDDINGS = "/v1/chat/completions", "/v1/embeddings"
PROMPT = "Say hello."
FEW = 4
MAX_ANSWER_BYTES = 1 << 20
AT_ONCE = 4
MAX_REASON = 300

_NO_CHAT = (400, 404, 405, 501)
"""How servers say that a model doesn't chat."""

# Some models take the newer name of the limit alone; those that think first need room for it.
_LIMITS = ({"max_tokens": FEW}, {"max_completion_tokens": 16})


class Verifier:
    """Asks experts through their engines; at most `AT_ONCE` at a time."""

    def __init__(self, client: UpstreamClient, *, deadline_s: float = VERIFY_S) -> None:
        self._client = client
        self._deadline_s = deadline_s
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def verify(self, spec: ExpertSpec, endpoint: Endpoint) -> Finding:
        """Whether the expert answers, and if not why."""
        async with self._turns:
            try:
                async with asyncio.timeout(self._deadline_s):
                    return await self._ask(spec, endpoint)
            except TimeoutError:
                return Finding(f"it did not answer within {self._deadline_s:g} s", busy=True)

    async def _ask(self, spec: ExpertSpec, endpoint: Endpoint) -> Finding:
        """By chat; if that is refused, maybe it makes embeddings."""
        finding = Finding("it was not asked")
        for limit in _LIMITS:
            payload = {"messages": [{"role": "user", "content": PROMPT}], **limit}
            finding, failure = await self._send(spec, endpoint, CHAT, payload)
            if failure is None or b"max_completion_tokens" not in failure.body:
                break
        if failure is not None and failure.status in _NO_CHAT:
            embedded, _ = await self._send(spec, endpoint, EMBEDDINGS, {"input": PROMPT})
            return embedded if embedded.good else finding
        return finding

    async def _send(
        self, spec: ExpertSpec, endpoint: Endpoint, path: str, payload: Mapping[str, Any]
    ) -> tuple[Finding, UpstreamFailure | None]:
        request_id = f"verify-{secrets.token_hex(8)}"
        try:
            body = expert_body(spec, payload)
            reply = await self._client.send(endpoint, path, body, request_id)
            try:
                answer = await reply.read(MAX_ANSWER_BYTES)
            finally:
                reply.close()
        except UpstreamFailure as failure:
            busy = failure.kind in ("overloaded", "timeout")
            return Finding(failure.reason[:MAX_REASON], busy=busy), failure
        except ComposerError as error:
            return Finding(error.message[:MAX_REASON]), None
        return (_judge if path == CHAT else _judge_embedding)(answer), None


def _judge(body: bytes) -> Finding:
    """Whether a body is a chat completion that says something.

    A model that thinks first may have said nothing aloud when its tokens ran out.
    """
    try:
        answer = orjson.loads(body)
        choice = answer["choices"][0]
        message = choice["message"]
        text = message.get("content")
    except (orjson.JSONDecodeError, LookupError, TypeError, AttributeError):
        return Finding("its answer is not a chat completion")
    if text or message.get("tool_calls") or choice.get("finish_reason") == "length":
        return Finding()
    return Finding("its answer was empty")


def _judge_embedding(body: bytes) -> Finding:
    try:
        vector = orjson.loads(body)["data"][0]["embedding"]
    except (orjson.JSONDecodeError, LookupError, TypeError):
        return Finding("its answer is not an embedding")
    return Finding() if vector else Finding("its embedding was empty")
