"""The tasks: real ones from the folder that COMPOSER_DATA names, or three tiny ones made here."""

import hashlib
import random
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from experts.errors import DataError
from experts.mixer.training.data import Example

SOURCES = ("lora_mixer_tasks", "task_text")
MIN_HELD_OUT = 30
NEVER_TRAINED = ("bbh/", "code/", "humaneval")
"""BBH asks to stay out of training corpora; HumanEval's tests are not here."""


@dataclass(frozen=True, slots=True)
class Task:
    """A task's examples, disjoint; `instruction` says what it asks for, if its source does."""

    name: str
    train: tuple[Example, ...]
    test: tuple[Example, ...]
    instruction: str = ""


def real_tasks(data: Path, *, tests: int, longest: int = 700) -> list[Task]:
    """Every task of the two sources that can be trained on and whose prompts are short enough for
    a CPU; its prompts come without its instruction, so that its identity is hidden.

    Raises:
        DataError: the folder lacks the sources.
    """
    import pyarrow.parquet as pq

    rows: dict[str, list[tuple[str, str]]] = defaultdict(list)
    instructions: dict[str, str] = {}
    seen: dict[str, str] = {}
    for source in SOURCES:
        path = data / source / "prompts.parquet"
        if not path.is_file():
            raise DataError(f"{path} is missing: name the folder of the data in COMPOSER_DATA")
        for row in pq.read_table(path).to_pylist():
            name = str(row["category"])
            if name.startswith(NEVER_TRAINED) or not row["answer"]:
                continue
            # The same question may stand in several sources: it belongs to the first.
            if seen.setdefault(row["core_key"], name) != name or len(row["prompt"]) > longest:
                continue
            rows[name].append((row["prompt"], row["answer"].strip()))
            instructions[name] = row.get("instruction") or row.get("description") or ""
    return [
        _split(name, pairs, instructions[name], tests)
        for name, pairs in sorted(rows.items())
        if len(pairs) >= 80
    ]


def held_out_tasks(data: Path, *, tests: int, longest: int = 700) -> list[Task]:
    """BBH's short tasks, to be graded on only."""
    import pyarrow.parquet as pq

    rows: dict[str, list[Example]] = defaultdict(list)
    for row in pq.read_table(data / "task_text" / "prompts.parquet").to_pylist():
        name = str(row["category"])
        if name.startswith("bbh/") and row["answer"] and len(row["prompt"]) <= longest:
            rows[name].append(Example(name, row["prompt"], row["answer"].strip()))
    return [
        Task(name, (), tuple(examples[:tests]))
        for name, examples in sorted(rows.items())
        if len(examples) >= MIN_HELD_OUT
    ]


def _split(name: str, pairs: list[tuple[str, str]], instruction: str, tests: int) -> Task:
    """By a hash of each prompt, so that a prompt's side never changes."""
    pairs = sorted(dict(pairs).items(), key=lambda pair: hashlib.sha256(pair[0].encode()).digest())
    held = min(tests, len(pairs) // 3)
    examples = tuple(Example(name, prompt, answer) for prompt, answer in pairs)
    return Task(name, examples[held:], examples[:held], instruction)


def smoke_tasks(seed: int = 0) -> list[Task]:
    """Three tasks that a small model learns in a minute, told apart by their wording."""
    rng = random.Random(seed)
    good = ("fine", "lovely", "great", "splendid", "delightful", "superb")
    bad = ("awful", "dull", "poor", "dreadful", "tedious", "bad")
    things = ("film", "meal", "trip", "book", "song", "game", "walk", "play")
    made: dict[str, list[Example]] = defaultdict(list)
    for thing in things:
        for word in (*good, *bad):
            label = "plus" if word in good else "minus"
            made["mood"].append(Example("mood", f"The {thing} was {word}.", label))
    for number in rng.sample(range(10, 1000), 96):
        label = "even" if number % 2 == 0 else "odd"
        made["parity"].append(Example("parity", f"Number {number}", label))
    for thing in things:
        for count in range(1, 13):
            label = "few" if count < 5 else "many"
            made["amount"].append(Example("amount", f"{count} times a {thing}", label))
    tasks = []
    for name, rows in made.items():
        rng.shuffle(rows)
        tasks.append(Task(name, tuple(rows[24:]), tuple(rows[:24]), f"Judge the {name}."))
    return tasks
