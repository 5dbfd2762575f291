"""Domain errors as HTTP: one table from class to status, type and code of the OpenAI shape."""

from dataclasses import dataclass
from typing import Any

import orjson

from experts import errors as domain


@dataclass(frozen=True, slots=True)
class HttpError:
    """`type` and `code` are fields of the OpenAI error object."""

    status: int
    type: str
    code: str


_TABLE: tuple[tuple[type[domain.ComposerError], HttpError], ...] = (
    (domain.TooLarge, HttpError(413, "invalid_request_error", "request_too_large")),
    (domain.TooSlow, HttpError(408, "invalid_request_error", "request_timeout")),
    (domain.InvalidRequest, HttpError(400, "invalid_request_error", "invalid_request")),
    (domain.Forbidden, HttpError(403, "invalid_request_error", "forbidden")),
    (domain.Unauthenticated, HttpError(401, "invalid_request_error", "invalid_api_key")),
    (domain.NotAllowed, HttpError(403, "invalid_request_error", "insufficient_scope")),
    (domain.NotFound, HttpError(404, "invalid_request_error", "not_found")),
    (domain.Conflict, HttpError(409, "invalid_request_error", "conflict")),
    (domain.ConfigError, HttpError(400, "invalid_request_error", "invalid_request")),
    (domain.DataError, HttpError(400, "invalid_request_error", "invalid_data")),
    (domain.ArtefactError, HttpError(400, "invalid_request_error", "invalid_artefact")),
    (domain.ArchiveError, HttpError(400, "invalid_request_error", "invalid_archive")),
    (domain.UnknownModel, HttpError(404, "invalid_request_error", "model_not_found")),
    (domain.NoEligibleExpert, HttpError(400, "invalid_request_error", "no_eligible_expert")),
    (domain.Overloaded, HttpError(429, "rate_limit_error", "overloaded")),
    (domain.ExpertUnavailable, HttpError(503, "server_error", "expert_unavailable")),
    (domain.Retryable, HttpError(503, "server_error", "not_ready")),
    (domain.DeadlineExceeded, HttpError(504, "server_error", "deadline_exceeded")),
)
MAX_MESSAGE = 4000
"""Characters of a message: what a client sent may be quoted in it."""

INTERNAL = HttpError(500, "server_error", "internal_error")


def http_error(error: domain.ComposerError) -> HttpError:
    """The HTTP form of a domain error; the first class in the table that fits."""
    for kind, http in _TABLE:
        if isinstance(error, kind):
            return http
    return INTERNAL


def error_body(http: HttpError, message: str, param: str | None, request_id: str) -> bytes:
    """An OpenAI-shaped error that carries the request's id."""
    error: dict[str, Any] = {
        "message": message[:MAX_MESSAGE],
        "type": http.type,
        "param": param,
        "code": http.code,
        "request_id": request_id,
    }
    return orjson.dumps({"error": error})


def retry_after(error: domain.ComposerError) -> str | None:
    """Value of the Retry-After header in whole seconds, where trying again makes sense."""
    if isinstance(error, domain.Retryable):
        return str(max(1, round(error.retry_after_s)))
    return None
