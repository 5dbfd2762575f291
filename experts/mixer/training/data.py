"""Labelled task data as a mixer learns from it: prompt, answer, domain; tokens; batches."""

import json
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experts.errors import DataError

_MAX_LINE_BYTES = 1 << 20
_MAX_PROBLEMS = 5


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt, the answer wanted, and the domain that it belongs to."""

    domain: str
    prompt: str
    answer: str


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of one conversation; those from `start` on are the answer, which carries loss."""

    ids: tuple[int, ...]
    start: int
    domain: str


def read_examples(files: Iterable[Path]) -> tuple[list[Example], list[str]]:
    """Examples of JSONL files with `prompt`, `answer` and `category`; what is wrong with others.

    Raises:
        DataError: a file can't be read, or no line of it is good.
    """
    examples: list[Example] = []
    problems: list[str] = []
    for file in files:
        found = 0
        try:
            with file.open("rb") as lines:
                for number, line in enumerate(lines, start=1):
                    if not line.strip():
                        continue
                    example = _parsed(line)
                    if isinstance(example, Example):
                        examples.append(example)
                        found += 1
                    else:
                        problems.append(f"{file}:{number}: {example}")
        except OSError as error:
            raise DataError(f"can't read {file}: {error.strerror}") from error
        if not found:
            told = "; ".join(problems[:_MAX_PROBLEMS]) or "it is empty"
            raise DataError(f"{file} holds no usable example: {told}")
    return examples, problems


def by_domain(examples: Iterable[Example]) -> dict[str, list[Example]]:
    """The examples of every domain, domains in alphabetical order."""
    domains: dict[str, list[Example]] = {}
    for example in examples:
        domains.setdefault(example.domain, []).append(example)
    return dict(sorted(domains.items()))


def check_learnable(domains: Mapping[str, Sequence[Example]], least: int = 8) -> None:
    """
    Raises:
        DataError: a domain is (nearly) empty, or all of its answers are the same.
    """
    for domain, examples in domains.items():
        if len(examples) < least:
            raise DataError(
                f"domain '{domain}' has {len(examples)} examples, an expert needs {least} or more: "
                "add some, or leave the domain out"
            )
        if len({example.answer.strip() for example in examples}) == 1:
            raise DataError(
                f"every answer of domain '{domain}' is the same, {examples[0].answer.strip()!r}: "
                "there is nothing to learn; add examples with other answers, or leave it out"
            )


def check_mixed(examples: Sequence[Example], names: Sequence[str]) -> None:
    """
    Raises:
        DataError: the examples come from one domain alone, so that a router would learn nothing.
    """
    domains = {example.domain for example in examples}
    if len(domains) < 2:
        raise DataError(
            f"the router's data come from {', '.join(domains) or 'no domain'} alone: it learns to "
            f"tell experts ({', '.join(names)}) apart from examples of two domains or more"
        )


def balanced_sample(
    domains: Mapping[str, Sequence[Example]], number: int, seed: int
) -> list[Example]:
    """At most `number` examples, as many of each domain as there are, drawn in turn."""
    rng = random.Random(seed)
    decks = [rng.sample(list(examples), len(examples)) for examples in domains.values()]
    chosen: list[Example] = []
    while len(chosen) < number and any(decks):
        chosen += [deck.pop() for deck in decks if deck][: number - len(chosen)]
    return chosen


def encode(tokenizer: Any, examples: Iterable[Example], max_tokens: int) -> list[Encoded]:
    """Examples in the model's own chat template, or as plain text where it has none.

    Those longer than `max_tokens` are left out.

    Raises:
        DataError: none is left.
    """
    encoded = []
    for example in examples:
        head = prompt_ids(tokenizer, example.prompt)
        tail = tokenizer(example.answer, add_special_tokens=False)["input_ids"]
        ids = (*head, *tail, tokenizer.eos_token_id)
        if len(ids) <= max_tokens:
            encoded.append(Encoded(ids, len(head), example.domain))
    if not encoded:
        raise DataError(f"no example fits {max_tokens} tokens: raise the limit")
    return encoded


def prompt_ids(tokenizer: Any, prompt: str) -> list[int]:
    """Token ids of a prompt up to where the answer begins."""
    if tokenizer.chat_template is None:
        plain: list[int] = tokenizer(prompt + "\n")["input_ids"]
        return plain
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


class Batches:
    """Batches of similar length, each known by its number alone, so that training can resume.

    Every pass sorts the examples by length with a little noise, cuts, and shuffles the cuts.
    """

    def __init__(self, encoded: Sequence[Encoded], size: int, seed: int) -> None:
        self._encoded = encoded
        self._size = min(size, len(encoded))
        self._seed = seed
        self._pass = -1
        self._cuts: list[list[Encoded]] = []

    def __getitem__(self, number: int) -> list[Encoded]:
        a_pass = len(self._encoded) // self._size
        if number // a_pass != self._pass:
            self._pass = number // a_pass
            self._cuts = self._cut(random.Random(f"{self._seed}/{self._pass}"))
        return self._cuts[number % a_pass]

    def _cut(self, rng: random.Random) -> list[list[Encoded]]:
        order = rng.sample(list(self._encoded), len(self._encoded))
        usable = order[: len(order) - len(order) % self._size]
        usable.sort(key=lambda item: len(item.ids) + rng.uniform(0, 4))
        cuts = [usable[i : i + self._size] for i in range(0, len(usable), self._size)]
        rng.shuffle(cuts)
        return cuts


def majority_share(examples: Sequence[Example]) -> float:
    """Share of the commonest answer: what an answer without reading the prompt would score."""
    counts = Counter(example.answer.strip() for example in examples)
    return counts.most_common(1)[0][1] / len(examples)


def _parsed(line: bytes) -> Example | str:
    """The example of a line, or what is wrong with it."""
    if len(line) > _MAX_LINE_BYTES:
        return f"the line is over {_MAX_LINE_BYTES} bytes"
    try:
        row = json.loads(line)
    except ValueError as error:
        return f"not JSON: {error}"
    if not isinstance(row, dict):
        return "not a JSON object"
    for field in ("prompt", "answer", "category"):
        if not isinstance(row.get(field), str) or not row[field].strip():
            return f"'{field}' must be a text"
    return Example(row["category"], row["prompt"], row["answer"])
