"""Experts' instructions as GLIDER makes them: a language model reads three examples of an expert's
data and says in one sentence what the task is. The paper's own wording is not known; this is ours.
"""

import random
import re
from collections.abc import Callable, Mapping, Sequence

from experts.mixer.training.data import Example

EXAMPLES = 3
MOST_WORDS = 60
_SHOWN_CHARS = 600

Ask = Callable[[str], str]


def request_for_instruction(examples: Sequence[Example]) -> str:
    """The prompt of which the answer is an instruction."""
    shown = "\n\n".join(
        f"Input: {_cut(example.prompt)}\nOutput: {_cut(example.answer)}" for example in examples
    )
    return (
        "Here are examples of one task.\n\n"
        f"{shown}\n\n"
        "Write one general instruction of at most 30 words that tells what the task is, which "
        "skills it needs, and how the answer looks. Begin with a verb. Do not copy the examples."
    )


def write_instruction(ask: Ask, examples: Sequence[Example], seed: int = 0) -> str:
    """One sentence on what these examples have in common. What the model says is cleaned; if
    nothing is left of it, the examples themselves stand in, which embed near their like."""
    chosen = random.Random(seed).sample(list(examples), min(EXAMPLES, len(examples)))
    said = cleaned(ask(request_for_instruction(chosen)))
    return said or " ".join(_cut(example.prompt, 200) for example in chosen)


def write_instructions(
    ask: Ask, domains: Mapping[str, Sequence[Example]], known: Mapping[str, str], seed: int = 0
) -> dict[str, str]:
    """The known instructions, and new ones for the other domains."""
    return {
        name: known.get(name) or write_instruction(ask, examples, seed)
        for name, examples in domains.items()
    }


def cleaned(said: str) -> str:
    """The first paragraph without labels and marks, cut to a bounded number of words."""
    paragraph = said.strip().split("\n\n")[0].replace("\n", " ")
    marks = "*#\"' "
    plain = re.sub(r"^(instruction|task)\s*:", "", paragraph.strip(marks), flags=re.I).strip(marks)
    return " ".join(plain.split()[:MOST_WORDS])


def _cut(text: str, length: int = _SHOWN_CHARS) -> str:
    return text if len(text) <= length else text[:length] + " ..."
