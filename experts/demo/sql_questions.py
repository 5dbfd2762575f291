"""Questions about one table, with the SELECT that answers each."""

# ruff: noqa: S608 - the queries are texts to learn from, made of our own words

from __future__ import annotations

import random
from dataclasses import dataclass

from experts.demo.sql_filters import maybe_filter
from experts.demo.sql_schema import Column, Drawn, Measure


@dataclass(frozen=True)
class Question:
    """A question in words and the SELECT that answers it."""

    text: str
    query: str


def phrase(column: Column) -> str:
    return column.source.phrase if column.source is not None else column.name


def plural(word: str) -> str:
    if word.startswith("number of"):
        return word
    if word.endswith("y"):
        return f"{word[:-1]}ies"
    return word if word.endswith("s") else f"{word}s"


def a_measure(rng: random.Random, drawn: Drawn) -> tuple[Column, Measure]:
    column = rng.choice(drawn.of_kind("measure"))
    assert isinstance(column.source, Measure)
    return column, column.source


def listing(rng: random.Random, drawn: Drawn) -> Question:
    text, where = maybe_filter(rng, drawn, 0.95)
    label, many = drawn.label, drawn.table.many
    names = plural(phrase(label))
    question = rng.choice(
        (
            f"List the {names} of all {many}{text}.",
            f"What are the {names} of the {many}{text}?",
            f"Show the {phrase(label)} of every {drawn.table.one}{text}.",
            f"Give me the {names} of {many}{text}.",
            f"Find the {names} of {many}{text}.",
            f"Which {many} are {text.strip()}? Show the {phrase(label)}."
            if text.startswith((" in ", " from ", " by ", " older", " younger", " cheaper"))
            else f"Get the {names} of {many}{text}.",
            f"{names} of {many}{text}",
        )
    )
    if text.startswith((" who ", " that ")) and rng.random() < 0.5:
        question = f"Which {many} {text.split(maxsplit=1)[1]}?"
    return Question(question, f"SELECT {label.name} FROM {drawn.name}{where}")


def columns_wanted(rng: random.Random, drawn: Drawn) -> Question:
    text, where = maybe_filter(rng, drawn, 0.8)
    others = [c for c in drawn.columns if c.kind in ("class", "measure", "day")]
    if not others:
        return listing(rng, drawn)
    chosen = [drawn.label, *rng.sample(others, 1 if rng.random() < 0.8 else min(2, len(others)))]
    named = " and ".join(phrase(c) for c in chosen)
    if len(chosen) == 3:
        named = f"{phrase(chosen[0])}, {phrase(chosen[1])} and {phrase(chosen[2])}"
    question = rng.choice(
        (
            f"Show the {named} of all {drawn.table.many}{text}.",
            f"List {named} of {drawn.table.many}{text}.",
            f"What are the {named} of {drawn.table.many}{text}?",
            f"Get the {named} for each {drawn.table.one}{text}.",
        )
    )
    return Question(
        question, f"SELECT {', '.join(c.name for c in chosen)} FROM {drawn.name}{where}"
    )


def everything(rng: random.Random, drawn: Drawn) -> Question:
    text, where = maybe_filter(rng, drawn, 0.9)
    many = drawn.table.many
    question = rng.choice(
        (
            f"Show all columns of the {many}{text}.",
            f"Get all data about {many}{text}.",
            f"Select all {many}{text}, with every column.",
            f"Show everything about the {many}{text}.",
            f"Return the full rows of {many}{text}.",
        )
    )
    return Question(question, f"SELECT * FROM {drawn.name}{where}")


def counting(rng: random.Random, drawn: Drawn) -> Question:
    text, where = maybe_filter(rng, drawn, 0.85)
    many = drawn.table.many
    question = rng.choice(
        (
            f"How many {many} are there{text}?",
            f"How many {many}{text} are there?",
            f"Count the {many}{text}.",
            f"What is the number of {many}{text}?",
            f"Number of {many}{text}",
            f"how many {many}{text}",
        )
    )
    return Question(question, f"SELECT COUNT(*) FROM {drawn.name}{where}")


