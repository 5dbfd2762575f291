"""Bodies of requests: parsed, bounded, and checked against a model."""

import json
import re
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError

from experts.errors import InvalidRequest

MAX_FIELDS = 128
DECISIVE = frozenset({"model", "messages", "prompt", "input", "composer", "stream"})
"""Fields that decide what becomes of a request, and must not be given twice."""

_DECISIVE = re.compile(rb'"(?:model|messages|prompt|input|composer|stream)"\s*:')

R = TypeVar("R", bound=BaseModel)


def parse_json(body: bytes) -> dict[str, Any]:
    """
    Raises:
        InvalidRequest: not UTF-8, not JSON, or not an object.
    """
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"the request body is not valid JSON: {error}") from error
    if not isinstance(data, dict):
        raise InvalidRequest("the request body must be a JSON object")
    # The slow look is for the bodies where such a name stands more often than it should.
    if len(_DECISIVE.findall(body)) > len(DECISIVE & data.keys()):
        _require_once(body)
    return data


def _require_once(body: bytes) -> None:
    """Parsers differ in which of two values of one field they take: none is the right one.

    Raises:
        InvalidRequest: a field of the request itself is there twice.
    """
    fields: list[str] = []

    def remember(pairs: list[tuple[str, Any]]) -> None:
        # Called for the innermost objects first, so the last call is the request itself.
        fields[:] = [name for name, _ in pairs]

    json.loads(body, object_pairs_hook=remember)
    for name in fields:
        if fields.count(name) > 1:
            raise InvalidRequest(f"'{name}' is given twice", param=name)


def validate(model: type[R], data: dict[str, Any]) -> R:
    """
    Raises:
        InvalidRequest: the first field that is wrong, and how.
    """
    bound_fields(data)
    try:
        return model.model_validate(data)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in problem["loc"] if not _is_type_name(part))
        message = problem["msg"][:1].lower() + problem["msg"][1:]
        raise InvalidRequest(f"'{field}': {message}", param=field) from error


def bound_fields(data: dict[str, Any]) -> None:
    """Every field beyond the known ones would cost an error object each."""
    for name, value in (("the request", data), ("'composer'", data.get("composer"))):
        if isinstance(value, dict) and len(value) > MAX_FIELDS:
            raise InvalidRequest(f"{name} has more than {MAX_FIELDS} fields")


def _is_type_name(part: str | int) -> bool:
    """Pydantic names the branch of a union in the path of an error; a client doesn't care."""
    return isinstance(part, str) and (
        part == "str" or part.startswith(("constrained-str", "list["))
    )
