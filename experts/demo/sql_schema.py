"""The tables of the sql adapter's prompts: drawn, shown in many notations, filled with rows."""

# ruff: noqa: S608 - the rows are our own words, for a database in memory

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import Any

from experts.demo.data_common import weighted
from experts.demo.templates import load_template


@dataclass(frozen=True)
class Words:
    """A column of names or of classes; `filters` say in words that it has the value `{v}`."""

    names: str
    phrase: str
    values: str
    filters: str = ""


@dataclass(frozen=True)
class Measure:
    """A numeric column; `most` and `least` are superlatives, `over` and `under` comparisons."""

    names: str
    phrase: str
    low: int
    high: int
    step: int = 1
    most: str = ""
    least: str = ""
    over: str = ""
    under: str = ""
    summed: bool = True


@dataclass(frozen=True)
class Day:
    """A date kept as text, year-month-day; `verb` is what happened on it."""

    names: str
    phrase: str
    verb: str


@dataclass(frozen=True)
class Table:
    names: str
    one: str
    many: str
    label: Words
    classes: tuple[Words, ...]
    measures: tuple[Measure, ...]
    days: tuple[Day, ...]


def read_table(entry: dict[str, Any]) -> Table:
    """A table of `templates/schemas.yaml`, where the meaning of its fields is told."""
    return Table(
        names=entry["names"],
        one=entry["one"],
        many=entry["many"],
        label=Words(**entry["label"]),
        classes=tuple(Words(**column) for column in entry["classes"]),
        measures=tuple(Measure(**column) for column in entry["measures"]),
        days=tuple(Day(**column) for column in entry.get("days", ())),
    )


SCHEMAS = load_template("schemas")
TABLES = tuple(read_table(entry) for entry in SCHEMAS["tables"])
PAIRS: list[tuple[str, str, str]] = [tuple(pair) for pair in SCHEMAS["pairs"]]


@dataclass(frozen=True)
class Column:
    """A column under the name that one prompt gives it."""

    name: str
    kind: str
    source: Words | Measure | Day | None


@dataclass(frozen=True)
class Drawn:
    """A table as one prompt shows it."""

    name: str
    table: Table
    columns: tuple[Column, ...]

    def of_kind(self, kind: str) -> list[Column]:
        return [column for column in self.columns if column.kind == kind]

    @property
    def label(self) -> Column:
        return self.of_kind("label")[0]


def draw_table(rng: random.Random, table: Table, key: str = "") -> Drawn:
    """The table with an id, its label and some of its columns.

    `key` adds a foreign key, in place of a label that would name the same.
    """
    columns = [Column(rng.choice(table.label.names.split("|")), "label", table.label)]
    classes = list(table.classes)
    measures = list(table.measures)
    if len(classes) > 1 and rng.random() < 0.4:
        classes.remove(rng.choice(classes))
    if len(measures) > 1 and rng.random() < 0.35:
        measures.remove(rng.choice(measures))
    others = [Column(rng.choice(c.names.split("|")), "class", c) for c in classes]
    others += [Column(rng.choice(m.names.split("|")), "measure", m) for m in measures]
    others += [Column(rng.choice(d.names.split("|")), "day", d) for d in table.days]
    if rng.random() < 0.3:
        rng.shuffle(others)
    columns += others
    if key:
        kept = ("label", "measure", "day") if not table.label.filters else ("measure", "day")
        columns = [Column(key, "key", None), *[c for c in columns if c.kind in kept]]
    if key or rng.random() < 0.75:
        columns.insert(0, Column("id", "id", None))
    names = [column.name for column in columns]
    if len(set(names)) < len(names):
        return draw_table(rng, table, key)
    return Drawn(rng.choice(table.names.split("|")), table, tuple(columns))


