"""Training a composition's router from files: the same function for `coe train`, for training jobs
and for set-up."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from experts.errors import DataError
from experts.spec import ExpertSpec
from routers.dataset import MAX_REPORTED, TaskData, read_task_data
from routers.encoders.base import Encoder
from routers.two_step import Router, TwoStepRouter
from routers.types import GENERAL
from routers.wording import normalise

if TYPE_CHECKING:
    from routers.artefact import Artefact
    from routers.mapping import Mapping as ExpertMapping
    from routers.training import Method, TrainingReport

ENCODE_BATCH = 64
EMBEDDED_SHARE = 0.8
"""Share of the work that is done when all prompts are embedded."""


@dataclass(frozen=True, slots=True)
class Trained:
    """`version` is the hash of the artefact's content, `folder` where it stands; `figures` is the
    report as the artefact keeps it."""

    folder: Path
    version: str
    report: "TrainingReport"
    figures: dict[str, Any]
    notes: tuple[str, ...]
    router: Router


def train_artefact(
    files: Sequence[Path],
    specs: Mapping[str, ExpertSpec],
    encoder: Encoder,
    out: Path,
    name: str,
    progress: Callable[[str], None],
    *,
    method: "Method" = "auto",
    base: "Artefact | None" = None,
    quality_weight: float = 1.0,
    on_share: Callable[[float], None] = lambda share: None,
) -> Trained:
    """Read, embed, fit, evaluate, save.

    With `specs`, outcomes of experts that are not among them are left out, and said so. Data with
    categories alone keeps the mapping of `base`. `quality_weight` is noted in the artefact, so that
    versions that differ in it alone are two. `on_share` hears what share of the work is done.

    Raises:
        DataError: the data can't be used; see `read_task_data` and `train_router`.
        ArtefactError: `out` can't be written.
    """
    from routers.artefact import save_artefact
    from routers.training import TrainingOptions, train_router

    progress(f"reading {len(files)} files")
    data = read_task_data(files)
    notes = [f"left out: {line}" for line in data.bad_lines[:MAX_REPORTED]]
    if data.n_bad > MAX_REPORTED:
        notes.append(f"left out: {data.n_bad - MAX_REPORTED} more bad lines")
    if specs:
        data, dropped = _only_known(data, specs)
        notes += dropped
    kept: ExpertMapping | None = None
    figures: dict[str, Any] = {}
    if len(data.preferences):
        data, figures["preferences"], told = _learn_preferences(data)
        notes += told
    elif not data.experts:
        from routers.kept_mapping import with_kept_scores

        kept = _mapping_of(base)
        data = with_kept_scores(data, kept)
    data = replace(data, texts=tuple(normalise(text) for text in data.texts))
    progress(f"embedding {len(data.texts)} prompts")
    embeddings = _embed(encoder, data.texts, lambda share: on_share(share * EMBEDDED_SHARE))
    # Scores that are kept as they are hold nothing of single prompts to learn.
    options = TrainingOptions(method=method if kept is None else "two-step")
    router, report = train_router(data, embeddings, options, progress)
    on_share(0.98)
    if kept is not None:
        from routers.kept_mapping import keep_mapping

        router, told = keep_mapping(router, kept)
        notes += told
    known = dict(specs)
    if not known and base is not None:
        known = {spec.id: spec for spec in base.manifest.specs}
    figures = {**report.to_dict(), **figures, "quality_weight": quality_weight}
    version = save_artefact(
        out,
        router,
        name=name,
        encoder=encoder.id,
        specs=[_portable(known[expert]) for expert in data.experts if expert in known],
        report=figures,
    )
    on_share(1.0)
    return Trained(out, version, report, figures, (*notes, *report.warnings), router)


def count_unsure(router: Router, encoder: Encoder, files: Sequence[Path]) -> tuple[int, int]:
    """How many of the prompts in `files`, which belong to no category, the router is unsure of;
    and how many there are.

    Raises:
        DataError: see `read_task_data`.
    """
    data = read_task_data(files)
    texts = [normalise(text) for text in data.texts]
    scores = map(router.score, encoder.encode(texts), texts)
    unsure = sum(found.category == GENERAL for found in scores)
    return unsure, len(data.texts)


def _embed(
    encoder: Encoder, texts: Sequence[str], on_share: Callable[[float], None]
) -> NDArray[np.float32]:
    batches = []
    for start in range(0, len(texts), ENCODE_BATCH):
        batches.append(encoder.encode(texts[start : start + ENCODE_BATCH]))
        on_share(min(1.0, (start + ENCODE_BATCH) / len(texts)))
    return np.concatenate(batches)


def _learn_preferences(data: TaskData) -> tuple[TaskData, dict[str, Any], list[str]]:
    from routers.preferences import infer_scores

    graded = bool(data.experts)
    data, report = infer_scores(data)
    right = "" if report.accuracy is None else f", {report.accuracy:.3f} of held-out ones foreseen"
    notes = [f"strengths of {len(data.preferences.experts)} experts from {report.n} preferences"]
    notes[0] += right
    if graded and not report.anchored:
        notes.append(
            "no compared expert has graded outcomes: win rates stand beside scores as they are"
        )
    return data, report.to_dict(), notes


def _mapping_of(base: "Artefact | None") -> "ExpertMapping":
    if base is None or not isinstance(base.router, TwoStepRouter):
        raise DataError(
            "the data has categories and no outcomes, and there is no version whose scores of the "
            "experts could be kept: add lines with 'expert' and 'score', or 'winner' and 'loser'",
            param="data",
        )
    return base.router.mapping


def _only_known(data: TaskData, specs: Mapping[str, ExpertSpec]) -> tuple[TaskData, list[str]]:
    found = {*data.experts, *data.preferences.experts}
    keep = [j for j, expert in enumerate(data.experts) if expert in specs]
    preferences = data.preferences.among(specs)
    part = {*(data.experts[j] for j in keep), *preferences.experts}
    notes = [
        f"outcomes of '{expert}' are left out: it is not among the experts"
        for expert in sorted(found - specs.keys())
    ] + [
        f"expert '{expert}' has no outcomes: it takes no part in this composition"
        for expert in specs
        if found and expert not in part
    ]
    if found and not part:
        raise DataError("none of the composition's experts has outcomes in the data")
    experts = tuple(data.experts[j] for j in keep)
    scores = data.scores[:, keep]
    return replace(data, experts=experts, scores=scores, preferences=preferences), notes


def _portable(spec: ExpertSpec) -> ExpertSpec:
    """A spec as it was written, without the adapter's place on this machine, which is no property
    of the expert, and without the name of the engine that is made for it alone."""
    if spec.adapter is not None:
        spec = spec.model_copy(update={"adapter": Path(spec.adapter.name)})
    if spec.path is not None or spec.url is not None or spec.provider is not None:
        spec = spec.model_copy(update={"engine": None})
    return spec
