"""Write the training data of the demo adapters.

`python -m experts.demo.make_data --out DIR [--seed 0] [--without DIR]` writes `NAME.train.jsonl`
and `NAME.heldout.jsonl` for every adapter: a line is an `Example`, whose own answer passes its
check. Everything comes from templates in this package and a seed. The prompts that adapters are
judged by are read only to leave out an example that happens to be one of them (`--without`).
"""

from __future__ import annotations

import argparse
import json
import random
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from experts.demo.data_arithmetic import arithmetic
from experts.demo.data_common import Example, Writer
from experts.demo.data_extraction import extraction
from experts.demo.data_sql import sql
from experts.demo.data_triage import triage
from experts.demo.data_word_problems import word_problem

HELD_OUT = 100


@dataclass(frozen=True)
class DataSet:
    """What one adapter learns from: writers with the number of training examples of each."""

    name: str
    writers: tuple[tuple[Writer, int], ...]

    @property
    def categories(self) -> tuple[str, ...]:
        return CATEGORIES[self.name]


CATEGORIES = {
    "extract": ("extraction",),
    "maths": ("arithmetic", "word_problem"),
    "sql": ("sql",),
    "triage": ("triage",),
}
DATA_SETS = (
    DataSet("extract", ((extraction, 5000),)),
    DataSet("maths", ((arithmetic, 8000), (word_problem, 8000))),
    DataSet("sql", ((sql, 6000),)),
    DataSet("triage", ((triage, 6000),)),
)


def write_examples(data: DataSet, seed: int, share: float = 1.0) -> list[Example]:
    """Distinct examples in a shuffled order, one for each seed; `share` shrinks the set."""
    rng = random.Random(f"{data.name}:{seed}")
    seen: dict[str, Example] = {}
    for writer, count in data.writers:
        target = len(seen) + max(1, round(count * share))
        for _ in range(count * 20):
            if len(seen) == target:
                break
            example = writer(rng)
            seen.setdefault(example.prompt, example)
    examples = list(seen.values())
    rng.shuffle(examples)
    return examples


def normalised(prompt: str) -> str:
    """The prompt's words and numbers, without case and punctuation."""
    return " ".join(re.findall(r"\w+", prompt.casefold()))


def read_prompts(folder: Path) -> frozenset[str]:
    """The normalised prompts of a folder's JSONL files."""
    return frozenset(
        normalised(json.loads(line)["prompt"])
        for file in sorted(folder.glob("*.jsonl"))
        for line in file.read_text(encoding="utf-8").splitlines()
    )


def write_file(path: Path, examples: list[Example]) -> None:
    lines = [json.dumps(asdict(example), ensure_ascii=False) for example in examples]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_all(
    out: Path, seed: int, share: float = 1.0, without: frozenset[str] = frozenset()
) -> None:
    """Both files of every adapter; the held-out examples are the first of the shuffled ones."""
    out.mkdir(parents=True, exist_ok=True)
    for data in DATA_SETS:
        examples = [
            example
            for example in write_examples(data, seed, share)
            if normalised(example.prompt) not in without
        ]
        held_out = min(HELD_OUT, len(examples) // 5)
        write_file(out / f"{data.name}.heldout.jsonl", examples[:held_out])
        write_file(out / f"{data.name}.train.jsonl", examples[held_out:])
        print(f"{data.name}: {len(examples) - held_out} to train on, {held_out} held out")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the demo adapters' training data.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--without", type=Path, help="folder of JSONL files whose prompts are left out"
    )
    args = parser.parse_args()
    without = read_prompts(args.without) if args.without else frozenset()
    write_all(args.out, args.seed, without=without)


if __name__ == "__main__":
    main()
