"""The training prompts that a new prompt is compared with."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Neighbourhood:
    """Training prompts as `anchors` (m, p): unit rows, or their projection.

    `projection` (d, p) keeps the directions in which prompts differ most. What it leaves out counts
    as unlike, so a prompt that lies elsewhere is near to none. A prompt's similarity is its mean
    cosine to the `k` nearest.
    """

    anchors: Floats
    projection: Floats | None = None
    k: int = 1

    @property
    def dimension(self) -> int:
        """Size d of the rows that are compared."""
        return int((self.anchors.T if self.projection is None else self.projection).shape[0])

    def cosines(self, rows: Floats) -> Floats:
        """Cosines of rows (n, d) to all anchors, (n, m)."""
        rows = unit_rows(rows)
        if self.projection is not None:
            rows = rows @ self.projection
        cosines: Floats = rows @ self.anchors.T
        return cosines

    def similarity(self, rows: Floats) -> Floats:
        """Mean of the `k` highest cosines of each row, (n,)."""
        return mean_of_highest(self.cosines(rows), self.k)


def mean_of_highest(cosines: Floats, k: int) -> Floats:
    """Mean of the `k` highest values of each row, (n,)."""
    k = min(k, cosines.shape[1])
    highest: Floats = (
        cosines.max(axis=1)
        if k == 1
        else np.partition(cosines, cosines.shape[1] - k, axis=1)[:, -k:].mean(axis=1)
    )
    return highest


def unit_rows(rows: Floats) -> Floats:
    """The rows at length 1; rows of zeros stay."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: Floats = rows / np.maximum(norms, 1e-12)
    return unit
