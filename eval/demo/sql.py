"""Running a SELECT from an answer in a throw-away SQLite, and comparing its rows."""

import math
import re
import sqlite3
import time
from contextlib import closing
from itertools import zip_longest

from eval.demo.answers import first_fence

MAX_ROWS = 1_000
MAX_SECONDS = 1.0
MAX_STEPS = 1_000_000
STEPS_PER_CALL = 1_000

Row = tuple[object, ...]

_WITH = r"WITH\s+(?:RECURSIVE\s+)?\w+\s*(?:\([^()]*\)\s*)?AS\s*\("
_AT_LINE_START = re.compile(rf"^[ \t`]*(?P<select>SELECT\b|{_WITH})", re.IGNORECASE | re.MULTILINE)
_ANYWHERE = re.compile(rf"(?<!\w)(?P<select>SELECT\b|{_WITH})", re.IGNORECASE)
_TOKEN = re.compile(r"'(?:[^']|'')*'|\"[^\"]*\"|;|\n[ \t]*\n")
_QUOTED = re.compile(r"'(?:[^']|'')*'|\"[^\"]*\"")
_READING = {
    sqlite3.SQLITE_SELECT,
    sqlite3.SQLITE_READ,
    sqlite3.SQLITE_FUNCTION,
    sqlite3.SQLITE_RECURSIVE,
}


class QueryError(ValueError):
    """A statement that SQLite refused, or that went over a limit."""


def first_select(answer: str) -> str | None:
    """The answer's first SELECT (or WITH ... SELECT), up to its semicolon or an empty line."""
    fenced = first_fence(answer)
    text = answer if fenced is None else fenced
    start = _AT_LINE_START.search(text) or _ANYWHERE.search(text)
    if start is None:
        return None
    begin = start.start("select")
    inline = begin > 0 and text[begin - 1] == "`"
    end = text.find("`", begin) if inline else -1
    body = text[begin : end if end >= 0 else len(text)]
    for token in _TOKEN.finditer(body):
        if token[0] == ";" or (fenced is None and token[0].startswith("\n")):
            return body[: token.start()].strip()
    return body.strip()


def run_select(setup: str, query: str) -> list[Row]:
    """The rows of `query` over the tables that `setup` makes, `MAX_ROWS` at most.

    Only reading is authorised; steps, seconds and the size of values are limited.
    Raises QueryError.
    """
    with closing(sqlite3.connect(":memory:")) as db:
        try:
            db.executescript(setup)
            db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 100_000)
            db.setlimit(sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 200)
            db.set_authorizer(_authorise)
            db.set_progress_handler(_Budget().spent, STEPS_PER_CALL)
            return db.execute(query).fetchmany(MAX_ROWS)
        except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError) as error:
            raise QueryError(str(error)) from error


def is_ordered(query: str) -> bool:
    """Whether the outermost SELECT has an ORDER BY."""
    bare, previous = _QUOTED.sub("", query), ""
    while bare != previous:
        bare, previous = re.sub(r"\([^()]*\)", "", bare), bare
    return re.search(r"\bORDER\s+BY\b", bare, re.IGNORECASE) is not None


def same_rows(expected: list[Row], found: list[Row], *, ordered: bool) -> bool:
    """Equal as sequences when ordered, else as multisets; floats to 1e-6."""
    if len(expected) != len(found):
        return False
    if ordered:
        return all(map(_same_row, expected, found))
    left = list(found)
    for row in expected:
        match = next((i for i, other in enumerate(left) if _same_row(row, other)), None)
        if match is None:
            return False
        del left[match]
    return True


def _same_row(expected: Row, found: Row) -> bool:
    missing = object()
    return all(_same_cell(a, b) for a, b in zip_longest(expected, found, fillvalue=missing))


def _same_cell(expected: object, found: object) -> bool:
    if isinstance(expected, int | float) and isinstance(found, int | float):
        return math.isclose(expected, found, rel_tol=1e-6, abs_tol=1e-6)
    return type(expected) is type(found) and expected == found


def _authorise(
    action: int, _first: str | None, second: str | None, _db: str | None, _trigger: str | None
) -> int:
    allowed = action in _READING and second != "load_extension"
    return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY


class _Budget:
    """What one query may still spend; SQLite asks it every STEPS_PER_CALL instructions."""

    def __init__(self) -> None:
        self._calls_left = MAX_STEPS // STEPS_PER_CALL
        self._deadline = time.monotonic() + MAX_SECONDS

    def spent(self) -> int:
        self._calls_left -= 1
        return int(self._calls_left < 0 or time.monotonic() > self._deadline)
