"""Programmatic checkers: how well an answer does what its prompt asked, from 0 to 1.

A check is a flat mapping with a `kind` and that kind's fields. A new kind is one function that
reads its fields and returns a scorer, and one line in `KINDS`.
"""

import json
import keyword
import math
import re
import string
from collections.abc import Callable, Mapping

from eval.demo.answers import (
    fold,
    is_prose,
    last_number,
    loops,
    phrases_found,
    word_count,
)
from eval.demo.fields import MAX_LIST, CheckError, Fields
from eval.demo.sandbox import Case, CodeRefused, code_of, run_cases
from eval.demo.sql import QueryError, first_select, is_ordered, run_select, same_rows

__all__ = ["KINDS", "CheckError", "Scorer", "compile_check", "score"]

MAX_ANSWER = 20_000
MAX_OBJECTS_TRIED = 100

Scorer = Callable[[str], float]


def score(check: Mapping[str, object], answer: str) -> float:
    """The share of `check` that `answer` meets, from 0 to 1. Raises CheckError.

    Only the first `MAX_ANSWER` characters are read; an answer without any earns nothing.
    """
    return compile_check(check)(answer[:MAX_ANSWER])


def compile_check(check: Mapping[str, object]) -> Scorer:
    """The scorer of a valid check; CheckError says which field of which kind is wrong."""
    kind = check.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise CheckError(f"unknown check kind {kind!r}; known: {', '.join(sorted(KINDS))}")
    fields = Fields(kind, {name: value for name, value in check.items() if name != "kind"})
    scorer = KINDS[kind](fields)
    fields.finish()
    return scorer


def number(fields: Fields) -> Scorer:
    """The last number of the answer is `value`, give or take `tolerance`."""
    value = fields.number("value")
    tolerance = fields.number("tolerance", default=1e-6)
    if tolerance < 0:
        raise fields.error("tolerance", "must not be negative")

    def scorer(answer: str) -> float:
        found = last_number(answer)
        return float(found is not None and abs(found - value) <= tolerance)

    return scorer


def json_object(fields: Fields) -> Scorer:
    """The share of `value`'s keys that the first JSON object has right; extra keys cost."""
    value = fields.take("value")
    if not isinstance(value, dict) or not 0 < len(value) <= MAX_LIST:
        raise fields.error("value", f"must be an object with 1 to {MAX_LIST} keys")
    for key, item in value.items():
        if not isinstance(item, str | int | float):
            raise fields.error("value", f"must be flat: {key!r} is neither string nor number")

    def scorer(answer: str) -> float:
        found = _first_object(answer)
        if found is None:
            return 0.0
        right = sum(key in found and _agrees(item, found[key]) for key, item in value.items())
        extra = len(found.keys() - value.keys())
        return right / (len(value) + extra)

    return scorer


def sql(fields: Fields) -> Scorer:
    """The answer's first SELECT gives the rows of the reference `query` over `setup`."""
    setup, query = fields.text("setup"), fields.text("query")
    try:
        expected = run_select(setup, query)
    except QueryError as error:
        raise fields.error("query", f"does not run over 'setup': {error}") from error
    if not expected:
        raise fields.error("query", "returns no row, so that it tells nothing apart")
    ordered = is_ordered(query)

    def scorer(answer: str) -> float:
        select = first_select(answer)
        if select is None:
            return 0.0
        try:
            found = run_select(setup, select)
        except QueryError:
            return 0.0
        return float(same_rows(expected, found, ordered=ordered))

    return scorer


def label(fields: Fields) -> Scorer:
    """Of all `options`, `value` alone occurs in the answer."""
    value, options = fields.text("value"), fields.texts("options")
    if len(options) < 2 or value not in options:
        raise fields.error("options", "must list two labels or more, 'value' among them")
    if any(phrases_found(option, options) != (option,) for option in options):
        raise fields.error("options", "holds a label that is a part of another one")
    return lambda answer: float(phrases_found(answer, options) == (value,))


def contains(fields: Fields) -> Scorer:
    """One of `any` and each of `all` occur, within `max_words`."""
    if not fields.has("any") and not fields.has("all"):
        raise fields.error("any", "is missing, and so is 'all'")
    return _wording(fields)


def text(fields: Fields) -> Scorer:
    """The answer is prose without loops, of `min_words` to `max_words` and the wording asked."""
    if not any(map(fields.has, ("min_words", "max_words", "all", "any"))):
        raise fields.error("min_words", "is missing, and so is every other condition")
    least = fields.count("min_words", default=1)
    wording = _wording(fields, least)

    def scorer(answer: str) -> float:
        if word_count(answer) < least or loops(answer) or not is_prose(answer):
            return 0.0
        return wording(answer)

    return scorer


def items(fields: Fields) -> Scorer:
    """The answer lists exactly `count` items, none of them empty or repeated."""
    count = fields.count("count")

    def scorer(answer: str) -> float:
        found = _list_items(answer)
        good = all(any(c.isalnum() for c in item) for item in found)
        return float(good and len(found) == len(set(found)) == count)

    return scorer


