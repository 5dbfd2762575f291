"""Structured logs: one JSON object a line on standard error, with the request's id."""

import io
import logging
import sys
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, Literal, TextIO, cast

import orjson
import structlog

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""Id of the request being served; the gateway sets it, every line carries it."""


class _Output(io.TextIOBase):
    """A stream whose faults are not ours: a full disk or a reader that left loses the line."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()


def configure_logs(level: str, style: Literal["json", "console"], process: str) -> None:
    """Set up structlog and route the standard library's loggers through it."""

    def add_context(_: Any, __: str, event: dict[str, Any]) -> dict[str, Any]:
        event["process"] = process
        current = request_id.get()
        if current is not None:
            event.setdefault("request_id", current)
        return event

    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        add_context,
    ]
    renderer: Any = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
        if style == "console"
        else structlog.processors.JSONRenderer(serializer=_dumps)
    )
    threshold = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[*shared, structlog.processors.format_exc_info, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.WriteLoggerFactory(file=cast(TextIO, _Output(sys.stderr))),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(_Output(sys.stderr))
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                renderer,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(max(threshold, logging.WARNING))
    # It warns at every Upgrade header, which any client may send.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)


def _dumps(event: dict[str, Any], **_: Any) -> str:
    return orjson.dumps(event, default=str).decode()


def get_logger(name: str) -> Any:
    """A structlog logger; `name` says which part of Composer speaks."""
    return structlog.get_logger(part=name)
