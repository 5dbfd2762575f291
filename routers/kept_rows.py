"""What an artefact keeps of its training, so that experts and categories can join later."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

MAX_KEPT = 8192


@dataclass(frozen=True, slots=True)
class KeptRows:
    """Training prompts as numbers, no text: `embeddings` (n, d) and `text_rows` (n, t) in half
    precision, `codes` (n,) of their categories (-1: none), `scores` (n, n_experts) with NaN where
    an outcome is missing."""

    embeddings: NDArray[np.float16]
    text_rows: NDArray[np.float16]
    codes: NDArray[np.int64]
    scores: NDArray[np.float32]

    def keys(self) -> list[str]:
        """One key a row, equal for equal prompts."""
        return keys_of(self.embeddings)


def keys_of(embeddings: NDArray[np.float16]) -> list[str]:
    """A key for every embedding, by which equal prompts are known."""
    return [row.tobytes().hex() for row in embeddings]


def keep_rows(
    embeddings: Floats,
    text_rows: Floats,
    codes: NDArray[np.int64],
    scores: NDArray[np.float64],
    seed: int,
) -> KeptRows:
    """At most `MAX_KEPT` of the rows, chosen by chance."""
    chosen = np.sort(np.random.default_rng(seed).permutation(len(embeddings))[:MAX_KEPT])
    return KeptRows(
        embeddings[chosen].astype(np.float16),
        text_rows[chosen].astype(np.float16),
        codes[chosen],
        scores[chosen].astype(np.float32),
    )
