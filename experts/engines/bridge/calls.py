"""A request of the OpenAI API as the arguments of a call of LiteLLM: what may pass, and checks."""

import json
from typing import Any
from urllib.parse import urlsplit

from experts.engines.bridge.errors import BridgeError

_GENERATION = frozenset(
    {"temperature", "top_p", "n", "stream", "stream_options", "stop", "max_tokens", "seed"}
    | {"presence_penalty", "frequency_penalty", "logit_bias", "logprobs", "user"}
)
_CHAT = frozenset(
    {"messages", "max_completion_tokens", "response_format", "top_logprobs"}
    | {"tools", "tool_choice", "parallel_tool_calls", "functions", "function_call"}
    | {"reasoning_effort", "verbosity"}
)
FIELDS = {
    "chat": _GENERATION | _CHAT,
    "completions": _GENERATION | {"prompt", "suffix", "echo", "best_of"},
    "embeddings": frozenset({"input", "dimensions", "encoding_format", "user"}),
}
"""What is passed on, by interface. LiteLLM takes its own settings by the same door (addresses,
keys, callbacks, retries): a client must not reach those."""

_REQUIRED = {"chat": ("messages", list), "completions": ("prompt", object)}


def arguments_of(interface: str, body: bytes) -> dict[str, Any]:
    """
    Raises:
        BridgeError: 400, naming the field.
    """
    try:
        request = json.loads(body)
    except (ValueError, RecursionError):
        raise BridgeError(400, "the request body is not valid JSON") from None
    if not isinstance(request, dict):
        raise BridgeError(400, "the request body must be a JSON object")
    model = request.get("model")
    provider, _, name = model.partition("/") if isinstance(model, str) else ("", "", "")
    if not provider or not name:
        raise BridgeError(400, "'model' must be PROVIDER/NAME", param="model")
    field, kind = _REQUIRED.get(interface, ("input", object))
    if not isinstance(request.get(field), kind) or request[field] is None:
        raise BridgeError(400, f"'{field}' is missing or of the wrong type", param=field)
    if not isinstance(request.get("stream", False), bool | None):
        raise BridgeError(400, "'stream' must be true or false", param="stream")
    passed = {
        field: value
        for field, value in request.items()
        if field in FIELDS[interface] and value is not None
    }
    return {"model": model, **passed}


def address_of(given: str | None) -> str | None:
    """The provider's address, where one was given.

    Raises:
        BridgeError: 400, it is not an HTTP address.
    """
    if given is None:
        return None
    try:
        parts = urlsplit(given)
        good = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        good = False
    if not good:
        raise BridgeError(400, "x-composer-api-base must be an http or https address", param="url")
    return given


def key_of(authorization: str | None) -> str | None:
    """The key of an `Authorization: Bearer KEY` header."""
    kind, _, key = (authorization or "").partition(" ")
    return key.strip() or None if kind.lower() == "bearer" else None
