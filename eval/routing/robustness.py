"""Does a decision stay when the wording changes and the question does not?"""

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.routing.methods import Policy
from routers.encoders.base import Encoder
from routers.intervals import paired_bootstrap
from routers.wording import normalise

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

TYPO_SHARE = 0.02
COURTESY = "Could you please help me with this: "
UNKNOWN_LEAD = "My colleague came by this morning and wanted to know. "
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def typos(text: str, generator: random.Random) -> str:
    """Every 50th character, by chance, replaced, dropped, doubled or swapped with the next."""
    found: list[str] = []
    i = 0
    while i < len(text):
        if generator.random() >= TYPO_SHARE:
            found.append(text[i])
        else:
            kind = generator.randrange(4)
            if kind == 0:
                found.append(generator.choice(_LETTERS))
            elif kind == 1:
                found += [text[i], text[i]]
            elif kind == 2 and i + 1 < len(text):
                found += [text[i + 1], text[i]]
                i += 1
        i += 1
    return "".join(found)


def _spread(text: str, generator: random.Random) -> str:
    return "  " + text.replace(" ", " \n " if generator.random() < 0.5 else "   ") + "\n"


CHANGES: dict[str, Callable[[str, random.Random], str]] = {
    "2 % typos": typos,
    "courtesy before it": lambda text, _: COURTESY + text,
    "unknown lead-in": lambda text, _: UNKNOWN_LEAD + text,
    "upper case": lambda text, _: text.upper(),
    "lower case": lambda text, _: text.lower(),
    "stray white space": _spread,
}


def robustness(
    policy: Policy,
    encoder: Encoder,
    texts: Sequence[str],
    embeddings: Floats,
    scores: Doubles,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """By change: the share of unchanged decisions, and the change in score with its interval."""
    rows = np.arange(len(texts))
    before = policy(embeddings, texts).argmax(axis=1)
    found = {}
    for name, change in CHANGES.items():
        generator = random.Random(seed)
        changed = [normalise(change(text, generator)) for text in texts]
        after = policy(encoder.encode(changed), changed).argmax(axis=1)
        effect = paired_bootstrap(scores[rows, after] - scores[rows, before], 2000)
        found[name] = {
            "unchanged": float((after == before).mean()),
            "score": {"mean": effect.mean, "low": effect.low, "high": effect.high},
        }
    return found
