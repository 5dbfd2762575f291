"""YAML files that remember their lines, so that a wrong value can be told with its place."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from experts.errors import ConfigError

MAX_BYTES = 1 << 20

Place = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Document:
    """A YAML file as plain data, with the line of every path in it."""

    name: str
    data: dict[str, Any]
    lines: Mapping[Place, int]


def read_document(path: Path, key: str | None = None) -> Document:
    """Read a YAML file; with `key`, a bare list stands for a mapping of `key` to it.

    Raises:
        ConfigError: it can't be read, or is not YAML.
    """
    return parse_document(str(path), _read(path), key)


def parse_document(name: str, text: str, key: str | None = None) -> Document:
    """Parse YAML; with `key`, a bare list stands for a mapping of `key` to it."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise ConfigError(f"{name}:{line}: {error.problem}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: {error}") from error
    lines: dict[Place, int] = {}
    if key is not None and isinstance(data, list):
        _collect_lines(node, (key,), lines)
        data = {key: data}
    else:
        _collect_lines(node, (), lines)
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise ConfigError(f"{name}:1: a mapping of settings is expected")
    return Document(name, data, lines)


def explain(
    error: ValidationError, document: Document, overridden: frozenset[str] = frozenset()
) -> str:
    """All problems, a line each, with file and line where the file says it."""
    messages = []
    for problem in error.errors(include_url=False, include_input=False):
        path = tuple(part for part in problem["loc"] if not _is_union_tag(part, problem["loc"]))
        line = _line_of(path, document.lines)
        if path and path[0] in overridden:
            place = "environment or flag: "
        else:
            place = f"{document.name}:{line}: " if line else ""
        field = ".".join(str(part) for part in path)
        text = problem["msg"].removeprefix("Value error, ")
        messages.append(f"{place}{field}: {text}" if field else f"{place}{text}")
    return "\n".join(dict.fromkeys(messages))


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{path} is larger than {MAX_BYTES} bytes")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"can't read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8") from error


def _collect_lines(node: yaml.Node | None, path: Place, lines: dict[Place, int]) -> None:
    if node is None:
        return
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            lines[(*path, str(key.value))] = key.start_mark.line + 1
            _collect_lines(value, (*path, str(key.value)), lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _collect_lines(value, (*path, index), lines)


def _is_union_tag(part: str | int, location: Place) -> bool:
    """Pydantic names the branch of a union in the path of an error; a reader doesn't care."""
    return isinstance(part, str) and (
        part in ("embedded", "remote", "path", "is-instance[Path]")
        or part.startswith(("literal[", "tuple[", "function-", "lax-or-strict"))
    )


def _line_of(path: Place, lines: Mapping[Place, int]) -> int | None:
    while path:
        if path in lines:
            return lines[path]
        path = path[:-1]
    return None
