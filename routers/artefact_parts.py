"""A router taken apart into plain settings and named arrays, and put together again.

Arrays are checked against one another before anything is built of them: their shapes share sizes,
which a damaged or foreign file does not.
"""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from routers.category import (
    CategoryModel,
    CategoryRouter,
    LinearModel,
    NeighbourModel,
    PerceptronModel,
)
from routers.kept_rows import KeptRows
from routers.mapping import Mapping as ExpertMapping
from routers.neighbourhood import Neighbourhood
from routers.predictors import (
    Coefficients,
    KernelPredictor,
    LinearPredictor,
    NeighbourPredictor,
)
from routers.stack import Stack
from routers.text_features import BUCKETS, N_FORMAT, TextFeatures
from routers.two_step import TwoStepRouter

Array = NDArray[Any]
Shape = tuple[int | str, ...]
"""Sizes; a name stands for a size that is the same wherever the name occurs."""


class ModelSettings(BaseModel):
    """Which category model; `k` and `sharpness` are of nearest neighbours."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["linear", "neighbours", "perceptron"] = "linear"
    k: int = Field(default=1, ge=1)
    sharpness: float = Field(default=1.0, gt=0)


class StackSettings(BaseModel):
    """Weights of the stack; a part without a place here is not in it."""

    model_config = ConfigDict(extra="forbid")

    best: int = Field(ge=0)
    margin: float = Field(ge=0)
    map_weight: float
    linear_weight: float | None = None
    kernel_weight: float | None = None
    kernel_gamma: float = Field(default=1.0, gt=0)
    neighbour_weight: float | None = None
    neighbour_k: int = Field(default=1, ge=1)
    joined: bool = False
    categories_joined: bool = False


class RouterSettings(BaseModel):
    """All of a router that is not an array. The defaults are what schema 1 had."""

    model_config = ConfigDict(extra="forbid")

    model: ModelSettings = ModelSettings()
    temperature: float = Field(gt=0)
    min_probability: float
    min_familiarity: float
    certainty_weight: float = Field(default=0.0, ge=0)
    similar: int = Field(default=1, ge=1)
    projected: bool = False
    text: bool = False
    kept: bool = False
    stack: StackSettings | None = None


class UnfitArrays(ValueError):
    """The arrays of a file don't fit its settings or one another."""


def take_apart(router: TwoStepRouter) -> tuple[RouterSettings, dict[str, Array]]:
    """Settings and arrays of a router."""
    step, mapping, text, stack = (
        router.category_router,
        router.mapping,
        router.text_features,
        router.stack,
    )
    model, arrays = _model_apart(step.model)
    arrays |= {"anchors": step.neighbourhood.anchors}
    if step.neighbourhood.projection is not None:
        arrays["projection"] = step.neighbourhood.projection
    arrays |= {"by_category": mapping.by_category, "overall": mapping.overall}
    if text is not None:
        arrays |= {
            "text_idf": text.idf,
            "text_topics": text.projection,
            "text_centre": text.centre,
            "text_scale": text.scale,
        }
    if router.kept is not None:
        arrays |= {
            "kept_embeddings": router.kept.embeddings,
            "kept_text": router.kept.text_rows,
            "kept_codes": router.kept.codes,
            "kept_scores": router.kept.scores,
        }
    settings = RouterSettings(
        model=model,
        temperature=step.temperature,
        min_probability=step.min_probability,
        min_familiarity=step.min_familiarity,
        certainty_weight=step.certainty_weight,
        similar=step.neighbourhood.k,
        projected=step.neighbourhood.projection is not None,
        text=text is not None,
        kept=router.kept is not None,
        stack=_stack_apart(stack, arrays) if stack is not None else None,
    )
    return settings, arrays


def put_together(
    settings: RouterSettings,
    arrays: Mapping[str, Array],
    categories: tuple[str, ...],
    experts: tuple[str, ...],
    dimension: int,
) -> TwoStepRouter:
    """The router of these settings and arrays.

    Raises:
        UnfitArrays: an array is missing, too many, of a wrong shape, or holds what is no number.
    """
    _check(settings, arrays, len(categories), len(experts), dimension)
    text = (
        TextFeatures(
            arrays["text_idf"], arrays["text_topics"], arrays["text_centre"], arrays["text_scale"]
        )
        if settings.text
        else None
    )
    step = CategoryRouter(
        categories=categories,
        model=_model_together(settings.model, arrays, len(categories)),
        temperature=settings.temperature,
        neighbourhood=Neighbourhood(arrays["anchors"], arrays.get("projection"), settings.similar),
        min_probability=settings.min_probability,
        min_familiarity=settings.min_familiarity,
        certainty_weight=settings.certainty_weight,
    )
    mapping = ExpertMapping(categories, experts, arrays["by_category"], arrays["overall"])
    stack = _stack_together(settings.stack, arrays) if settings.stack is not None else None
    kept = (
        KeptRows(
            arrays["kept_embeddings"],
            arrays["kept_text"],
            arrays["kept_codes"],
            arrays["kept_scores"],
        )
        if settings.kept
        else None
    )
    return TwoStepRouter(step, mapping, text, stack, kept)


