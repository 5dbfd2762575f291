"""Questions about one or two tables; the answer is one SQLite SELECT."""

# ruff: noqa: S608 - the queries are texts to learn from, made of our own words

from __future__ import annotations

import random
import sqlite3
from contextlib import closing

from experts.demo.data_common import Example, weighted
from experts.demo.sql_questions import SINGLE, Question, a_measure, phrase, plural
from experts.demo.sql_schema import (
    PAIRS,
    TABLES,
    Drawn,
    draw_table,
    filled,
    literal,
    random_number,
    shown_schema,
)


def joined(rng: random.Random, parent: Drawn, child: Drawn, key: str) -> Question:
    """A question over both tables, the child holding the parent's id under `key`."""
    one, many = parent.table.one, child.table.many
    name = f"{parent.name}.{parent.label.name}"
    title, titles = phrase(parent.label), plural(phrase(parent.label))
    parents = parent.table.many
    join = f"{parent.name} JOIN {child.name} ON {child.name}.{key} = {parent.name}.id"
    column, source = a_measure(rng, child)
    kind = rng.random()
    if kind < 0.3:
        question = rng.choice(
            (
                f"How many {many} does each {one} have? Show the {one}'s {title}.",
                f"Show each {one}'s {title} with the number of their {many}.",
                f"Count the {many} per {one} {title}.",
            )
        )
        return Question(question, f"SELECT {name}, COUNT(*) FROM {join} GROUP BY {parent.name}.id")
    if kind < 0.5 and source.summed:
        question = rng.choice(
            (
                f"What is the total {source.phrase} of the {many} per {one} {title}?",
                f"Show every {one}'s {title} and the total {source.phrase} of their {many}.",
            )
        )
        return Question(
            question,
            f"SELECT {name}, SUM({child.name}.{column.name}) FROM {join} GROUP BY {parent.name}.id",
        )
    if kind < 0.62:
        question = rng.choice(
            (
                f"Which {parents} have no {many}? Show the {title}.",
                f"List the {titles} of {parents} without any {many}.",
            )
        )
        return Question(
            question,
            f"SELECT {parent.label.name} FROM {parent.name} "
            f"WHERE id NOT IN (SELECT {key} FROM {child.name})",
        )
    parent_name = rng.choice(parent.table.label.values.split("|"))
    if kind < 0.75:
        question = rng.choice(
            (
                f"How many {many} does {parent_name} have?",
                f"Count the {many} of the {one} {parent_name}.",
            )
        )
        return Question(
            question, f"SELECT COUNT(*) FROM {join} WHERE {name} = {literal(parent_name)}"
        )
    wanted, words = column, source.phrase
    if child.of_kind("label"):
        wanted, words = child.label, phrase(child.label)
    detail = f"{child.name}.{wanted.name}"
    if kind < 0.88:
        question = rng.choice(
            (
                f"List the {words} of every {child.table.one} with the {title} of its {one}.",
                f"Show the {words} of all {many} together with the {one}'s {title}.",
            )
        )
        return Question(question, f"SELECT {detail}, {name} FROM {join}")
    value = random_number(rng, source)
    question = rng.choice(
        (
            f"List the {titles} of {parents} that have {many} with a {source.phrase} "
            f"above {value}, each once.",
            f"Which {parents} have a {child.table.one} with a {source.phrase} "
            f"over {value}? Show each {title} once.",
        )
    )
    return Question(
        question, f"SELECT DISTINCT {name} FROM {join} WHERE {child.name}.{column.name} > {value}"
    )


FILLS = 20
LAYOUTS = (
    "{schema}\n\n{question}",
    "{schema}\n{question}",
    "Schema:\n{schema}\n\nQuestion: {question}",
    "Schema: {schema}\nQuestion: {question}\nSQL:",
    "Given the schema\n{schema}\nwrite a SQLite query: {question}",
    "{schema}\n\nWrite a SQL query for this: {question}",
    "{question}\n\n{schema}",
    "Write SQL. {question}\nTables: {schema}",
    "{schema}\n\n{question} Answer with one SELECT statement.",
    "{schema}\nWrite one SQLite SELECT: {question}",
    "I have this table:\n{schema}\n\nSQL query please: {question}",
    "Turn the question into SQL.\n{schema}\nQ: {question}",
    "SQL for: {question}\nSchema: {schema}",
    "{schema}\n-- {question}",
    "Database:\n{schema}\n\n{question} Give only the SQL.",
    "Using SQLite and {schema}\n{question}",
    "Write a query: {question} The schema is: {schema}",
    "{schema}\nquery: {question}",
)


def telling_rows(rng: random.Random, tables: list[Drawn], query: str) -> str | None:
    """DDL and rows of which the query selects some; None when chance brings none."""
    for _ in range(FILLS):
        setup = " ".join(filled(rng, drawn, query) for drawn in tables)
        with closing(sqlite3.connect(":memory:")) as database:
            database.executescript(setup)
            if any(row != (None,) for row in database.execute(query)):
                return setup
    return None


def sql(rng: random.Random) -> Example:
    """One schema, one question, one SELECT."""
    by_name = {table.one: table for table in TABLES}
    if rng.random() < 0.2:
        parent_name, child_name, keys = rng.choice(PAIRS)
        key = rng.choice(keys.split("|"))
        parent = draw_table(rng, by_name[parent_name])
        child = draw_table(rng, by_name[child_name], key)
        if not parent.of_kind("id") or parent.name == child.name:
            return sql(rng)
        tables = [parent, child]
        question = joined(rng, parent, child, key)
        if rng.random() < 0.15:
            question = weighted(rng, SINGLE)(rng, parent)
    else:
        tables = [draw_table(rng, rng.choice(TABLES))]
        question = weighted(rng, SINGLE)(rng, tables[0])
    setup = telling_rows(rng, tables, question.query)
    if setup is None:
        return sql(rng)
    text = question.text
    if rng.random() < 0.15:
        text = text[0].lower() + text[1:]
    schema = shown_schema(rng, tables)
    prompt = rng.choice(LAYOUTS).format(schema=schema, question=text)
    check: dict[str, object] = {"kind": "sql", "setup": setup, "query": question.query}
    return Example("sql", prompt, question.query, check)
