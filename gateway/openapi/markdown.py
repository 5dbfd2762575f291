"""An OpenAPI document as a short page of Markdown: what an operation takes and gives, by tag."""

import json
from collections.abc import Iterator
from typing import Any

Schema = dict[str, Any]

HEADING = """\
<!-- Made by `make api-docs` from the OpenAPI document: change the code, not this page. -->
# API reference
"""
MAX_EXAMPLE = 100
"""Longer examples stand on lines of their own."""


def markdown(document: Schema) -> str:
    """The whole page."""
    return "\n".join(_page(document)).rstrip() + "\n"


def _page(document: Schema) -> Iterator[str]:
    yield HEADING
    yield document["info"]["description"]
    yield ""
    for tag in document["tags"]:
        yield f"## {tag['name'].capitalize()}"
        yield tag["description"]
        yield ""
        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                if operation["tags"][0] == tag["name"]:
                    yield from _operation(document, f"{method.upper()} {path}", operation)
    yield "## Headers"
    yield "| header of an answer | meaning |"
    yield "|---|---|"
    for name, header in document["components"]["headers"].items():
        yield _row(f"`{name}`", header["description"])
    yield ""
    yield "## Objects"
    for name, schema in document["components"]["schemas"].items():
        yield from _object(document, name, schema)


def _operation(document: Schema, title: str, operation: Schema) -> Iterator[str]:
    yield f"### `{title}`"
    yield _line(operation.get("description") or operation["summary"])
    yield ""
    if parameters := operation.get("parameters"):
        yield "| parameter | in | type | meaning |"
        yield "|---|---|---|---|"
        for parameter in parameters:
            name = f"`{parameter['name']}`" + (" (required)" if parameter.get("required") else "")
            kind = _type(document, parameter.get("schema", {}))
            yield _row(name, parameter["in"], kind, parameter.get("description", ""))
        yield ""
    if body := operation.get("requestBody"):
        yield from _body(document, body)
    for status, response in operation["responses"].items():
        if status != "default":
            yield from _response(document, status, response)
    yield ""


def _body(document: Schema, body: Schema) -> Iterator[str]:
    for media, content in body["content"].items():
        what = _type(document, content.get("schema", {}))
        yield f"Body: {what} as `{media}`. {_line(body.get('description', ''))}".rstrip()
        example = content.get("example")
        if example is not None:
            yield "```json"
            yield json.dumps(example, indent=2 if len(json.dumps(example)) > MAX_EXAMPLE else None)
            yield "```"
        yield ""


def _response(document: Schema, status: str, response: Schema) -> Iterator[str]:
    kinds = [
        f"{_type(document, content.get('schema', {}))} as `{media}`"
        for media, content in response.get("content", {}).items()
    ]
    yield f"Answer {status}: {' or '.join(kinds) or 'nothing'}. {_line(response['description'])}"
    if "headers" in response:
        yield "It has the [headers](#headers) below."
    yield ""


def _object(document: Schema, name: str, schema: Schema) -> Iterator[str]:
    yield f"### {name}"
    if description := schema.get("description"):
        yield _line(description)
    yield ""
    properties = schema.get("properties")
    if not properties:
        yield f"{_type(document, {k: v for k, v in schema.items() if k != 'title'})}"
        yield ""
        return
    required = set(schema.get("required", ()))
    yield "| field | type | meaning |"
    yield "|---|---|---|"
    for field, value in properties.items():
        title = f"`{field}`" + (" (required)" if field in required else "")
        meaning = value.get("description", "")
        if "default" in value and value["default"] is not None:
            meaning = f"{meaning} Default: `{json.dumps(value['default'])}`.".strip()
        yield _row(title, _type(document, value), meaning)
    yield ""


def _type(document: Schema, schema: Schema) -> str:
    """A schema in a few words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema or "oneOf" in schema:
        kinds = [_type(document, part) for part in schema.get("anyOf") or schema["oneOf"]]
        return " or ".join(dict.fromkeys(kind for kind in kinds if kind != "null"))
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    kind = schema.get("type", "anything")
    if isinstance(kind, list):
        return " or ".join(kind)
    if kind == "array":
        return f"list of {_type(document, schema.get('items', {}))}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        inner = _type(document, schema["additionalProperties"])
        return f"object of {inner}"
    return f"{kind}{_bounds(schema)}"


def _bounds(schema: Schema) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    if schema.get("format") == "binary":
        return " (binary)"
    if low is not None and high is not None and abs(high) < 1 << 53:
        return f" from {low} to {high}"
    if low is not None and abs(low) < 1 << 53:
        return f" from {low}"
    if "exclusiveMinimum" in schema:
        return f" above {schema['exclusiveMinimum']}"
    return ""


def _row(*cells: str) -> str:
    return "| " + " | ".join(_line(cell).replace("|", "\\|") for cell in cells) + " |"


def _line(text: str) -> str:
    return " ".join(text.split())