def literal(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def random_day(rng: random.Random) -> str:
    return f"{rng.randint(2018, 2025)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"


def random_number(rng: random.Random, measure: Measure) -> int:
    """A threshold inside the middle of the column's range, rounded as people round."""
    low, high = measure.low, measure.high
    value = rng.randint(low + (high - low) // 8, high - (high - low) // 8)
    if low > 1500 and high < 2100:
        return value
    for unit in (100_000, 10_000, 1000, 100, 10, 5):
        if high - low > unit * 8:
            return max(unit, round(value / unit) * unit)
    return value


SQL_TYPES = {"id": "INTEGER", "key": "INTEGER", "measure": "INTEGER"}


def sql_type(column: Column) -> str:
    return SQL_TYPES.get(column.kind, "TEXT")


def created(drawn: Drawn) -> str:
    parts = [
        f"{c.name} {sql_type(c)}" + (" PRIMARY KEY" if c.kind == "id" else "")
        for c in drawn.columns
    ]
    return f"CREATE TABLE {drawn.name} ({', '.join(parts)});"


def shown_schema(rng: random.Random, tables: list[Drawn]) -> str:
    """The tables in one of many notations, the same for all of a prompt."""
    style = weighted(
        rng,
        (
            (5, "create"),
            (4, "call"),
            (2, "call_types"),
            (2, "colon"),
            (2, "prose"),
            (2, "prose_with"),
            (1, "lines"),
            (1, "create_lines"),
            (1, "create_loose"),
        ),
    )
    shown = []
    for drawn in tables:
        names = [c.name for c in drawn.columns]
        listed = ", ".join(names[:-1]) + f" and {names[-1]}"
        if style == "create":
            shown.append(created(drawn))
        elif style == "create_lines":
            lines = ",\n".join(f"  {c.name} {sql_type(c)}" for c in drawn.columns)
            shown.append(f"CREATE TABLE {drawn.name} (\n{lines}\n);")
        elif style == "create_loose":
            loose = {"INTEGER": "INT", "TEXT": "VARCHAR(50)"}
            parts = ", ".join(f"{c.name} {loose[sql_type(c)]}" for c in drawn.columns)
            shown.append(f"CREATE TABLE {drawn.name}({parts})")
        elif style == "call":
            shown.append(f"{drawn.name}({', '.join(names)})")
        elif style == "call_types":
            parts = ", ".join(f"{c.name} {sql_type(c)}" for c in drawn.columns)
            shown.append(f"{drawn.name}({parts})")
        elif style == "colon":
            shown.append(f"{drawn.name}: {', '.join(names)}")
        elif style == "prose":
            shown.append(f"There is a table {drawn.name} with the columns {listed}.")
        elif style == "prose_with":
            shown.append(f"Table {drawn.name} has columns {', '.join(names)}.")
        else:
            bullets = "\n".join(f"- {c.name} ({sql_type(c).lower()})" for c in drawn.columns)
            shown.append(f"Table {drawn.name}:\n{bullets}")
    between = " " if style.startswith("prose") and rng.random() < 0.5 else "\n"
    return between.join(shown)


def value_of(rng: random.Random, column: Column, days: list[str]) -> str:
    source = column.source
    if isinstance(source, Words):
        return literal(rng.choice(source.values.split("|")))
    if isinstance(source, Day):
        return literal(rng.choice(days) if days and rng.random() < 0.3 else random_day(rng))
    if isinstance(source, Measure):
        return str(rng.randrange(source.low, source.high + 1, source.step))
    return str(rng.randint(1, 5))


def filled(rng: random.Random, drawn: Drawn, query: str) -> str:
    """DDL and ten rows, some with the days that the query names."""
    days = re.findall(r"'(\d{4}-\d\d-\d\d)'", query)
    rows = []
    for row in range(1, 11):
        values = [str(row) if c.kind == "id" else value_of(rng, c, days) for c in drawn.columns]
        rows.append(f"({', '.join(values)})")
    return f"{created(drawn)} INSERT INTO {drawn.name} VALUES {', '.join(rows)};"
