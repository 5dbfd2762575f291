"""What the writers of training data share: the example, people's typing habits, names."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from experts.demo.templates import load_template

Item = TypeVar("Item")


@dataclass(frozen=True)
class Example:
    """One training conversation; `check` is what `eval.demo.checkers` scores an answer by."""

    category: str
    prompt: str
    answer: str
    check: dict[str, object]


Writer = Callable[[random.Random], Example]

NAMES: dict[str, str] = load_template("names")
FIRST_NAMES = NAMES["first_names"].split()
LAST_NAMES = NAMES["last_names"].split()
CITIES = NAMES["cities"].split()
MONTHS = NAMES["months"].split()
WEEKDAYS = NAMES["weekdays"].split()


def weighted(rng: random.Random, choices: Sequence[tuple[float, Item]]) -> Item:
    """One of (weight, item) pairs."""
    weights, items = zip(*choices, strict=True)
    drawn: Item = rng.choices(items, weights)[0]
    return drawn


def full_name(rng: random.Random) -> str:
    return f"{rng.choice(FIRST_NAMES)} {rng.choice(LAST_NAMES)}"


def with_typo(rng: random.Random, text: str) -> str:
    """The text with one slip inside a plain lower-case word: two letters swapped, or one lost."""
    words = text.split(" ")
    places = [i for i, word in enumerate(words) if len(word) > 4 and word.isalpha()]
    places = [i for i in places if words[i].islower()]
    if not places:
        return text
    place = rng.choice(places)
    word = words[place]
    at = rng.randrange(1, len(word) - 2)
    swapped = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    words[place] = rng.choice((swapped, word[:at] + word[at + 1 :]))
    return " ".join(words)


def polite(rng: random.Random, text: str) -> str:
    """The text with a greeting, a please or a thanks around it, now and then."""
    start = rng.choice(
        ("", "", "Hi, ", "Hello! ", "Hey, ", "Please help: ", "Quick one: ", "ok so ")
    )
    end = rng.choice(("", "", " Thanks!", " Thank you.", " please", " thx", " Cheers"))
    return f"{start}{text}{end}"


def as_typed(rng: random.Random, text: str) -> str:
    """A short prompt as people type it: sometimes lower case, unpunctuated, polite, or with a slip.

    Only for prompts whose case and wording the answer does not copy.
    """
    if rng.random() < 0.15:
        text = polite(rng, text)
    if rng.random() < 0.25:
        text = text.lower()
    if rng.random() < 0.08:
        text = with_typo(rng, text)
    if rng.random() < 0.2:
        text = text.rstrip("?.!")
    return text
