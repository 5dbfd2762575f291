"""An OpenAI-compatible upstream that misbehaves on demand: faults that a real engine can't be
made to show at will. What it does follows from the model name that it is asked for."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web


def chunk(model: str, delta: dict[str, str], finish: str | None = None) -> bytes:
    body = {
        "id": "c",
        "object": "chat.completion.chunk",
        "created": 0,
        "model": model,
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
    }
    return b"data: " + json.dumps(body).encode() + b"\n\n"


class FaultyServer:
    """`requests` holds every body and its authorization; `dropped` counts clients that left.
    Models in `broken` answer 500 for as long as they are."""

    def __init__(self) -> None:
        self.broken: set[str] = set()
        self.requests: list[tuple[dict[str, Any], str | None]] = []
        self.dropped = 0
        self.url = ""

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.requests.append((body, request.headers.get("authorization")))
        model = body["model"]
        stream = bool(body.get("stream"))
        if model in self.broken:
            return self.error(500, "internal trouble")
        match model:
            case "error-500":
                return self.error(500, "internal trouble")
            case "busy":
                return self.error(429, "too many", headers={"retry-after": "7"})
            case "bad-request":
                return self.error(400, "temperature is odd", param="temperature")
            case "bare-400":
                return web.Response(status=400, text="<html>no</html>", content_type="text/html")
            case "too-long":
                return self.error(400, "too long", code="context_length_exceeded")
            case "leaky":
                key = request.headers.get("authorization", "")
                return self.error(401, f"Incorrect API key provided: {key}")
            case "leaky-500":
                return self.error(500, f"failed with {request.headers.get('authorization')}")
            case "hang" | "slow":
                return await self.hang(request)
            case "garbage":
                return web.Response(body=b"\x00<html>", content_type="application/json")
        if stream:
            return await self.stream(request, model)
        return web.json_response(
            {
                "id": "c",
                "object": "chat.completion",
                "created": 0,
                "model": model,
                "choices": [
                    {
                        "index": 0,
                        "message": {"role": "assistant", "content": f"I am {model}"},
                        "finish_reason": "stop",
                    }
                ],
                "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
            }
        )

    async def completions(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.requests.append((body, request.headers.get("authorization")))
        if body["model"] == "chat-only":
            return self.error(404, "Not Found")
        base = {"id": "c", "object": "text_completion", "created": 0, "model": body["model"]}
        if not body.get("stream"):
            prompts = body["prompt"] if isinstance(body["prompt"], list) else [body["prompt"]]
            choices = [
                {
                    "index": i,
                    "text": f"{prompt} and so on",
                    "logprobs": None,
                    "finish_reason": "stop",
                }
                for i, prompt in enumerate(prompts)
            ]
            return web.json_response({**base, "choices": choices})
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for text, finish in (("and ", None), ("so on", "stop")):
            choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish}
            event = json.dumps({**base, "choices": [choice]}).encode()
            await response.write(b"data: " + event + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        return response

    async def embeddings(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.requests.append((body, request.headers.get("authorization")))
        if body["model"] == "chat-only":
            return self.error(404, "Not Found")
        data = [{"object": "embedding", "index": 0, "embedding": [0.0, 1.0]}]
        usage = {"prompt_tokens": 1, "total_tokens": 1}
        return web.json_response(
            {"object": "list", "data": data, "model": body["model"], "usage": usage}
        )

    async def stream(self, request: web.Request, model: str) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await response.write(chunk(model, {"role": "assistant", "content": ""}))
        if model == "cut-early":
            return self.cut(request, response)
        if model == "error-event":
            await response.write(b'data: {"error": {"message": "out of memory"}}\n\n')
            return response
        if model == "escapes":
            await response.write(chunk(model, {"content": "\x1b[2Jclean"}))
        if model == "crlf":
            text = chunk(model, {"content": "Hello"}) + b"data: [DONE]\n\n"
            await response.write(text.replace(b"\n", b"\r\n"))
            return response
        await response.write(chunk(model, {"content": "Hello"}))
        if model == "cut-inside":
            await response.write(chunk(model, {"content": "half"})[:30])
            await asyncio.sleep(0.05)
            return self.cut(request, response)
        if model == "cut-late":
            await asyncio.sleep(0.05)
            return self.cut(request, response)
        if model == "no-done":
            return response
        if model in ("endless", "flood"):
            text, pause = ("again ", 0.01) if model == "endless" else ("again " * 20_000, 0)
            try:
                while True:
                    await response.write(chunk(model, {"content": text}))
                    await asyncio.sleep(pause)
            except (ConnectionError, asyncio.CancelledError):
                self.dropped += 1
                raise
        await response.write(chunk(model, {}, "stop"))
        await response.write(b"data: [DONE]\n\n")
        return response

    def cut(self, request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return response

    async def hang(self, request: web.Request) -> web.Response:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.dropped += 1
            raise
        return self.error(500, "woke up")

    def error(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> web.Response:
        error = {"message": message, "type": "error", "param": param, "code": code}
        return web.json_response({"error": error}, status=status, headers=headers)


@asynccontextmanager
async def faulty_server(port: int = 0) -> AsyncIterator[FaultyServer]:
    server = FaultyServer()
    app = web.Application()
    app.router.add_post("/v1/chat/completions", server.chat)
    app.router.add_post("/v1/completions", server.completions)
    app.router.add_post("/v1/embeddings", server.embeddings)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield server
    finally:
        await runner.cleanup()
