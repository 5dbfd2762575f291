"""What each kind of check accepts, refuses and survives."""

import json
import math
import re
import time
from collections.abc import Mapping
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.demo.checkers import KINDS, CheckError, score
from eval.demo.sandbox import CodeRefused, check_code, run_cases

SHOP = """
CREATE TABLE items (name TEXT, kind TEXT, price REAL, stock INTEGER);
INSERT INTO items VALUES ('pen', 'office', 1.5, 10), ('lamp', 'home', 20, 3),
  ('desk', 'office', 120, 1), ('rug', 'home', 45.25, 7), ('mug', 'home', 6, NULL);
"""
CHECKS: dict[str, dict[str, object]] = {
    "number": {"value": 1234.5},
    "json": {"value": {"name": "Ana Díaz", "age": 31}},
    "sql": {"setup": SHOP, "query": "SELECT name FROM items WHERE kind = 'home'"},
    "label": {"value": "billing", "options": ["billing", "delivery", "other"]},
    "contains": {"any": ["Bogotá", "Santa Fe de Bogotá"]},
    "text": {"min_words": 3, "max_words": 8, "all": ["Monday"], "any": ["lunch", "dinner"]},
    "items": {"count": 3},
    "python": {"function": "double", "cases": [[[2], 4], [["ab"], "abab"], [[[1]], [1, 1]]]},
    "declines": {},
}
RIGHT = {
    "number": ["1234.5", "So it is $1,234.50.", "12 + 3 = 1234.5", "€1,234.5 in all", "1.2345e3"],
    "json": [
        '{"name": "Ana Díaz", "age": 31}',
        'Here you are:\n```json\n{"age": "31", "name": " ana  díaz. "}\n```\n{"name": 1}',
        'I use {braces} first, then {"name": "Ana Díaz", "age": 31.0}',
    ],
    "sql": [
        "SELECT name FROM items WHERE kind = 'home';",
        "```sql\nselect items.name from items where kind like 'home' order by price\n```",
        "Sure! This will select the rows:\nSELECT name FROM items\nWHERE kind='home'\n\nIt works.",
        "Use `SELECT name FROM items WHERE kind = 'home'` for that.",
        "WITH h AS (SELECT * FROM items WHERE kind = 'home') SELECT name FROM h; SELECT 1;",
    ],
    "label": ["billing", "Label: **Billing**.", "billing, I think; yes, BILLING"],
    "contains": ["Bogota", "It is BOGOTÁ, of course.", "«Bogotá»"],
    "text": ["See you Monday for lunch.", "Dinner on monday"],
    "items": [
        "1. Red\n2. Green\n3. Blue",
        "Here are three:\n\n- red\n  - dark\n- green\n- blue\n\nEnjoy!",
        "* a\n• b\n3) c",
    ],
    "python": [
        "def double(x):\n    return x + x",
        "Here:\n```python\nimport math\n\ndef double(x: int) -> int:\n    return x * 2\n\n"
        'if __name__ == "__main__":\n    print(double(2))\n```\nDone.',
        "```\ndef double(x): return 2 * x",
    ],
    "declines": [
        "I don't have access to real-time data.",
        "I'm sorry, but I can\u2019t check live scores from here.",
        "As an AI I cannot browse the internet, so I can't say.",
        "I do not have the ability to see your calendar.",
        "I am unable to look up today's price.",
        "I have no live information, so I can't answer that.",
        "I'm running offline, please check a weather site.",
        "I don't know the current time.",
    ],
}
WRONG = {
    "number": ["", "no idea", "-1234.5", "1234.5 or 7", "1234", "12345"],
    "json": ["", "name: Ana, age: 31", '["Ana", 31]', '{"name": "Anna", "age": true}', "{" * 500],
    "sql": [
        "",
        "SELECT name FROM items",
        "SELECT name, kind FROM items WHERE kind = 'home'",
        "SELECT nme FROM items WHERE kind = 'home'",
        "DELETE FROM items",
        "SELECT name FROM items WHERE kind = 'home' UNION ALL SELECT 'rug'",
        "SELECT 'lamp'; SELECT name FROM items WHERE kind = 'home'",
    ],
    "label": ["", "delivery", "billing or delivery", "billings", "prebilling"],
    "contains": ["", "Lima", "Bogotano"],
    "text": ["", "Lunch!", "See you on Monday", "Monday lunch " * 5, "Mondays have a lunch"],
    "items": [
        "",
        "red, green, blue",
        "1. red\n2. green",
        "1. red\n2. green\n3. Red",
        "- red\n- green\n-\n",
        "- a\n- b\n- c\n- d",
        "-a\n-b\n-c",
        "1.5 litres\n2.5 litres\n3.5 litres",
    ],
    "python": [
        "",
        "def twice(x):\n    return x + x",
        "def double(x):\n    return x +",
        "double = lambda x: x + x",
        "Here is the function:\ndef double(x):\n    return x + x",
        "def double(x):\n    raise ValueError",
        "def double(x):\n    return str(x)",
    ],
    "declines": [
        "",
        "It is sunny and 24 degrees in Paris right now.",
        "You have no meetings today.",
        "Sorry, I don't think so.",
        "The match ended 2-1, and there was no extra time.",
        "I don't know, but the current price is $40.",
    ],
}


