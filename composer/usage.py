"""What an answer used: the tokens that its engine counted, read from the bytes as they pass.

Answers are relayed as they came, so they are not parsed: the usage stands under a name that can't
occur unescaped within a text of a JSON document.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from composer import sse
from experts.spec import ExpertSpec

Payload = Mapping[str, Any]

CHARS_PER_TOKEN = 4
"""Of ordinary text, for estimates."""

_NAME = b'"usage"'
_OBJECT = re.compile(rb'"usage"\s*:\s*(?=\{)')
_NULL = re.compile(rb',\s*"usage"\s*:\s*null')
_MAX_NAMED = 4
_CHUNK = b'"choices"'
_NO_CHOICES = re.compile(rb'"choices"\s*:\s*\[\s*\]')
_EMPTY_CHUNKS = 2
"""Chunks of a stream that carry no token: the role at its beginning, the reason at its end."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens and their price; `estimated` where the engine did not count them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    estimated: bool = False
    cost_usd: float = 0.0


NOTHING = Usage()


class Meter:
    """Reads the usage of one answer of one expert.

    Engines count the tokens of a stream only if asked to, so they are asked; an event that tells
    them is kept from a client that did not ask.
    """

    def __init__(self, spec: ExpertSpec, payload: Payload) -> None:
        self._spec = spec
        self._payload = payload
        self._asked = asks_for_usage(payload)
        self._counts: tuple[int, int] | None = None
        self._chunks = 0

    def pass_on(self, events: bytes) -> bytes:
        """Take note of whole events of a stream; returns what the client should get of them."""
        self._chunks += events.count(_CHUNK)
        if _NAME not in events:
            return events
        if not self._asked:
            events = _NULL.sub(b"", events)
        if _OBJECT.search(events) is None:
            return events
        kept, start = [], 0
        for end in sse.END.finditer(events):
            event, start = events[start : end.end()], end.end()
            if not self._tells_only_usage(event):
                kept.append(event)
        return b"".join((*kept, events[start:]))

    def _tells_only_usage(self, event: bytes) -> bool:
        counts = usage_in(event)
        if counts is None:
            return False
        self._counts = counts
        return not self._asked and _NO_CHOICES.search(event) is not None

    def read(self, whole: bytes | None = None) -> Usage:
        """The usage of a stream up to now, or of a `whole` answer."""
        if self._spec.kind == "null":
            return NOTHING
        counts = self._counts if whole is None else usage_in(whole)
        estimated = counts is None
        if counts is None:
            completion = self._chunks - _EMPTY_CHUNKS if whole is None else _tokens_of(whole)
            counts = (_tokens(_texts(self._payload)), max(0, completion))
        prompt, completion = counts
        spec = self._spec
        cost = (prompt * spec.price_in + completion * spec.price_out) / 1e6
        return Usage(prompt, completion, estimated, cost)


def asks_for_usage(payload: Payload) -> bool:
    """Whether the client wants the tokens of its stream told."""
    options = payload.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


def asking_for_usage(payload: Payload) -> dict[str, Any]:
    """The request with the wish to be told the tokens of its stream."""
    options = payload.get("stream_options") or {}
    return {**payload, "stream_options": {**options, "include_usage": True}}


def usage_in(answer: bytes) -> tuple[int, int] | None:
    """Tokens of prompt and completion that an answer, or an event of one, tells; None if it does
    not. The last object of this name counts: engines put it at the end."""
    at = len(answer)
    for _ in range(_MAX_NAMED):
        at = answer.rfind(_NAME, 0, at)
        if at < 0:
            return None
        found = _OBJECT.match(answer, at)
        counts = _counts(answer[found.end() :]) if found else None
        if counts is not None:
            return counts
    return None


def _counts(text: bytes) -> tuple[int, int] | None:
    """The counts of the JSON object with which `text` begins."""
    depth = 0
    for brace in re.finditer(rb"[{}]", text):
        depth += 1 if brace.group() == b"{" else -1
        if depth == 0:
            try:
                usage = orjson.loads(text[: brace.end()])
            except orjson.JSONDecodeError:
                return None
            prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens", 0)
            told = isinstance(prompt, int) and isinstance(completion, int)
            return (max(0, prompt), max(0, completion)) if told else None
    return None


def _tokens(texts: Iterable[str]) -> int:
    return -(-sum(len(text) for text in texts) // CHARS_PER_TOKEN)


def _texts(payload: Payload) -> Iterable[str]:
    """The texts of a request, of whatever interface."""
    contents = [message.get("content") for message in payload.get("messages") or ()]
    for content in (*contents, payload.get("prompt"), payload.get("input")):
        for part in content if isinstance(content, list) else [content]:
            text = part.get("text") if isinstance(part, dict) else part
            if isinstance(text, str):
                yield text


def _tokens_of(answer: bytes) -> int:
    """A guess at the tokens of a whole answer whose engine did not count them."""
    try:
        choices = orjson.loads(answer).get("choices") or ()
        return _tokens(
            choice.get("text") or (choice.get("message") or {}).get("content") or ""
            for choice in choices
        )
    except (orjson.JSONDecodeError, AttributeError, TypeError):
        return 0
