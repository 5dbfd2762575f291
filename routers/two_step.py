"""The two-step router: category, then the mapping's expected score of every expert."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from routers.category import CategoryRouter
from routers.mapping import Mapping
from routers.types import GENERAL, Scores


class Router(Protocol):
    """What the pipeline asks of a trained router, of whatever method."""

    def score(self, embedding: NDArray[np.float32]) -> Scores:
        """Score every expert for one unit-norm embedding (d,)."""


@dataclass(frozen=True, slots=True)
class TwoStepRouter:
    """Scores every expert of a composition for one embedding. Pure: arrays in, scores out.

    The category distribution is used whole (soft): the expected score of an expert is its mean
    over the categories, weighted by their probabilities. An unsure prompt is scored by the
    mapping's overall row.
    """

    category_router: CategoryRouter
    mapping: Mapping

    def score(self, embedding: NDArray[np.float32]) -> Scores:
        """Score one unit-norm embedding (d,)."""
        prediction = self.category_router.predict(embedding)
        expected = (
            self.mapping.overall
            if prediction.category == GENERAL
            else self.mapping.expected(prediction.probabilities)
        )
        return Scores(
            quality=dict(zip(self.mapping.experts, expected.tolist(), strict=True)),
            probabilities=dict(
                zip(
                    self.category_router.categories,
                    prediction.probabilities.tolist(),
                    strict=True,
                )
            ),
            category=prediction.category,
            uncertainty=prediction.uncertainty,
            similarity=prediction.similarity,
            unsure_because=prediction.unsure_because,
        )
