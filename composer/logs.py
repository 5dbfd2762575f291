"""Structured logs: one JSON object a line on standard error, with the request's id."""

import logging
import sys
from contextvars import ContextVar
from typing import Any, Literal

import orjson
import structlog

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""Id of the request being served; the gateway sets it, every line carries it."""


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
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
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


def _dumps(event: dict[str, Any], **_: Any) -> str:
    return orjson.dumps(event, default=str).decode()


def get_logger(name: str) -> Any:
    """A structlog logger; `name` says which part of Composer speaks."""
    return structlog.get_logger(part=name)
