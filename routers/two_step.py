"""The two-step router: category, then the expected score of every expert."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from routers.category import CategoryRouter
from routers.kept_rows import KeptRows
from routers.mapping import Mapping
from routers.stack import Stack
from routers.text_features import TextFeatures
from routers.types import GENERAL, Scores

Floats = NDArray[np.float32]


class Router(Protocol):
    """What the pipeline asks of a trained router, of whatever method."""

    def score(self, embedding: Floats, text: str) -> Scores:
        """Score every expert for one prompt: its unit-norm embedding (d,) and its routing text."""


@dataclass(frozen=True, slots=True)
class TwoStepRouter:
    """Scores every expert of a composition for one prompt. Pure: arrays and text in, scores out.

    The category distribution is used whole (soft): the expected score of an expert is its mean over
    the categories, weighted by their probabilities. A `stack` adds what is known of the very
    prompt. A prompt unlike all training prompts, and without a stack any that no category is clear
    for, is scored by the mapping's overall row. `kept` is for onboarding; routing does without it.
    """

    category_router: CategoryRouter
    mapping: Mapping
    text_features: TextFeatures | None = None
    stack: Stack | None = None
    kept: KeptRows | None = None

    @property
    def dimension(self) -> int:
        """Size of the embeddings that it takes."""
        return self.category_router.neighbourhood.dimension

    def features(self, embedding: Floats, text: str) -> Floats:
        """What category model and predictors look at, (d,)."""
        if self.text_features is None:
            return embedding
        return np.concatenate([embedding, self.text_features.row(text)])

    def score(self, embedding: Floats, text: str) -> Scores:
        """Score one prompt."""
        features = self.features(embedding, text)
        prediction = self.category_router.predict(embedding, features)
        if prediction.far or (self.stack is None and prediction.category == GENERAL):
            expected = self.mapping.overall
        else:
            expected = self.mapping.expected(prediction.probabilities)
            if self.stack is not None:
                expected = self.stack.expected(
                    expected[None, :], features[None, :], prediction.probabilities[None, :]
                )[0]
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