def _model_apart(model: CategoryModel) -> tuple[ModelSettings, dict[str, Array]]:
    if isinstance(model, LinearModel):
        return ModelSettings(), {
            "coefficients": model.coefficients,
            "intercepts": model.intercepts,
        }
    if isinstance(model, NeighbourModel):
        settings = ModelSettings(kind="neighbours", k=model.k, sharpness=model.sharpness)
        return settings, {"voters": model.anchors, "votes": model.labels}
    if isinstance(model, PerceptronModel):
        return ModelSettings(kind="perceptron"), {
            "hidden": model.hidden,
            "hidden_bias": model.hidden_bias,
            "output": model.output,
            "output_bias": model.output_bias,
        }
    raise TypeError(f"no way to save a {type(model).__name__}")


def _model_together(
    settings: ModelSettings, arrays: Mapping[str, Array], n_categories: int
) -> CategoryModel:
    if settings.kind == "linear":
        return LinearModel(arrays["coefficients"], arrays["intercepts"])
    if settings.kind == "neighbours":
        return NeighbourModel(
            arrays["voters"], arrays["votes"], n_categories, settings.k, settings.sharpness
        )
    return PerceptronModel(
        arrays["hidden"], arrays["hidden_bias"], arrays["output"], arrays["output_bias"]
    )


def _stack_apart(stack: Stack, arrays: dict[str, Array]) -> StackSettings:
    arrays["centre"] = stack.centre
    if stack.category_margins is not None:
        arrays["category_margins"] = stack.category_margins
    joined = stack.margins is not None and stack.shifts is not None
    if stack.margins is not None and stack.shifts is not None:
        arrays |= {"margins": stack.margins, "shifts": stack.shifts}
    settings = StackSettings(
        best=stack.best,
        margin=stack.margin,
        map_weight=stack.map_weight,
        joined=joined,
        categories_joined=stack.category_margins is not None,
    )
    if stack.linear is not None:
        settings.linear_weight = stack.linear_weight
        arrays |= _coefficients_apart("linear", stack.linear.coefficients)
    if stack.kernel is not None:
        settings.kernel_weight, settings.kernel_gamma = stack.kernel_weight, stack.kernel.gamma
        arrays |= _coefficients_apart("kernel", stack.kernel.coefficients)
        arrays["landmarks"] = stack.kernel.landmarks
    if stack.neighbours is not None:
        settings.neighbour_weight = stack.neighbour_weight
        settings.neighbour_k = stack.neighbours.neighbourhood.k
        arrays["neighbours"] = stack.neighbours.neighbourhood.anchors
        if stack.neighbours.neighbourhood.projection is not None:
            arrays["neighbour_projection"] = stack.neighbours.neighbourhood.projection
        arrays["neighbour_scores"] = stack.neighbours.scores
        if stack.neighbours.spread is not None:
            arrays["neighbour_spread"] = stack.neighbours.spread
    return settings


def _stack_together(settings: StackSettings, arrays: Mapping[str, Array]) -> Stack:
    return Stack(
        centre=arrays["centre"],
        best=settings.best,
        margin=settings.margin,
        map_weight=settings.map_weight,
        linear=(
            LinearPredictor(_coefficients_together("linear", arrays))
            if settings.linear_weight is not None
            else None
        ),
        linear_weight=settings.linear_weight or 0.0,
        kernel=(
            KernelPredictor(
                arrays["landmarks"],
                settings.kernel_gamma,
                _coefficients_together("kernel", arrays),
            )
            if settings.kernel_weight is not None
            else None
        ),
        kernel_weight=settings.kernel_weight or 0.0,
        neighbours=(
            NeighbourPredictor(
                Neighbourhood(
                    arrays["neighbours"], arrays["neighbour_projection"], settings.neighbour_k
                ),
                arrays["neighbour_scores"],
                arrays.get("neighbour_spread"),
            )
            if settings.neighbour_weight is not None
            else None
        ),
        neighbour_weight=settings.neighbour_weight or 0.0,
        margins=arrays["margins"] if settings.joined else None,
        shifts=arrays["shifts"] if settings.joined else None,
        category_margins=arrays.get("category_margins"),
    )


def _coefficients_apart(name: str, coefficients: Coefficients) -> dict[str, Array]:
    found: dict[str, Array] = {
        f"{name}_weights": coefficients.weights,
        f"{name}_intercepts": coefficients.intercepts,
    }
    if coefficients.spread is not None:
        found[f"{name}_spread"] = coefficients.spread
    return found


