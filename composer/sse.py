"""Server-sent events of OpenAI-compatible streams, read only as far as relaying needs."""

import re

import orjson

END = re.compile(rb"\r?\n\r?\n")
"""What ends an event: servers differ in their line ends."""

DONE = b"[DONE]"
_KEEP = 64
_MARKS = (b"\n\n", b"\r\n\r\n")


def split_whole(data: bytes) -> tuple[bytes, bytes]:
    """Whole events, and the beginning of one that has not arrived to its end."""
    ends = [at + len(mark) for mark in _MARKS if (at := data.rfind(mark)) >= 0]
    end = max(ends, default=0)
    return data[:end], data[end:]


def carries_token(event: bytes) -> bool:
    """Whether an event of a chat or completion stream holds output, an end, or an error."""
    for line in event.splitlines():
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == DONE:
            return True
        try:
            chunk = orjson.loads(data)
        except orjson.JSONDecodeError:
            return True
        if not isinstance(chunk, dict) or "error" in chunk:
            return True
        choices = chunk.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if not isinstance(choice, dict):
                return True
            delta = choice.get("delta")
            delta = delta if isinstance(delta, dict) else {}
            if choice.get("text") or choice.get("finish_reason"):
                return True
            if any(value for key, value in delta.items() if key != "role"):
                return True
    return False


def is_error(event: bytes) -> bool:
    """Whether an event reports an error instead of output."""
    for line in event.splitlines():
        if line.startswith(b"data:") and b'"error"' in line:
            try:
                chunk = orjson.loads(line[5:].strip())
            except orjson.JSONDecodeError:
                return False
            return isinstance(chunk, dict) and bool(chunk.get("error")) and "choices" not in chunk
    return False


class EndWatch:
    """Sees whether a relayed stream came to its proper end, from its last bytes."""

    def __init__(self) -> None:
        self._tail = b""

    def feed(self, data: bytes) -> None:
        self._tail = (self._tail + data)[-_KEEP:] if len(data) < _KEEP else data[-_KEEP:]

    @property
    def ended(self) -> bool:
        return DONE in self._tail


def error_event(message: str, code: str) -> bytes:
    """A final event that tells an OpenAI client that the stream broke."""
    error = {"message": message, "type": "server_error", "param": None, "code": code}
    return b"data: " + orjson.dumps({"error": error}) + b"\n\n"
