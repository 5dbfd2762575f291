"""The `null` expert: answers itself with its canned text, in the shapes of the OpenAI API."""

import time
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import orjson

from experts.spec import ExpertSpec


def null_answer(spec: ExpertSpec) -> bytes:
    """The body of a chat completion that is not streamed. No token is counted: none was made."""
    body = _envelope(spec, "chat.completion")
    body["choices"] = [
        {
            "index": 0,
            "message": {"role": "assistant", "content": spec.text},
            "finish_reason": "stop",
        }
    ]
    body["usage"] = _usage()
    return orjson.dumps(body)


def null_stream(spec: ExpertSpec, *, include_usage: bool) -> Iterator[bytes]:
    """The same as server-sent events."""
    base = _envelope(spec, "chat.completion.chunk")
    for delta, finish in (
        ({"role": "assistant", "content": spec.text}, None),
        ({}, "stop"),
    ):
        chunk = {**base, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}
        yield b"data: " + orjson.dumps(chunk) + b"\n\n"
    if include_usage:
        yield b"data: " + orjson.dumps({**base, "choices": [], "usage": _usage()}) + b"\n\n"
    yield b"data: [DONE]\n\n"


def _envelope(spec: ExpertSpec, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": spec.id,
    }


def _usage() -> dict[str, int]:
    return {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
