"""Word problems from `templates/stories.yaml`, their sums worked in the order of the story."""

from __future__ import annotations

import random
import re
from fractions import Fraction

from experts.demo.data_common import FIRST_NAMES, Example, with_typo
from experts.demo.templates import load_template
from experts.demo.working import Number, answer_text, result, shown, terminates, worked

TEMPLATE = load_template("stories")
STORIES: list[tuple[str, str, str]] = [tuple(story) for story in TEMPLATE["stories"]]
WORDS: dict[str, list[str]] = {slot: words.split() for slot, words in TEMPLATE["words"].items()}
NUMBER_WORDS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
]
OPERATION = re.compile(r"(\w+)([-+*/])(\w+)")
ASKED = (
    "",
    "",
    "",
    "",
    " Show your work briefly.",
    " Give just the number.",
    " Answer with a number.",
    " Please help me solve this.",
    " Explain briefly.",
)
OPENINGS = (
    "",
    "",
    "",
    "",
    "",
    "Solve this: ",
    "Word problem: ",
    "Help with homework: ",
    "Question: ",
)
MONEY = (("$", "", 0.7), ("\u20ac", "", 0.1), ("\u00a3", "", 0.1), ("", " dollars", 0.1))
RETRIES = 400


class Unsuitable(Exception):
    """The drawn numbers do not make a sound story; draw again."""


def operand(name: str, values: dict[str, Number], results: list[Number]) -> Number:
    """A literal, a drawn number, `_` for the last result or `_1` for the first."""
    if name.isdigit():
        return Fraction(name)
    if name == "_":
        return results[-1]
    return results[int(name[1:]) - 1] if name.startswith("_") else values[name]


def draw(rng: random.Random, spec: str) -> dict[str, Number]:
    """The numbers of a story: ranges first, then those derived from them, left to right."""
    values: dict[str, Number] = {}
    parts = spec.split()
    for part in parts:
        if ":" in part:
            name, bounds = part.split(":")
            low, high = bounds.split("-")
            values[name] = Fraction(rng.randint(int(low), int(high)))
    for part in parts:
        if "=" in part:
            name, formula = part.split("=")
            tokens = re.findall(r"\w+|[-+*/]", formula)
            value = operand(tokens[0], values, [])
            for sign, right in zip(tokens[1::2], tokens[2::2], strict=True):
                value = result(sign, value, operand(right, values, []))
            values[name] = value
    if any(value < 1 for value in values.values()):
        raise Unsuitable
    return values


def solve(steps: str, values: dict[str, Number]) -> tuple[list[str], Number]:
    """The worked steps and the result, which stay positive and exact."""
    written: list[str] = []
    results: list[Number] = []
    for step in steps.split(";"):
        match = OPERATION.fullmatch(step)
        if match is None:
            raise ValueError(f"not a step: {step!r}")
        left, sign, right = match.groups()
        text, value = worked(sign, operand(left, values, results), operand(right, values, results))
        if value <= 0 or not terminates(value) or (sign == "/" and right != "100" and value % 1):
            raise Unsuitable
        written.append(text)
        results.append(value)
    return written, results[-1]


def in_words(rng: random.Random, value: Number) -> str:
    if value <= 12 and value.denominator == 1 and rng.random() < 0.2:
        return NUMBER_WORDS[value.numerator]
    if value >= 1000 and rng.random() < 0.5:
        return f"{value.numerator:,}"
    return shown(value)


def tell(rng: random.Random, template: str, values: dict[str, Number]) -> str:
    """The story with its numbers, things, people and currency filled in."""
    before, after, _ = rng.choices(MONEY, [weight for _, _, weight in MONEY])[0]
    text = re.sub(r"\$\{(\w)\}", lambda m: f"{before}{{{m[1]}}}{after}", template)
    n, m = rng.sample(FIRST_NAMES, 2)
    filled: dict[str, str] = {"N": n, "M": m}
    filled |= {slot: rng.choice(words) for slot, words in WORDS.items()}
    for name, value in values.items():
        money = f"{before}{{{name}}}" in text and before
        plain = money or re.search(rf"\{{{name}\}} (km|cm|%|dollars)|\{{{name}\}}%", text)
        filled[name] = shown(value) if plain else in_words(rng, value)
    return text.format(**filled)


def varied(rng: random.Random, text: str) -> str:
    text = rng.choice(OPENINGS) + text[0].upper() + text[1:] + rng.choice(ASKED)
    if rng.random() < 0.12:
        text = text.lower()
    return with_typo(rng, text) if rng.random() < 0.05 else text


def word_problem(rng: random.Random) -> Example:
    """One story with one or two (seldom three) steps."""
    template, spec, steps = rng.choice(STORIES)
    for _ in range(RETRIES):
        try:
            values = draw(rng, spec)
            written, value = solve(steps, values)
        except Unsuitable:
            continue
        prompt = varied(rng, tell(rng, template, values))
        check: dict[str, object] = {"kind": "number", "value": float(value)}
        return Example("word_problem", prompt, answer_text(written, value), check)
    raise ValueError(f"no numbers suit the story {template!r}")