AGGREGATES = {
    "AVG": ("average {p}", "mean {p}", "average {p}"),
    "SUM": ("total {p}", "sum of the {p}", "{p} in total", "combined {p}"),
    "MAX": ("highest {p}", "maximum {p}", "largest {p}"),
    "MIN": ("lowest {p}", "minimum {p}", "smallest {p}"),
}


def aggregate(rng: random.Random, drawn: Drawn) -> Question:
    column, source = a_measure(rng, drawn)
    text, where = maybe_filter(rng, drawn, 0.55)
    name = rng.choice(
        ("AVG", "AVG", "SUM", "MAX", "MIN") if source.summed else ("AVG", "MAX", "MIN")
    )
    what = rng.choice(AGGREGATES[name]).format(p=source.phrase)
    many = drawn.table.many
    question = rng.choice(
        (
            f"What is the {what} of all {many}{text}?",
            f"What is the {what} of {many}{text}?",
            f"Find the {what} of the {many}{text}.",
            f"Compute the {what} of {many}{text}.",
            f"{what} of {many}{text}",
        )
    )
    return Question(question, f"SELECT {name}({column.name}) FROM {drawn.name}{where}")


def best(rng: random.Random, drawn: Drawn) -> Question:
    """The top one or the top few by a measure."""
    column, source = a_measure(rng, drawn)
    high = rng.random() < 0.65
    special = (source.most if high else source.least).split("|")
    text, where = maybe_filter(rng, drawn, 0.25)
    label, table = drawn.label, drawn.table
    order = f"ORDER BY {column.name} {'DESC' if high else 'ASC'}"
    word = rng.choice(
        ("highest", "highest", "largest") if high else ("lowest", "smallest", "lowest")
    )
    limit = 1 if rng.random() < 0.55 else rng.randint(2, 10)
    adjective = rng.choice(special)
    name, names = phrase(label), plural(phrase(label))
    if limit == 1:
        forms = [
            f"Which {table.one}{text} has the {word} {source.phrase}? Show its {name}.",
            f"What is the {name} of the {table.one}{text} with the {word} {source.phrase}?",
            f"Find the {name} of the {table.one} with the {word} {source.phrase}{text}.",
        ]
        if adjective:
            forms += [
                f"What is the {name} of the {adjective} {table.one}{text}?",
                f"Show the {name} of the {adjective} {table.one}{text}.",
            ]
    else:
        forms = [
            f"List the {names} of the {limit} {table.many}{text} with the {word} {source.phrase}.",
            f"Top {limit} {table.many}{text} by {source.phrase}, {word} first: show the {name}.",
        ]
        if adjective:
            forms += [
                f"Give the {names} of the {limit} {adjective} {table.many}{text}.",
                f"What are the {names} of the {limit} {adjective} {table.many}{text}?",
            ]
    return Question(
        rng.choice(forms), f"SELECT {label.name} FROM {drawn.name}{where} {order} LIMIT {limit}"
    )


def ordered(rng: random.Random, drawn: Drawn) -> Question:
    keys = [c for c in drawn.columns if c.kind in ("measure", "day", "label")]
    column = rng.choice(keys)
    text, where = maybe_filter(rng, drawn, 0.4)
    label, many = drawn.label, drawn.table.many
    down = rng.random() < 0.5
    ways: tuple[str, ...]
    if column.kind == "measure":
        ways = (
            "from highest to lowest",
            "in descending order of {p}",
            "by {p}, highest first",
        )
        if not down:
            ways = ("by {p}", "by {p} in ascending order", "by {p}, lowest first")
    elif column.kind == "day":
        ways = ("by {p}, newest first", "by {p}, latest first")
        if not down:
            ways = ("by {p}", "by {p}, oldest first", "by {p}, earliest first")
    else:
        ways = ("in reverse alphabetical order", "by {p} from Z to A")
        if not down:
            ways = ("alphabetically", "by {p} from A to Z", "in alphabetical order", "by {p}")
    way = rng.choice(ways).format(p=phrase(column))
    if way.startswith("from highest"):
        way = f"by {phrase(column)} {way}"
    wanted = label.name
    named = plural(phrase(label))
    if column is not label and rng.random() < 0.4:
        wanted, named = f"{label.name}, {column.name}", f"{phrase(label)} and {phrase(column)}"
    question = rng.choice(
        (
            f"List the {named} of all {many}{text} sorted {way}.",
            f"Show the {named} of {many}{text} ordered {way}.",
            f"Sort the {many}{text} {way} and show the {named}.",
            f"Give me the {named} of the {many}{text}, sorted {way}.",
        )
    )
    direction = " DESC" if down else rng.choice(("", "", " ASC"))
    return Question(
        question, f"SELECT {wanted} FROM {drawn.name}{where} ORDER BY {column.name}{direction}"
    )


