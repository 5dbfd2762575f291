"""The shapes of answers: completion objects and the chunks of their streams."""

import time
import uuid
from typing import Any

import orjson

from experts.engines.embedded.protocol import ApiError, ChatBody, CompletionBody

DONE = b"data: [DONE]\n\n"


def event(data: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + orjson.dumps(data) + b"\n\n"


def error_event(error: ApiError) -> bytes:
    """The event that ends a stream which failed after its start."""
    return event({"error": error.fields()})


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


class Shape:
    """How the answer to one request is written: as chat or as plain completion."""

    def __init__(self, body: ChatBody | CompletionBody) -> None:
        self._chat = isinstance(body, ChatBody)
        self.with_usage = bool(body.stream_options and body.stream_options.include_usage)
        prefix = "chatcmpl" if self._chat else "cmpl"
        self._head = {
            "id": f"{prefix}-{uuid.uuid4().hex}",
            "object": "",
            "created": int(time.time()),
            "model": body.model,
        }

    def whole(self, text: str, finish: str, counts: dict[str, int]) -> bytes:
        """The answer to a request that does not stream."""
        choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": finish}
        if self._chat:
            choice["message"] = {"role": "assistant", "content": text, "refusal": None}
        else:
            choice["text"] = text
        kind = "chat.completion" if self._chat else "text_completion"
        return orjson.dumps({**self._head, "object": kind, "choices": [choice], "usage": counts})

    def opening(self) -> bytes:
        """The event before all text: it names the role; plain completions have none."""
        return self._chunk({"role": "assistant", "content": ""}, None) if self._chat else b""

    def piece(self, text: str) -> bytes:
        """The event of a piece of text; none for no text."""
        return self._chunk({"content": text}, None) if text else b""

    def closing(self, finish: str, counts: dict[str, int]) -> bytes:
        """The events after all text: why it ended, the usage if asked for, the end mark."""
        tail = self._chunk({}, finish)
        if self.with_usage:
            tail += event({**self._chunk_head(), "choices": [], "usage": counts})
        return tail + DONE

    def _chunk(self, delta: dict[str, str], finish: str | None) -> bytes:
        choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": finish}
        if self._chat:
            choice["delta"] = delta
        else:
            choice["text"] = delta.get("content", "")
        data = {**self._chunk_head(), "choices": [choice]}
        if self.with_usage:
            data["usage"] = None
        return event(data)

    def _chunk_head(self) -> dict[str, Any]:
        return {
            **self._head,
            "object": "chat.completion.chunk" if self._chat else "text_completion",
        }
