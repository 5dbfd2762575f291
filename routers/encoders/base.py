"""What the routers ask of an encoder."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Encoder(Protocol):
    """Turns texts into vectors: synchronous, and the same text always gives the same vector."""

    @property
    def id(self) -> str:
        """Model, weights and long-prompt policy; artefacts made with one id refuse another."""

    @property
    def dimension(self) -> int:
        """Length d of a vector."""

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors (n, d) of n texts, every row of length 1; no texts give (0, d)."""

    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text that `encode` reads."""