def grouped(rng: random.Random, drawn: Drawn) -> Question:
    classes = drawn.of_kind("class")
    if not classes:
        return aggregate(rng, drawn)
    column = rng.choice(classes)
    many, kind = drawn.table.many, rng.random()
    per = phrase(column)
    if kind < 0.4:
        question = rng.choice(
            (
                f"How many {many} are there per {per}?",
                f"Count the {many} in each {per}.",
                f"Show each {per} with its number of {many}.",
                f"How many {many} does each {per} have?",
                f"Number of {many} by {per}",
            )
        )
        what = "COUNT(*)"
    elif kind < 0.75:
        measure, source = a_measure(rng, drawn)
        name = rng.choice(("AVG", "AVG", "SUM", "MAX", "MIN") if source.summed else ("AVG", "MAX"))
        words = rng.choice(AGGREGATES[name]).format(p=source.phrase)
        question = rng.choice(
            (
                f"What is the {words} per {per}?",
                f"Show the {words} of {many} for each {per}.",
                f"For each {per}, show the {words}.",
                f"Find the {words} by {per}.",
                f"List every {per} with the {words} of its {many}.",
            )
        )
        what = f"{name}({measure.name})"
    else:
        limit = rng.randint(1, 5)
        question = rng.choice(
            (
                f"Which {plural(per)} have more than {limit} {many}?",
                f"List each {per} with more than {limit} {many}.",
                f"Find the {plural(per)} that have over {limit} {many}.",
            )
        )
        return Question(
            question,
            f"SELECT {column.name} FROM {drawn.name} GROUP BY {column.name} "
            f"HAVING COUNT(*) > {limit}",
        )
    return Question(
        question, f"SELECT {column.name}, {what} FROM {drawn.name} GROUP BY {column.name}"
    )


def distinct(rng: random.Random, drawn: Drawn) -> Question:
    classes = drawn.of_kind("class")
    if not classes:
        return counting(rng, drawn)
    column = rng.choice(classes)
    words, many = plural(phrase(column)), drawn.table.many
    if rng.random() < 0.4:
        question = rng.choice(
            (
                f"How many different {words} are there?",
                f"Count the distinct {words} of the {many}.",
                f"How many unique {words} do the {many} have?",
            )
        )
        return Question(question, f"SELECT COUNT(DISTINCT {column.name}) FROM {drawn.name}")
    question = rng.choice(
        (
            f"List the different {words} of the {many}.",
            f"Which {words} occur among the {many}? List each once.",
            f"Show all distinct {words}.",
            f"List all {words} without duplicates.",
            f"What unique {words} are there?",
        )
    )
    return Question(question, f"SELECT DISTINCT {column.name} FROM {drawn.name}")


def above_average(rng: random.Random, drawn: Drawn) -> Question:
    column, source = a_measure(rng, drawn)
    label, table = drawn.label, drawn.table
    sign, word = rng.choice(((">", "above"), ("<", "below")))
    name, names = phrase(label), plural(phrase(label))
    question = rng.choice(
        (
            f"List the {names} of {table.many} with a {source.phrase} {word} average.",
            f"Which {table.many} have a {source.phrase} {word} the average? Show the {name}.",
        )
    )
    inner = f"SELECT AVG({column.name}) FROM {drawn.name}"
    return Question(
        question, f"SELECT {label.name} FROM {drawn.name} WHERE {column.name} {sign} ({inner})"
    )


SINGLE = (
    (8, listing),
    (4, columns_wanted),
    (2, everything),
    (8, counting),
    (7, aggregate),
    (8, best),
    (6, ordered),
    (7, grouped),
    (3, distinct),
    (1, above_average),
)
