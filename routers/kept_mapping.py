"""Training on category labels alone: a new category router under the mapping that is there.

Labels say nothing of how well an expert answers, so no score is made of them: the mapping of the
base version stays as it is.
"""

from dataclasses import replace

import numpy as np

from routers.dataset import TaskData
from routers.mapping import Mapping
from routers.two_step import TwoStepRouter


def with_kept_scores(data: TaskData, mapping: Mapping) -> TaskData:
    """The data with what the mapping expects of its experts on each prompt, as inferred scores."""
    row = {category: i for i, category in enumerate(mapping.categories)}
    scores = np.array(
        [mapping.by_category[row[c]] if c in row else mapping.overall for c in data.categories]
    )
    return replace(
        data,
        experts=mapping.experts,
        scores=scores,
        inferred=np.ones(scores.shape, dtype=np.bool_),
    )


def keep_mapping(router: TwoStepRouter, mapping: Mapping) -> tuple[TwoStepRouter, list[str]]:
    """The router with the base's mapping, and what a person should know of it.

    A category that the base does not know gets the scores expected of prompts of any category.
    """
    categories = router.category_router.categories
    row = {category: i for i, category in enumerate(mapping.categories)}
    table = np.array(
        [mapping.by_category[row[c]] if c in row else mapping.overall for c in categories]
    )
    notes = ["no outcomes in the data: the experts' scores are those of the base version"]
    notes += [
        f"category '{c}' is new and nobody was scored on it: experts have their overall scores"
        for c in categories
        if c not in row
    ]
    notes += [
        f"category '{c}' of the base version has no prompts in the data: it is no longer predicted"
        for c in mapping.categories
        if c not in categories
    ]
    kept = Mapping(categories, mapping.experts, table, mapping.overall)
    return replace(router, mapping=kept), notes
