"""Step one of two-step routing: from a prompt's features to a distribution over categories.

Composition of Experts (arXiv 2412.01868) routes a prompt to a category first, because prompts
cluster by category while "the best expert" of a single prompt is a jittery label. Prompts that the
router is unsure of go to the category `general`.
"""

from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from routers.neighbourhood import Neighbourhood
from routers.types import GENERAL

Floats = NDArray[np.float32]


class CategoryModel(Protocol):
    """What tells categories apart. `logits` are log-probabilities up to a constant of the row."""

    def logits(self, features: Floats) -> Floats:
        """(n, d) to (n, n_categories)."""


@dataclass(frozen=True, slots=True)
class LinearModel:
    """Multinomial logistic regression: `coefficients` (n_categories, d), `intercepts`."""

    coefficients: Floats
    intercepts: Floats

    def logits(self, features: Floats) -> Floats:
        logits: Floats = features @ self.coefficients.T + self.intercepts
        return logits


@dataclass(frozen=True, slots=True)
class NeighbourModel:
    """Votes of the `k` nearest training prompts, weighted by similarity, as in the paper.

    `anchors` (m, d) are unit rows with `labels` (m,). One vote is spread over all categories, so
    that no probability is zero; `sharpness` is how fast a vote fades with the cosine.
    """

    anchors: Floats
    labels: NDArray[np.int64]
    n_categories: int
    k: int
    sharpness: float

    def logits(self, features: Floats) -> Floats:
        norms = np.linalg.norm(features, axis=1, keepdims=True)
        similarity = (features / np.maximum(norms, 1e-12)) @ self.anchors.T
        k = min(self.k, similarity.shape[1])
        nearest = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
        cosines = np.take_along_axis(similarity, nearest, axis=1)
        weights = np.exp(self.sharpness * (cosines - cosines.max(axis=1, keepdims=True)))
        votes = np.full((len(features), self.n_categories), 1 / self.n_categories)
        rows = np.broadcast_to(np.arange(len(features))[:, None], nearest.shape)
        np.add.at(votes, (rows, self.labels[nearest]), weights)
        logits: Floats = np.log(votes).astype(np.float32)
        return logits


@dataclass(frozen=True, slots=True)
class PerceptronModel:
    """One hidden layer of rectified units: `hidden` (d, h), `output` (h, n_categories)."""

    hidden: Floats
    hidden_bias: Floats
    output: Floats
    output_bias: Floats

    def logits(self, features: Floats) -> Floats:
        active = np.maximum(features @ self.hidden + self.hidden_bias, 0)
        logits: Floats = active @ self.output + self.output_bias
        return logits


@dataclass(frozen=True, slots=True)
class CategoryPrediction:
    """`probabilities` (n_categories,), calibrated; `category` is `general` when unsure.

    `far`: unsure because no training prompt is like this one, so that nothing learned applies.
    """

    probabilities: Floats
    category: str
    uncertainty: float
    similarity: float
    far: bool
    unsure_because: str | None

    @property
    def likeliest(self) -> int:
        """Index of the most probable category, whether or not it is trusted."""
        return int(self.probabilities.argmax())


@dataclass(frozen=True, slots=True)
class CategoryRouter:
    """A category model with temperature scaling and two tests of uncertainty.

    A prompt is unsure when its highest probability is below `min_probability`, or when its
    familiarity is below `min_familiarity`: a far-away prompt can look certain to a model, and is
    still unknown. Familiarity joins both: the mean cosine to the nearest training prompts, and how
    far the distribution's entropy is below its maximum, with weight `certainty_weight`.
    """

    categories: tuple[str, ...]
    model: CategoryModel
    temperature: float
    neighbourhood: Neighbourhood
    min_probability: float
    min_familiarity: float
    certainty_weight: float = 0.0

    def predict_proba(self, features: Floats) -> Floats:
        """Calibrated probabilities (n, n_categories) of feature rows (n, d)."""
        logits = self.model.logits(features) / self.temperature
        logits -= logits.max(axis=1, keepdims=True)
        exponentials = np.exp(logits)
        probabilities: Floats = exponentials / exponentials.sum(axis=1, keepdims=True)
        return probabilities

    def predict(self, embedding: Floats, features: Floats | None = None) -> CategoryPrediction:
        """Predict one prompt from its embedding (d,), and its features where the model looks at
        more than the embedding."""
        row = embedding if features is None else features
        probabilities = self.predict_proba(row[None, :])[0]
        similarity = float(self.neighbourhood.similarity(embedding[None, :])[0])
        entropy = normalised_entropy(probabilities)
        known = familiarity(similarity, entropy, self.certainty_weight)
        best = int(probabilities.argmax())
        far = known < self.min_familiarity
        unsure: str | None = None
        if far:
            unsure = (
                f"far from all training prompts ({similarity:.2f} alike, "
                f"familiarity {known:.2f} < {self.min_familiarity:.2f})"
            )
        elif probabilities[best] < self.min_probability:
            highest = float(probabilities[best])
            unsure = f"no category is clear ({highest:.2f} < {self.min_probability:.2f})"
        return CategoryPrediction(
            probabilities=probabilities,
            category=GENERAL if unsure else self.categories[best],
            # A router whose familiarity leaves the entropy out reports the entropy alone.
            uncertainty=min(max(1 - known if self.certainty_weight else entropy, 0.0), 1.0),
            similarity=similarity,
            far=far,
            unsure_because=unsure,
        )


def linear_category_router(
    categories: tuple[str, ...],
    coefficients: Floats,
    intercepts: Floats,
    anchors: Floats,
    *,
    temperature: float = 1.0,
    min_probability: float = 0.0,
    min_similarity: float = -1.0,
) -> CategoryRouter:
    """A linear model over embeddings; similarity is the cosine to the nearest of `anchors`."""
    return CategoryRouter(
        categories=categories,
        model=LinearModel(coefficients, intercepts),
        temperature=temperature,
        neighbourhood=Neighbourhood(anchors),
        min_probability=min_probability,
        min_familiarity=min_similarity,
    )


Number = TypeVar("Number", float, NDArray[np.float64])


def familiarity(similarity: Number, entropy: Number, certainty_weight: float) -> Number:
    """How well a prompt is known, at most 1: from its similarity to training prompts and the
    normalised entropy of its categories."""
    return (similarity + certainty_weight * (1 - entropy)) / (1 + certainty_weight)


def normalised_entropy(probabilities: Floats) -> float:
    """Entropy over its maximum, in [0, 1]; 0 for a single category."""
    if probabilities.size < 2:
        return 0.0
    positive = probabilities[probabilities > 0]
    return float(-(positive * np.log(positive)).sum() / np.log(probabilities.size))
