"""One OpenAPI document of both planes: the control plane as FastAPI knows it, and the data plane's
operations beside it."""

from functools import cache
from importlib import metadata
from typing import Any

import orjson
from fastapi import FastAPI

from gateway.admin.app import RESOURCES
from gateway.openapi import data_plane

TAGS = {
    "prompts": "Send prompts. Any OpenAI client does with only its base URL changed.",
    "experts": "What answers: register, look at, take out of rotation, remove.",
    "datasets": "Labelled task data that routers are trained on.",
    "trainings": "Jobs that make a new version of a composition.",
    "compositions": "Versions of compositions: import, make live, go back.",
    "stats": "Requests, tokens, cost and latency over time.",
    "decisions": "What was decided for each request, why, and what became of it.",
    "cache": "The decision cache: how full it is, and flushing it.",
    "keys": "API keys with the scopes `user` and `admin`.",
    "workers": "The gateway's worker processes.",
    "state": "The whole state as one archive.",
    "operations": "For those who keep it running.",
}
_ABOUT = (
    "A composition-of-experts service: each prompt goes to the expert that is expected to answer "
    "it best. Where keys are required, a request carries `Authorization: Bearer KEY`: one of the "
    "scope `user` for `/v1`, one of the scope `admin` for `/admin`, `/metrics` and "
    "`/openapi.json`. Every error has the shape of `Error`."
)
_ERROR = {"$ref": "#/components/responses/Error"}


@cache
def document() -> dict[str, Any]:
    """The document; it is the same for every gateway of this version."""
    found = _control_plane()
    paths = {**data_plane.paths(), **found["paths"]}
    for operations in paths.values():
        for operation in operations.values():
            _tidy(operation)
    used = {tag for methods in paths.values() for o in methods.values() for tag in o["tags"]}
    schemas = {**found["components"]["schemas"], **data_plane.schemas()}
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    return {
        "openapi": found["openapi"],
        "info": found["info"],
        "tags": [
            {"name": tag, "description": TAGS.get(tag, "")}
            for tag in (*TAGS, *sorted(used - set(TAGS)))
            if tag in used
        ],
        "security": [{}, {"key": []}],
        "paths": paths,
        "components": {
            "schemas": dict(sorted(schemas.items())),
            "headers": data_plane.headers(),
            "responses": {"Error": _error_response()},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


@cache
def document_body() -> bytes:
    """The document as JSON."""
    return orjson.dumps(document())


def _control_plane() -> dict[str, Any]:
    app = FastAPI(title="Composer", version=metadata.version("expert-composer"), description=_ABOUT)
    for router in RESOURCES:
        app.include_router(router)
    return app.openapi()


def _tidy(operation: dict[str, Any]) -> None:
    """Errors have our shape, and names that FastAPI made up say nothing."""
    responses = operation["responses"]
    responses.pop("422", None)
    responses["default"] = _ERROR
    for response in responses.values():
        if response.get("description") == "Successful Response":
            response["description"] = "Done."
        for content in response.get("content", {}).values():
            content.get("schema", {}).pop("title", None)


def _error_response() -> dict[str, Any]:
    return {
        "description": "Refused or failed: 4xx says what to change, 429 and 503 when to come again "
        "(`retry-after`).",
        "content": {"application/json": {"schema": {"$ref": f"{data_plane.REF}Error"}}},
    }
