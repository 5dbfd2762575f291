"""`coe onboard`: an expert, or more categories, joins an artefact; a new artefact is written."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from experts.errors import DataError
from experts.spec import ExpertSpec
from routers.artefact import Artefact, save_artefact
from routers.dataset import MAX_REPORTED, TaskData, read_task_data
from routers.encoders.base import Encoder
from routers.onboarding import Newcomer, add_expert, add_prompts
from routers.two_step import TwoStepRouter
from routers.wording import normalise

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Onboarded:
    """`newcomers` by the number of their graded prompts; `categories` that are new."""

    folder: Path
    version: str
    newcomers: tuple[Newcomer, ...]
    categories: tuple[str, ...]
    notes: tuple[str, ...]


def onboard(
    artefact: Artefact,
    specs: Sequence[ExpertSpec],
    files: Sequence[Path],
    encoder: Encoder,
    out: Path,
    progress: Progress,
) -> Onboarded:
    """Let experts and categories join.

    `specs` are the new experts; one without outcomes in the files joins as an average expert. Rows
    with outcomes of the artefact's own experts, or of new categories, are learned as well.

    Raises:
        DataError: nothing to onboard, or data that can't be used.
        ArtefactError: the artefact is of another encoder, or `out` can't be written.
    """
    router = artefact.router
    if not isinstance(router, TwoStepRouter):
        raise DataError("this router can't be extended: train it anew")
    if not specs and not files:
        raise DataError("nothing to onboard: give --expert, --data, or both")
    artefact.require_encoder(encoder.id, encoder.dimension)
    data, notes = _read(files)
    texts = [normalise(text) for text in data.texts] if data is not None else []
    if texts:
        progress(f"embedding {len(texts)} prompts")
    embeddings = encoder.encode(texts)
    report = dict(artefact.manifest.report)
    fresh: tuple[str, ...] = ()
    if data is not None:
        data = replace(data, texts=tuple(texts))
        before = set(router.category_router.categories)
        if _teaches(data, router):
            progress("fitting the prompts that joined, with those that the artefact keeps")
            router, figures = add_prompts(router, data, embeddings, progress=progress)
            report |= figures.to_dict()
            fresh = tuple(c for c in router.category_router.categories if c not in before)
    newcomers = []
    for spec in specs:
        progress(f"adding '{spec.id}'")
        router, newcomer = _add(router, spec, data, embeddings)
        newcomers.append(newcomer)
        if newcomer.n == 0:
            notes.append(f"'{spec.id}' has no outcomes: it joins as an average expert")
    known: Mapping[str, ExpertSpec] = {spec.id: spec for spec in artefact.manifest.specs}
    version = save_artefact(
        out,
        router,
        name=artefact.manifest.name,
        encoder=encoder.id,
        specs=[*known.values(), *specs],
        report=_extended(report, newcomers),
    )
    return Onboarded(out, version, tuple(newcomers), fresh, tuple(notes))


def _read(files: Sequence[Path]) -> tuple[TaskData | None, list[str]]:
    if not files:
        return None, []
    data = read_task_data(files)
    return data, [f"left out: {line}" for line in data.bad_lines[:MAX_REPORTED]]


def _teaches(data: TaskData, router: TwoStepRouter) -> bool:
    """Whether the data say something of experts that are in the router."""
    known = [j for j, expert in enumerate(data.experts) if expert in router.mapping.experts]
    return bool(known) and bool((~np.isnan(data.scores[:, known])).any())


def _add(
    router: TwoStepRouter,
    spec: ExpertSpec,
    data: TaskData | None,
    embeddings: np.ndarray[Any, np.dtype[np.float32]],
) -> tuple[TwoStepRouter, Newcomer]:
    if data is None or spec.id not in data.experts:
        return add_expert(router, spec.id, embeddings[:0], (), (), np.zeros(0))
    scores = data.scores[:, data.experts.index(spec.id)]
    rows = np.flatnonzero(~np.isnan(scores))
    return add_expert(
        router,
        spec.id,
        embeddings[rows],
        [data.texts[i] for i in rows],
        [data.categories[i] for i in rows],
        scores[rows],
    )


def _extended(report: dict[str, Any], newcomers: Sequence[Newcomer]) -> dict[str, Any]:
    """The report with what is known of the newcomers; figures of routing stay those without."""
    evidence = dict(report.get("evidence") or {})
    scored = [list(row) for row in evidence.get("scored", [])]
    for newcomer in newcomers:
        share = newcomer.n / max(len(scored), 1)
        scored = [[*row, share] for row in scored]
    if scored:
        evidence["scored"] = scored
    joined = [
        *report.get("onboarded", []),
        *({"expert": n.id, "outcomes": n.n, "error": n.error} for n in newcomers),
    ]
    return {**report, "evidence": evidence, "onboarded": joined}