def check(kind: str, **fields: object) -> dict[str, object]:
    return {"kind": kind, **(fields or CHECKS[kind])}


def cases_of(answers: Mapping[str, list[str]]) -> list[tuple[str, str]]:
    return [(kind, answer) for kind, listed in answers.items() for answer in listed]


def test_every_kind_has_examples_here() -> None:
    assert set(CHECKS) == set(RIGHT) == set(WRONG) == set(KINDS)


@pytest.mark.parametrize(("kind", "answer"), cases_of(RIGHT))
def test_score_is_one_when_the_answer_is_right(kind: str, answer: str) -> None:
    assert score(check(kind), answer) == 1.0


@pytest.mark.parametrize(("kind", "answer"), cases_of(WRONG))
def test_score_is_zero_when_the_answer_is_wrong(kind: str, answer: str) -> None:
    assert score(check(kind), answer) == 0.0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "unknown check kind None"),
        ({"kind": "poem"}, "unknown check kind 'poem'; known: contains, declines"),
        ({"kind": "number"}, "check 'number': field 'value' is missing"),
        ({"kind": "number", "value": "3"}, "'value' must be a number"),
        ({"kind": "number", "value": True}, "'value' must be a number"),
        ({"kind": "number", "value": math.nan}, "'value' must be finite"),
        ({"kind": "number", "value": 3, "tolerance": -1}, "'tolerance' must not be negative"),
        ({"kind": "number", "value": 3, "unit": "kg"}, "'unit' is unknown"),
        ({"kind": "json", "value": {}}, "'value' must be an object"),
        ({"kind": "json", "value": {"a": [1]}}, "must be flat: 'a'"),
        ({"kind": "sql", "setup": "CREATE TABLE t (a)", "query": "SELECT a FROM t"}, "no row"),
        ({"kind": "sql", "setup": SHOP, "query": "SELECT nme FROM items"}, "no such column: nme"),
        ({"kind": "sql", "setup": "CREATE", "query": "SELECT 1"}, "does not run"),
        ({"kind": "sql", "setup": SHOP, "query": " "}, "'query' must be a non-empty string"),
        ({"kind": "label", "value": "c", "options": ["a", "b"]}, "'value' among them"),
        ({"kind": "label", "value": "urgent", "options": ["urgent", "non-urgent"]}, "part of"),
        ({"kind": "label", "value": "spam", "options": ["spam", "not spam"]}, "part of another"),
        ({"kind": "contains"}, "'any' is missing, and so is 'all'"),
        ({"kind": "contains", "any": "Paris"}, "'any' must be a list"),
        ({"kind": "contains", "any": ["Paris", "Paris"]}, "repeats"),
        ({"kind": "text"}, "'min_words' is missing"),
        ({"kind": "text", "min_words": 9, "max_words": 3}, "'max_words' is below"),
        ({"kind": "items", "count": 0}, "'count' must be a whole number"),
        ({"kind": "python", "function": "a b", "cases": [[[], 1]]}, "plain function name"),
        ({"kind": "python", "function": "f", "cases": []}, "'cases' must be a list"),
        ({"kind": "python", "function": "f", "cases": [[1, 2]]}, "which is not"),
        ({"kind": "declines", "value": 1}, "'value' is unknown"),
    ],
)
def test_check_error_names_the_fault_when_a_check_is_bad(
    fields: dict[str, object], message: str
) -> None:
    with pytest.raises(CheckError, match=re.escape(message)):
        score(fields, "anything")


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("-7", -7),
        ("minus: \u22127", -7),
        ("-$7", -7),
        ("$-7", -7),
        ("12-7", 7),
        ("- 7", 7),
        ("x=7.", 7),
        ("12,007", 12007),
        ("options 1, 2, 7", 7),
        ("**7**%", 7),
        (".7", 0.7),
        ("7kg", 7),
    ],
)
def test_last_number_is_read_when_it_is_decorated(answer: str, value: float) -> None:
    assert score(check("number", value=value), answer) == 1.0


