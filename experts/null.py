"""The `null` expert: answers itself with its canned text, in the shapes of the OpenAI API."""

import time
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import orjson

from experts.spec import ExpertSpec


def null_answer(spec: ExpertSpec, *, chat: bool = True) -> bytes:
    """The body of a chat or text completion that is not streamed. No token is counted: none was
    made."""
    if chat:
        body = _envelope(spec, "chat.completion")
        said: dict[str, Any] = {"message": {"role": "assistant", "content": spec.text}}
    else:
        body = _envelope(spec, "text_completion")
        said = {"text": spec.text, "logprobs": None}
    body["choices"] = [{"index": 0, **said, "finish_reason": "stop"}]
    body["usage"] = _usage()
    return orjson.dumps(body)


def null_stream(spec: ExpertSpec, *, include_usage: bool, chat: bool = True) -> Iterator[bytes]:
    """The same as server-sent events."""
    if chat:
        base = _envelope(spec, "chat.completion.chunk")
        parts: tuple[dict[str, Any], ...] = (
            {"delta": {"role": "assistant", "content": spec.text}},
            {"delta": {}},
        )
    else:
        base = _envelope(spec, "text_completion")
        parts = ({"text": spec.text}, {"text": ""})
    for part, finish in zip(parts, (None, "stop"), strict=True):
        chunk = {**base, "choices": [{"index": 0, **part, "finish_reason": finish}]}
        yield b"data: " + orjson.dumps(chunk) + b"\n\n"
    if include_usage:
        yield b"data: " + orjson.dumps({**base, "choices": [], "usage": _usage()}) + b"\n\n"
    yield b"data: [DONE]\n\n"


def _envelope(spec: ExpertSpec, kind: str) -> dict[str, Any]:
    prefix = "cmpl" if kind == "text_completion" else "chatcmpl"
    return {
        "id": f"{prefix}-{uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": spec.id,
    }


def _usage() -> dict[str, int]:
    return {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
