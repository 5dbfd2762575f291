"""The encoder that both backends are: tokenise, run in padded batches, put the rows in order."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from routers.encoders.policy import HeadTailTokenizer

Forward = Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.float32]]
"""Token ids and attention mask, both (n, length), to normalised vectors (n, d)."""

_MAX_ROWS = 32
_MAX_BATCH_IDS = 4096


@dataclass(frozen=True)
class SentenceEncoder:
    """An `Encoder` around one forward pass."""

    id: str
    dimension: int
    tokenizer: HeadTailTokenizer
    forward: Forward

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors (n, d) of n texts, every row of length 1; no texts give (0, d)."""
        sequences = self.tokenizer.ids(texts)
        vectors = np.empty((len(sequences), self.dimension), dtype=np.float32)
        for rows in batches([len(sequence) for sequence in sequences]):
            vectors[rows] = self.forward(*padded([sequences[row] for row in rows]))
        return vectors

    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text that `encode` reads."""
        return [len(sequence) for sequence in self.tokenizer.ids(texts)]


def batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Row numbers in groups of similar length, so that a long text makes no short one long.

    A group has at most 32 rows and 4,096 ids with its padding; its longest row has at most one and
    a half times the ids of its shortest, and eight more.
    """
    group: list[int] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        length = lengths[row]
        if group and (
            len(group) == _MAX_ROWS
            or (len(group) + 1) * length > _MAX_BATCH_IDS
            or length > 1.5 * lengths[group[0]] + 8
        ):
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def padded(sequences: Sequence[Sequence[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ids and attention mask, both (n, longest), of n sequences; padding is 0 in both."""
    ids = np.zeros((len(sequences), max(map(len, sequences))), dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = 1
    return ids, mask