def test_number_is_accepted_when_within_its_tolerance() -> None:
    third = check("number", value=33.33, tolerance=0.01)
    assert [score(third, a) for a in ("33.333", "33.3", "33.35")] == [1.0, 0.0, 0.0]


@given(st.integers(-(10**9), 10**9), st.text("abc .:=$", max_size=20))
def test_number_agrees_with_its_own_rendering_when_text_surrounds_it(value: int, tail: str) -> None:
    wanted = check("number", value=value)
    assert score(wanted, f"It is {value:,}{tail}") == score(wanted, f"= {value}{tail}") == 1.0


def test_json_score_is_the_share_of_right_keys_less_for_extra_ones() -> None:
    half = '{"name": "Ana Díaz", "age": 30}'
    extra = '{"name": "Ana Díaz", "age": 31, "city": "Lima", "job": "cook"}'
    assert score(check("json"), half) == 0.5
    assert score(check("json"), extra) == 0.5


flat = st.dictionaries(
    st.text(min_size=1, max_size=8),
    st.text(max_size=12) | st.integers(-(10**6), 10**6) | st.booleans(),
    min_size=1,
    max_size=5,
)


@given(flat)
def test_json_is_right_when_it_is_the_expected_object(value: dict[str, object]) -> None:
    assert score(check("json", value=value), f"Answer: {json.dumps(value)} done") == 1.0


def test_sql_rows_must_come_in_order_when_the_reference_orders_them() -> None:
    ordered = check("sql", setup=SHOP, query="SELECT name FROM items ORDER BY price DESC LIMIT 2")
    assert score(ordered, "SELECT name FROM items ORDER BY price DESC LIMIT 2") == 1.0
    assert score(ordered, "SELECT name FROM items WHERE price > 40 ORDER BY price") == 0.0
    inner = "SELECT name FROM items WHERE price = (SELECT price FROM items ORDER BY price LIMIT 1)"
    assert score(check("sql", setup=SHOP, query=inner), "SELECT 'pen'") == 1.0


def test_sql_floats_are_equal_when_within_a_millionth() -> None:
    mean = check("sql", setup=SHOP, query="SELECT AVG(price) FROM items")
    assert score(mean, "SELECT SUM(price) / COUNT(*) AS mean FROM items") == 1.0
    assert score(mean, "SELECT ROUND(AVG(price)) FROM items") == 0.0


@pytest.mark.parametrize(
    "attack",
    [
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n",
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n) SELECT COUNT(*) FROM n",
        "SELECT zeroblob(1000000000)",
        "SELECT hex(zeroblob(40000)) FROM items a, items b, items c, items d, items e, items f",
        "SELECT load_extension('x')",
        "SELECT * FROM pragma_database_list",
        "SELECT name FROM items WHERE kind = 'home' \x00",
        "SELECT '\ud800'",
        "SELECT " + "(" * 900 + "1" + ")" * 900,
    ],
)
def test_sql_is_stopped_when_the_answer_is_hostile(attack: str) -> None:
    started = time.monotonic()
    assert score(check("sql"), attack) == 0.0
    assert time.monotonic() - started < 3


@given(st.permutations(["pen", "lamp", "desk", "rug"]))
@settings(max_examples=20)
def test_sql_ignores_row_order_when_the_reference_has_none(names: list[str]) -> None:
    unordered = check("sql", setup=SHOP, query="SELECT name FROM items WHERE stock IS NOT NULL")
    assert score(unordered, " UNION ALL ".join(f"SELECT '{n}'" for n in names)) == 1.0


def test_contains_wants_one_of_any_and_each_of_all() -> None:
    wanted = check("contains", any=["chat", "minou"], all=["le", "dort"], max_words=5)
    assert score(wanted, "Le chat dort.") == 1.0
    assert score(wanted, "Le chien dort.") == 0.0
    assert score(wanted, "Le chat mange.") == 0.0
    assert score(wanted, "Le chat dort, et le chien aussi.") == 0.0


@given(st.integers(1, 12), st.sampled_from(["- {}", "* {}", "• {}", "{0}. {0}", "  {0}) {0}"]))
def test_items_are_counted_when_listed_with_any_marker(count: int, style: str) -> None:
    answer = "Sure:\n" + "\n".join(style.format(i) for i in range(1, count + 1))
    assert score(check("items", count=count), answer) == 1.0
    assert score(check("items", count=count + 1), answer) == 0.0


def test_python_score_is_the_share_of_cases_passed() -> None:
    answer = "def double(x):\n    return 4 if x == 2 else x + x if x == 'ab' else None"
    assert score(check("python"), answer) == pytest.approx(2 / 3)


