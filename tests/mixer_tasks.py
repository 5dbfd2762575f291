"""A tiny base with a tokenizer of a few words, and two tasks that it can learn in seconds."""

import json
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from experts.mixer.training.data import Example
from tests.mixer_parts import save_base

COLOURS = ("red", "blue", "green", "white")
NUMBERS = ("one", "two", "three", "four")
WORDS = ("<pad>", "<eos>", "<unk>", "name", "count", "then", "of", "the", *COLOURS, *NUMBERS)


def save_base_with_words(folder: Path) -> Path:
    # Random weights this large have something to say that an adapter can turn.
    save_base("llama", folder, initializer_range=0.4, vocab_size=len(WORDS))
    words = {word: number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(folder)
    return folder


def examples() -> list[Example]:
    """One domain answers a colour by the next colour, the other by its number. What is asked is
    the same but for the first word, so that only a token's context tells which expert is due."""
    found = []
    for number, colour in enumerate(COLOURS):
        following = COLOURS[(number + 1) % len(COLOURS)]
        for tail in ("", " then the", " of", " of the"):
            found.append(Example("colours", f"name {colour}{tail}", following))
            found.append(Example("numbers", f"count {colour}{tail}", NUMBERS[number]))
    return found


def write_examples(path: Path, rows: list[Example]) -> Path:
    lines = [
        json.dumps({"prompt": row.prompt, "answer": row.answer, "category": row.domain})
        for row in rows
    ]
    path.write_text("\n".join(lines) + "\n")
    return path
