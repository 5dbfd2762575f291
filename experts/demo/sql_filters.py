"""Conditions on rows, in words and in SQL."""

from __future__ import annotations

import random
from collections.abc import Callable

from experts.demo.data_common import weighted
from experts.demo.sql_schema import (
    Column,
    Day,
    Drawn,
    Measure,
    Words,
    literal,
    random_day,
    random_number,
)

Filter = tuple[str, str]


def class_filter(rng: random.Random, drawn: Drawn, column: Column) -> Filter:
    source = column.source
    assert isinstance(source, Words)
    value = rng.choice(source.values.split("|"))
    kind = rng.random()
    if kind < 0.08:
        other = rng.choice([v for v in source.values.split("|") if v != value])
        text = f"whose {source.phrase} is {value} or {other}"
        return text, f"{column.name} IN ({literal(value)}, {literal(other)})"
    if kind < 0.15:
        text = rng.choice(("whose {p} is not {v}", "with a {p} other than {v}"))
        return text.format(p=source.phrase, v=value), f"{column.name} <> {literal(value)}"
    generic = (
        f"whose {source.phrase} is {{v}}|with {source.phrase} '{{v}}'|with {source.phrase} {{v}}"
    )
    options = source.filters if rng.random() < 0.75 and source.filters else generic
    return rng.choice(options.split("|")).format(v=value), f"{column.name} = {literal(value)}"


COMPARISONS = (
    (">", ("above {x}", "greater than {x}", "over {x}", "of more than {x}", "higher than {x}")),
    ("<", ("below {x}", "less than {x}", "under {x}", "lower than {x}", "smaller than {x}")),
    (">=", ("of at least {x}", "of {x} or more", "not below {x}")),
    ("<=", ("of at most {x}", "of {x} or less", "not above {x}")),
    ("=", ("of {x}", "equal to {x}", "of exactly {x}")),
)


def measure_filter(rng: random.Random, drawn: Drawn, column: Column) -> Filter:
    source = column.source
    assert isinstance(source, Measure)
    value = random_number(rng, source)
    kind = rng.random()
    if kind < 0.12:
        low, high = sorted((value, random_number(rng, source)))
        if low == high:
            return measure_filter(rng, drawn, column)
        text = rng.choice(("with a {p} between {a} and {b}", "whose {p} is between {a} and {b}"))
        return (
            text.format(p=source.phrase, a=low, b=high),
            f"{column.name} BETWEEN {low} AND {high}",
        )
    if kind < 0.6 and source.over:
        sign, phrases = rng.choice(((">", source.over), ("<", source.under)))
        return rng.choice(phrases.split("|")).format(x=value), f"{column.name} {sign} {value}"
    sign, endings = weighted(rng, list(zip((4, 4, 3, 2, 1), COMPARISONS, strict=True)))
    ending = rng.choice(endings).format(x=value)
    start = "whose {p} is" if not ending.startswith("of ") and rng.random() < 0.5 else "with a {p}"
    return f"{start.format(p=source.phrase)} {ending}", f"{column.name} {sign} {value}"


def day_filter(rng: random.Random, drawn: Drawn, column: Column) -> Filter:
    source = column.source
    assert isinstance(source, Day)
    if rng.random() < 0.35:
        year = rng.randint(2018, 2025)
        return rng.choice(
            (
                (f"{source.verb} after {year}", f"{column.name} > '{year}-12-31'"),
                (f"{source.verb} before {year}", f"{column.name} < '{year}-01-01'"),
                (f"{source.verb} in {year}", f"{column.name} LIKE '{year}%'"),
            )
        )
    day = random_day(rng)
    sign, word = rng.choice(((">", "after"), ("<", "before"), ("=", "on"), (">=", "on or after")))
    return f"{source.verb} {word} {day}", f"{column.name} {sign} '{day}'"


def label_filter(rng: random.Random, drawn: Drawn, column: Column) -> Filter:
    source = column.source
    assert isinstance(source, Words)
    if source.filters:
        return class_filter(rng, drawn, column)
    value = rng.choice(source.values.split("|"))
    letter, last, inner = value[0], value[-1], rng.choice(value.replace(" ", "")).lower()
    return rng.choice(
        (
            (f"whose {source.phrase} starts with {letter}", f"{column.name} LIKE '{letter}%'"),
            (
                f"with a {source.phrase} that begins with '{letter}'",
                f"{column.name} LIKE '{letter}%'",
            ),
            (
                f"whose {source.phrase} ends with {last}",
                f"{column.name} LIKE '%{last}'",
            ),
            (
                f"whose {source.phrase} contains '{inner}'",
                f"{column.name} LIKE '%{inner}%'",
            ),
        )
    )


FILTERS: dict[str, Callable[[random.Random, Drawn, Column], Filter]] = {
    "class": class_filter,
    "measure": measure_filter,
    "day": day_filter,
    "label": label_filter,
}


def one_filter(rng: random.Random, drawn: Drawn, used: tuple[str, ...] = ()) -> tuple[Filter, str]:
    """A condition in words and in SQL, and the column it is on."""
    weights = {"class": 5, "measure": 5, "day": 3, "label": 1}
    columns = [c for c in drawn.columns if c.kind in FILTERS and c.name not in used]
    if not columns:
        columns = drawn.of_kind("measure")
    column = rng.choices(columns, [weights[c.kind] for c in columns])[0]
    return FILTERS[column.kind](rng, drawn, column), column.name


def some_filter(rng: random.Random, drawn: Drawn) -> Filter:
    """One condition, or two joined by and."""
    (text, query), used = one_filter(rng, drawn)
    if rng.random() < 0.22:
        (text2, query2), used2 = one_filter(rng, drawn, (used,))
        if used2 != used:
            return f"{text} and {text2}", f"{query} AND {query2}"
    return text, query


def maybe_filter(rng: random.Random, drawn: Drawn, chance: float) -> Filter:
    """(words with a leading space, a WHERE clause), or two empty strings."""
    if rng.random() >= chance:
        return "", ""
    text, query = some_filter(rng, drawn)
    return f" {text}", f" WHERE {query}"