def python(fields: Fields) -> Scorer:
    """The share of `cases` that the answer's `function` passes in the sandbox."""
    function = fields.text("function")
    if not function.isidentifier() or keyword.iskeyword(function) or function.startswith("__"):
        raise fields.error("function", f"must be a plain function name, got {function!r}")
    cases = _cases(fields)

    def scorer(answer: str) -> float:
        try:
            passed = run_cases(code_of(answer), function, cases)
        except CodeRefused:
            return 0.0
        return sum(passed) / len(passed)

    return scorer


def declines(_fields: Fields) -> Scorer:
    """The answer says that it has no live, real-time or personal information."""
    return lambda answer: float(any(p.search(fold(answer)) for p in _DECLINING))


KINDS: dict[str, Callable[[Fields], Scorer]] = {
    "number": number,
    "json": json_object,
    "sql": sql,
    "label": label,
    "contains": contains,
    "text": text,
    "items": items,
    "python": python,
    "declines": declines,
}

_LIVE = (
    r"(?:real[- ]?time|live\b|up[- ]to[- ]date|up[- ]to[- ]the[- ]minute|current|latest|recent"
    r"|today|right now|internet|online|brows|the web\b|access|personal|calendar|inbox|e-?mail"
    r"|your |location|clock|news|weather|forecast|price|score|look (?:\w+ )?up)"
)
_SAME_CLAUSE = r"(?:(?!\bbut\b|\bhowever\b)[^.!?;\n]){0,100}?"
_CANNOT = (
    r"(?:\b(?:can't|cannot|can not|couldn't|could not|unable to|not able to|no way (?:to|of)"
    r"|not capable of|incapable of|(?:do not|don't) (?:actually |currently )?know)\b)"
)
_HAS_NO = (
    r"(?:\b(?:do not|don't|does not|doesn't) (?:\w+ )?have|\b(?:have|has|with) no"
    r"|\black(?:s|ing)?|\bwithout|\bnot connected to|\bno)\b"
)
_ACCESS = (
    r"(?:access|the ability|(?:a|any) way to|real[- ]?time|up[- ]to[- ]date|the internet"
    r"|internet (?:access|connection)|live (?:\w+ )?(?:data|information|info|access|feeds?"
    r"|updates?|connection|results?|scores?|prices?)|current (?:\w+ )?(?:data|information|info)"
    r"|information (?:about|on) (?:current|today|your)|personal (?:data|information)|brows)"
)
_DECLINING = (
    re.compile(rf"{_CANNOT}{_SAME_CLAUSE}{_LIVE}"),
    re.compile(rf"{_HAS_NO} (?:\w+ ){{0,3}}{_ACCESS}"),
    re.compile(r"\b(?:i am|i'm) (?:\w+ )?(?:offline|not (?:online|connected))\b"),
)

_MARKER = re.compile(r"^([ \t]*)(?:[-*](?=\s|$)|•|\d{1,3}[.)](?=\s|$))(.*)$", re.MULTILINE)
_EDGES = string.punctuation + string.whitespace + "…"


def _wording(fields: Fields, least: int = 1) -> Scorer:
    any_of, all_of = fields.texts("any"), fields.texts("all")
    most = fields.count("max_words", default=MAX_ANSWER)
    if most < least:
        raise fields.error("max_words", "is below 'min_words'")

    def scorer(answer: str) -> float:
        fits = word_count(answer) <= most
        has_any = not any_of or bool(phrases_found(answer, any_of))
        return float(fits and has_any and len(phrases_found(answer, all_of)) == len(all_of))

    return scorer


def _cases(fields: Fields) -> list[Case]:
    listed = fields.take("cases")
    if not isinstance(listed, list) or not 0 < len(listed) <= MAX_LIST:
        raise fields.error("cases", f"must be a list of 1 to {MAX_LIST} cases")
    cases: list[Case] = []
    for case in listed:
        if not isinstance(case, list) or len(case) != 2 or not isinstance(case[0], list):
            raise fields.error("cases", f"holds {case!r}, which is not [[argument, ...], result]")
        cases.append((case[0], case[1]))
    return cases


def _first_object(answer: str) -> dict[str, object] | None:
    decoder = json.JSONDecoder()
    start = -1
    for _ in range(MAX_OBJECTS_TRIED):
        start = answer.find("{", start + 1)
        if start < 0:
            return None
        try:
            found, _ = decoder.raw_decode(answer, start)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict):
            return found
    return None


def _agrees(expected: str | int | float, found: object) -> bool:
    if isinstance(expected, bool) or isinstance(found, bool):
        return str(expected).casefold() == str(found).casefold()
    if isinstance(expected, str) and isinstance(found, str):
        return _bare(expected) == _bare(found)
    a, b = _as_number(expected), _as_number(found)
    return a is not None and b is not None and math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-9)


def _bare(value: str) -> str:
    return " ".join(value.casefold().strip(_EDGES).split()) or value.strip()


def _as_number(value: object) -> float | None:
    if isinstance(value, str):
        value = value.strip(" \t\n$€£¥%").replace(",", "")
    if not isinstance(value, str | int | float):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def _list_items(answer: str) -> list[str]:
    """The items of the outermost list, folded; what is indented further is detail of an item."""
    found = [(len(m[1].expandtabs()), fold(m[2])) for m in _MARKER.finditer(answer)]
    outermost = min((indent for indent, _ in found), default=0)
    return [item for indent, item in found if indent == outermost]
