"""Verification: a real completion of a few tokens, sent as the gateway would send it."""

import asyncio
import secrets

import orjson

from composer.dispatch import expert_body
from composer.lifecycle.transitions import Finding
from composer.state import Endpoint
from composer.upstream import UpstreamClient, UpstreamFailure
from experts.errors import ComposerError
from experts.spec import ExpertSpec

VERIFY_S = 60.0
PATH = "/v1/chat/completions"
PROMPT = "Say hello."
FEW = 4
MAX_ANSWER_BYTES = 1 << 20
AT_ONCE = 4
MAX_REASON = 300

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
        finding = Finding("it was not asked")
        for limit in _LIMITS:
            payload = {"messages": [{"role": "user", "content": PROMPT}], **limit}
            try:
                request_id = f"verify-{secrets.token_hex(8)}"
                body = expert_body(spec, payload)
                reply = await self._client.send(endpoint, PATH, body, request_id)
                try:
                    return _judge(await reply.read(MAX_ANSWER_BYTES))
                finally:
                    reply.close()
            except UpstreamFailure as failure:
                busy = failure.kind in ("overloaded", "timeout")
                finding = Finding(failure.reason[:MAX_REASON], busy=busy)
                if b"max_completion_tokens" not in failure.body:
                    return finding
            except ComposerError as error:
                return Finding(error.message[:MAX_REASON])
        return finding


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
