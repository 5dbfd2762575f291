"""The FastAPI application of the control plane: its resources, and errors in the OpenAI shape."""

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from composer.logs import get_logger, request_id
from composer.root import Parts
from experts.errors import ComposerError, TooLarge, TooSlow
from gateway.admin import (
    backup,
    cache,
    compositions,
    datasets,
    decisions,
    experts,
    keys,
    quality,
    stats,
    trainings,
    workers,
)
from gateway.admin.staging import Uploads
from gateway.errors import INTERNAL, HttpError, error_body, http_error, retry_after

RESOURCES = (
    compositions.router,
    datasets.router,
    decisions.router,
    experts.router,
    keys.router,
    quality.router,
    stats.router,
    trainings.router,
    workers.router,
    cache.router,
    backup.router,
)

_INVALID = HttpError(400, "invalid_request_error", "invalid_request")
_log = get_logger("admin")


def create_admin(parts: Parts) -> FastAPI:
    """The application; authentication and bounds on bodies are the gateway's business."""
    app = FastAPI(
        title="Composer",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )
    app.state.parts = parts
    app.state.uploads = Uploads(parts.config)
    for router in RESOURCES:
        app.include_router(router)
    app.add_exception_handler(ComposerError, _domain_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _unexpected)
    return app


def _answer(
    http: HttpError, message: str, param: str | None = None, headers: dict[str, str] | None = None
) -> Response:
    current = request_id.get() or ""
    return Response(
        error_body(http, message, param, current),
        status_code=http.status,
        media_type="application/json",
        headers={"x-request-id": current, **(headers or {})},
    )


async def _domain_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ComposerError)
    wait = retry_after(error)
    headers = {"retry-after": wait} if wait else {}
    if isinstance(error, TooLarge | TooSlow):
        # The rest of the body is not read, so the connection can't be used again.
        headers["connection"] = "close"
    return _answer(http_error(error), error.message, error.param, headers)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problem = error.errors()[0]
    if problem["type"] == "json_invalid":
        return _answer(_INVALID, "the request body is not valid JSON")
    where, *path = problem["loc"]
    # A rule between fields says itself which one to look at.
    named = problem.get("ctx", {}).get("param")
    field = named or ".".join(str(part) for part in path) or str(where)
    message = problem["msg"].removeprefix("Value error, ")
    return _answer(_INVALID, f"'{field}': {message}", field)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
    message = (
        f"there is nothing at {request.url.path[:200]!r}"
        if error.status_code == 404
        else str(error.detail)
    )
    http = HttpError(error.status_code, "invalid_request_error", code)
    return _answer(http, message, headers=dict(error.headers or {}))


async def _unexpected(request: Request, error: Exception) -> Response:
    _log.error("unexpected error", path=request.url.path, exc_info=error)
    return _answer(INTERNAL, "an unexpected error happened; the log has it under this request id")
