"""Reading a model's answer: its words, its numbers, its first code block."""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable

_FENCE = re.compile(r"```(?:[\w+-]*[ \t]*\n)?(.*?)(?:```|\Z)", re.DOTALL)
_NUMBER = re.compile(
    r"(?P<sign>(?<![\w.)])[-+\u2212])?[$€£¥]?(?P<sign2>(?<=[$€£¥])[-\u2212])?"
    r"(?P<digits>\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?(?:[eE][-+]?\d{1,3})?"
    r"|(?<!\d)\.\d+)"
)
_WORD = re.compile(r"[^\W\d_]+(?:['\u2019./&-][^\W\d_]+)*")
_DASHES_AND_QUOTES = "\u2026\u2013\u2014\u201c\u201d\u2018\u2019"
_QUOTES = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"'})


def fold(text: str) -> str:
    """`text` without case, accents, typographic quotes and runs of white space."""
    decomposed = unicodedata.normalize("NFKD", text.translate(_QUOTES).casefold())
    return " ".join("".join(c for c in decomposed if not unicodedata.combining(c)).split())


def has_phrase(folded: str, phrase: str) -> bool:
    """Whether `phrase` occurs in the already folded text, not as a part of a longer word."""
    return re.search(rf"(?<!\w){re.escape(fold(phrase))}(?!\w)", folded) is not None


def phrases_found(answer: str, phrases: Iterable[str]) -> tuple[str, ...]:
    folded = fold(answer)
    return tuple(phrase for phrase in phrases if has_phrase(folded, phrase))


def word_count(answer: str) -> int:
    """Runs of non-space characters that hold a letter or a digit."""
    return sum(any(c.isalnum() for c in run) for run in answer.split())


def loops(answer: str) -> bool:
    """Whether the answer turns in circles: some four words in a row stand in it over four times."""
    words = fold(answer).split()
    runs = Counter(zip(words, words[1:], words[2:], words[3:], strict=False))
    return max(runs.values(), default=0) > 4


def is_prose(answer: str) -> bool:
    """Whether the answer is made of words, unlike code, a query or an object: seven in ten of its
    runs are plain words, at most a quarter of those are in capitals, and under one character in
    fifty is a bracket or an operator."""
    if sum(c in "{}[]<>=;_|" for c in answer) * 50 >= len(answer):
        return False
    runs = [run.strip(string.punctuation + _DASHES_AND_QUOTES) for run in answer.split()]
    runs = [run for run in runs if run]
    words = [run for run in runs if _WORD.fullmatch(run)]
    capitals = [word for word in words if len(word) > 1 and word.isupper()]
    return len(words) >= 0.7 * len(runs) and len(capitals) <= 0.25 * len(words)


def last_number(answer: str) -> float | None:
    """The last number in the answer, which may carry a currency sign and thousands commas."""
    numbers = list(_NUMBER.finditer(answer))
    if not numbers:
        return None
    found = numbers[-1]
    sign = found["sign"] or found["sign2"]
    value = float(found["digits"].replace(",", ""))
    return -value if sign in ("-", "\u2212") else value


def first_fence(answer: str) -> str | None:
    """What the first code fence holds (an unclosed one runs to the end), or None."""
    fence = _FENCE.search(answer)
    return fence[1] if fence else None
