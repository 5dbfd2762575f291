"""Step one of two-step routing: from an embedding to a distribution over categories.

Composition of Experts (arXiv 2412.01868) routes a prompt to a category first, because prompts
cluster by category while "the best expert" of a single prompt is a jittery label. Prompts that the
router is unsure of go to the category `general`.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from routers.types import GENERAL

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class CategoryPrediction:
    """`probabilities` (n_categories,), calibrated; `category` is `general` when unsure."""

    probabilities: Floats
    category: str
    uncertainty: float
    similarity: float
    unsure_because: str | None


@dataclass(frozen=True, slots=True)
class CategoryRouter:
    """Multinomial logistic regression with temperature scaling and two tests of uncertainty.

    `coefficients` (n_categories, d), `intercepts` (n_categories,), `anchors` (n_train, d): the
    training embeddings, unit rows. A prompt is unsure when its highest probability is below
    `min_probability`, or when its cosine to the nearest anchor is below `min_similarity`: a
    far-away prompt can look certain to a linear model, and is still unknown.
    """

    categories: tuple[str, ...]
    coefficients: Floats
    intercepts: Floats
    temperature: float
    anchors: Floats
    min_probability: float
    min_similarity: float

    def predict_proba(self, embeddings: Floats) -> Floats:
        """Calibrated probabilities (n, n_categories) of unit-norm embeddings (n, d)."""
        logits = (embeddings @ self.coefficients.T + self.intercepts) / self.temperature
        logits -= logits.max(axis=1, keepdims=True)
        exponentials = np.exp(logits)
        probabilities: Floats = exponentials / exponentials.sum(axis=1, keepdims=True)
        return probabilities

    def similarity(self, embeddings: Floats) -> Floats:
        """Cosine to the nearest training prompt, (n,)."""
        nearest: Floats = (embeddings @ self.anchors.T).max(axis=1)
        return nearest

    def predict(self, embedding: Floats) -> CategoryPrediction:
        """Predict one embedding (d,)."""
        row = embedding[None, :]
        probabilities = self.predict_proba(row)[0]
        similarity = float(self.similarity(row)[0])
        best = int(probabilities.argmax())
        unsure = self._unsure(float(probabilities[best]), similarity)
        return CategoryPrediction(
            probabilities=probabilities,
            category=GENERAL if unsure else self.categories[best],
            uncertainty=normalised_entropy(probabilities),
            similarity=similarity,
            unsure_because=unsure,
        )

    def _unsure(self, probability: float, similarity: float) -> str | None:
        if similarity < self.min_similarity:
            return f"far from all training prompts ({similarity:.2f} < {self.min_similarity:.2f})"
        if probability < self.min_probability:
            return f"no category is clear ({probability:.2f} < {self.min_probability:.2f})"
        return None


def normalised_entropy(probabilities: Floats) -> float:
    """Entropy over its maximum, in [0, 1]; 0 for a single category."""
    if probabilities.size < 2:
        return 0.0
    positive = probabilities[probabilities > 0]
    return float(-(positive * np.log(positive)).sum() / np.log(probabilities.size))