def test_python_keeps_earlier_cases_when_a_later_one_never_ends() -> None:
    code = "def f(x):\n    while x:\n        pass\n    return 1"
    assert run_cases(code, "f", [([0], 1), ([1], 1), ([0], 1)]) == (True, False, False)


@pytest.mark.parametrize(
    ("value", "expected", "passes"),
    [
        ("(1, 2)", [1, 2], True),
        ("2.0", 2, True),
        ("0.1 + 0.2", 0.3, True),
        ("1", True, False),
        ("True", 1, False),
        ("None", None, True),
        ("{1, 2}", [1, 2], False),
        ("collections.Counter('aab')", {"a": 2, "b": 1}, True),
        ("10 ** 400", 1.5, False),
        ("re.sub('[0-9]', '', 'a1')", "a", True),
        ("list(itertools.chain([1], [2]))", [1, 2], True),
        ("functools.reduce(lambda a, b: a * b, [2, 3])", 6, True),
        ("string.ascii_lowercase[:2]", "ab", True),
        ("math.gcd(4, 6)", 2, True),
        ("type(3) == int", True, True),
    ],
)
def test_python_results_compare_by_value_when_types_are_close(
    value: str, expected: object, passes: bool
) -> None:
    imports = "import collections, functools, itertools, math, re, string\n"
    assert run_cases(f"{imports}def f():\n    return {value}", "f", [([], expected)]) == (passes,)


@pytest.mark.parametrize(
    "hostile",
    [
        "import os",
        "import collections.abc",
        "from os import system",
        "from . import sandbox",
        "import re as __builtins__",
        "open('x')",
        "eval('1')",
        "exec('1')",
        "compile('1', '', 'eval')",
        "__import__('os')",
        "globals()",
        "getattr(1, 'real')",
        "().__class__.__bases__",
        "(i for i in []).gi_frame.f_back",
        "print.__globals__",
        "class A: pass",
        "async def g(): pass",
        "with x: pass",
        "math.pi = 3",
        "__builtins__['open']",
        "match 1:\n    case int(real=r): pass",
        "x = 1\n" * 2000,
        "(" * 300,
        "-" * 7000 + "1",
        "\x00",
    ],
)
def test_code_is_refused_when_it_reaches_beyond_computation(hostile: str) -> None:
    with pytest.raises(CodeRefused):
        check_code(f"def f():\n    return 1\n{hostile}", "f")


@pytest.mark.parametrize(
    "body",
    [
        "import re\n    return re.enum.sys",
        "import string\n    return string.Formatter()",
        "import functools\n    return functools.update_wrapper",
        "import collections\n    return collections.namedtuple",
        "return type('A', (), {})",
        "return input()",
        "return 'a' * 10 ** 10",
        "return [0] * 10 ** 9",
        "return f()",
        "raise SystemExit",
        "x = []\n    x.append(x)\n    return x",
    ],
)
def test_case_fails_when_allowed_syntax_asks_for_what_the_child_withholds(body: str) -> None:
    assert run_cases(f"def f():\n    {body}", "f", [([], 1)]) == (False,)


def test_process_is_killed_when_the_code_never_returns_to_the_interpreter() -> None:
    started = time.monotonic()
    assert run_cases("def f():\n    return 10 ** 10 ** 10", "f", [([], 1)]) == (False,)
    assert time.monotonic() - started < 6


def test_score_reads_only_the_start_when_the_answer_is_huge() -> None:
    assert score(check("number", value=7), "7 " + "x" * 20_000 + " 8") == 1.0


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"python"}))
@given(answer=st.text(max_size=200))
@settings(max_examples=50)
def test_score_is_a_share_when_the_answer_is_anything(kind: str, answer: str) -> None:
    assert 0.0 <= score(check(kind), answer) <= 1.0


@given(code=st.text("def f(x):\n return+-*[]{}'\"\\0.,", max_size=80))
def test_code_is_refused_with_a_reason_or_accepted_when_it_is_anything(code: str) -> None:
    with pytest.raises(CodeRefused, match=r".+"):
        check_code(code + "\nimport os", "f")
    with suppress(CodeRefused):
        check_code(code, "f")


@pytest.mark.parametrize(
    "answer",
    [
        "SELECT name FROM summary WHERE water = 'yes' ORDER BY name LIMIT 3",
        '{"summary": "water the plants", "keys": ["water", "plants"]}',
        "def water(plants): return [plant.water() for plant in plants]",
        "water the plants now, " * 6,
    ],
)
def test_text_is_no_answer_when_it_is_code_or_turns_in_circles(answer: str) -> None:
    check = {"kind": "text", "any": ["water"], "min_words": 3}
    assert score(check, answer) == 0.0
    assert score(check, "Don't water your plants on a fixed day: it depends on the season.") == 1.0