def _coefficients_together(name: str, arrays: Mapping[str, Array]) -> Coefficients:
    return Coefficients(
        arrays[f"{name}_weights"], arrays[f"{name}_intercepts"], arrays.get(f"{name}_spread")
    )


def _shapes(
    settings: RouterSettings,
    arrays: Mapping[str, Array],
    n_categories: int,
    n_experts: int,
    dimension: int,
) -> dict[str, Shape]:
    c, e = n_categories, n_experts
    shapes: dict[str, Shape] = {"by_category": (c, e), "overall": (e,), "anchors": ("m", "p")}
    by_kind: dict[str, dict[str, Shape]] = {
        "linear": {"coefficients": (c, "d"), "intercepts": (c,)},
        "neighbours": {"voters": ("v", "d"), "votes": ("v",)},
        "perceptron": {
            "hidden": ("d", "h"),
            "hidden_bias": ("h",),
            "output": ("h", c),
            "output_bias": (c,),
        },
    }
    shapes |= by_kind[settings.model.kind]
    if settings.projected:
        shapes["projection"] = (dimension, "p")
    if settings.text:
        shapes |= {
            "text_idf": (BUCKETS,),
            "text_topics": (BUCKETS, "t"),
            "text_centre": (N_FORMAT,),
            "text_scale": (N_FORMAT,),
        }
    if settings.kept:
        shapes |= {
            "kept_embeddings": ("r", dimension),
            "kept_text": ("r", "f"),
            "kept_codes": ("r",),
            "kept_scores": ("r", e),
        }
    stack = settings.stack
    if stack is not None:
        shapes["centre"] = (e,)
        if stack.categories_joined:
            shapes["category_margins"] = (c,)
        if stack.joined:
            shapes |= {"margins": (e,), "shifts": (c, e)}
        if stack.linear_weight is not None:
            shapes |= _linear_shapes("linear", "d", e, arrays)
        if stack.kernel_weight is not None:
            shapes |= _linear_shapes("kernel", "l", e, arrays)
            shapes["landmarks"] = ("l", "d")
        if stack.neighbour_weight is not None:
            shapes["neighbours"] = ("n", "q")
            shapes["neighbour_projection"] = ("d", "q")
            spread = "neighbour_spread" in arrays
            shapes["neighbour_scores"] = ("n", "s" if spread else e)
            if spread:
                shapes["neighbour_spread"] = ("s", e)
    return shapes


def _linear_shapes(
    name: str, size: str, n_experts: int, arrays: Mapping[str, Array]
) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {f"{name}_intercepts": (n_experts,)}
    if f"{name}_spread" in arrays:
        shapes[f"{name}_weights"] = (size, f"{name} rank")
        shapes[f"{name}_spread"] = (f"{name} rank", n_experts)
    else:
        shapes[f"{name}_weights"] = (size, n_experts)
    return shapes


def _check(
    settings: RouterSettings,
    arrays: Mapping[str, Array],
    n_categories: int,
    n_experts: int,
    dimension: int,
) -> None:
    shapes = _shapes(settings, arrays, n_categories, n_experts, dimension)
    if set(arrays) != set(shapes):
        raise UnfitArrays(f"it holds {sorted(arrays)}, not {sorted(shapes)}")
    topics = arrays["text_topics"].shape[-1] if settings.text else 0
    sizes: dict[str, int] = {"d": dimension + (topics + N_FORMAT if settings.text else 0)}
    if not settings.projected:
        sizes["p"] = dimension
    for name, shape in shapes.items():
        array = arrays[name]
        fits = array.ndim == len(shape) and all(
            have == (want if isinstance(want, int) else sizes.setdefault(want, have))
            for want, have in zip(shape, array.shape, strict=True)
        )
        # An outcome that is missing is no number, and the only thing that may be none.
        bad = np.isinf(array) if name == "kept_scores" else ~np.isfinite(array)
        if not fits or array.size == 0 or bad.any():
            raise UnfitArrays(
                f"'{name}' has shape {array.shape} or values that don't fit {n_categories} "
                f"categories, {n_experts} experts and {dimension} dimensions"
            )
    votes = arrays.get("votes")
    if votes is not None and not (
        votes.dtype.kind == "i" and votes.min() >= 0 and votes.max() < n_categories
    ):
        raise UnfitArrays("'votes' are no categories")
    codes = arrays.get("kept_codes")
    if codes is not None and not (
        codes.dtype.kind == "i" and codes.min() >= -1 and codes.max() < n_categories
    ):
        raise UnfitArrays("'kept_codes' are no categories")
    stack = settings.stack
    if stack is not None and (
        stack.best >= n_experts
        or (stack.neighbour_weight is not None and stack.neighbour_k > sizes["n"])
    ):
        raise UnfitArrays("the stack names an expert or neighbours that are not there")
