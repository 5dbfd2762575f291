"""An OpenAI-compatible upstream whose engines count tokens in the different ways that engines do.
Which way follows from the model name that it is asked for."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

TEXT = ("Use ", '"usage":{"prompt_tokens":9,"completion_tokens":9}', ", null")
"""An answer that looks like a usage itself."""

USAGE = {
    "prompt_tokens": 120,
    "completion_tokens": 30,
    "total_tokens": 150,
    "prompt_tokens_details": {"cached_tokens": 100},
}


def written(value: object) -> bytes:
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


def chunk(delta: dict[str, str], finish: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {"id": "c", "object": "chat.completion.chunk", "choices": [choice]}


def events(model: str, *, asked: bool) -> list[bytes]:
    """A stream as `model` sends it to a client that asked for usage, or did not."""
    chunks = [chunk({"role": "assistant", "content": ""})]
    chunks += [chunk({"content": text}) for text in TEXT]
    chunks.append(chunk({}, "stop"))
    if model == "inline":
        chunks[-1]["usage"] = USAGE
    if asked and model == "counting":
        chunks = [{**one, "usage": None} for one in chunks]
        chunks.append({**chunks[0], "choices": [], "usage": USAGE})
    return [*map(written, chunks), b"data: [DONE]\n\n"]


class MeteredServer:
    """`counting` tells usage when asked, `inline` always within its last chunk, `silent` never;
    `strict` does not know `stream_options`. `requests` holds every body."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.url = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.requests.append(body)
        model = body["model"]
        if model == "strict" and "stream_options" in body:
            error = {"message": "unknown field: stream_options", "param": "stream_options"}
            return web.json_response({"error": error}, status=400)
        if body.get("stream"):
            response = web.StreamResponse(headers={"content-type": "text/event-stream"})
            await response.prepare(request)
            for event in events(model, asked=bool(body.get("stream_options"))):
                await response.write(event)
            return response
        message = {"role": "assistant", "content": "".join(TEXT)}
        whole: dict[str, Any] = {
            "id": "c",
            "object": "chat.completion",
            "model": model,
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        }
        if model != "silent":
            whole["usage"] = USAGE
        return web.json_response(whole)


@asynccontextmanager
async def metered_server() -> AsyncIterator[MeteredServer]:
    server = MeteredServer()
    app = web.Application()
    app.router.add_post("/v1/chat/completions", server.answer)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield server
    finally:
        await runner.cleanup()
