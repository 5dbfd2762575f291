"""Training a composition's router from files: the same function for `coe train` and set-up."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from composer.score_cache import normalise
from experts.errors import DataError
from experts.spec import ExpertSpec
from routers.dataset import MAX_REPORTED, TaskData, read_task_data
from routers.encoders.base import Encoder
from routers.two_step import Router
from routers.types import GENERAL

if TYPE_CHECKING:
    from routers.training import TrainingReport

ENCODE_BATCH = 64


@dataclass(frozen=True, slots=True)
class Trained:
    """`version` is the hash of the artefact's content, `folder` where it stands."""

    folder: Path
    version: str
    report: "TrainingReport"
    notes: tuple[str, ...]
    router: Router


def train_artefact(
    files: Sequence[Path],
    specs: Mapping[str, ExpertSpec],
    encoder: Encoder,
    out: Path,
    name: str,
    progress: Callable[[str], None],
) -> Trained:
    """Read, embed, fit, evaluate, save.

    With `specs`, outcomes of experts that are not among them are left out, and said so.

    Raises:
        DataError: the data can't be used; see `read_task_data` and `train_two_step`.
        ArtefactError: `out` can't be written.
    """
    from routers.artefact import save_artefact
    from routers.training import train_two_step

    progress(f"reading {len(files)} files")
    data = read_task_data(files)
    notes = [f"left out: {line}" for line in data.bad_lines[:MAX_REPORTED]]
    if len(data.bad_lines) > MAX_REPORTED:
        notes.append(f"left out: {len(data.bad_lines) - MAX_REPORTED} more bad lines")
    if specs:
        data, dropped = _only_known(data, specs)
        notes += dropped
    progress(f"embedding {len(data.texts)} prompts")
    embeddings = np.concatenate(
        [
            encoder.encode([normalise(t) for t in data.texts[start : start + ENCODE_BATCH]])
            for start in range(0, len(data.texts), ENCODE_BATCH)
        ]
    )
    router, report = train_two_step(data, embeddings, progress=progress)
    version = save_artefact(
        out,
        router,
        name=name,
        encoder=encoder.id,
        specs=[_portable(specs[expert]) for expert in data.experts if expert in specs],
        report=report.to_dict(),
    )
    return Trained(out, version, report, (*notes, *report.warnings), router)


def count_unsure(router: Router, encoder: Encoder, files: Sequence[Path]) -> tuple[int, int]:
    """How many of the prompts in `files`, which belong to no category, the router is unsure of;
    and how many there are.

    Raises:
        DataError: see `read_task_data`.
    """
    data = read_task_data(files)
    embeddings = encoder.encode([normalise(text) for text in data.texts])
    unsure = sum(router.score(row).category == GENERAL for row in embeddings)
    return unsure, len(data.texts)


def _only_known(data: TaskData, specs: Mapping[str, ExpertSpec]) -> tuple[TaskData, list[str]]:
    keep = [j for j, expert in enumerate(data.experts) if expert in specs]
    notes = [
        f"outcomes of '{expert}' are left out: it is not among the experts"
        for expert in data.experts
        if expert not in specs
    ] + [
        f"expert '{expert}' has no outcomes: it takes no part in this composition"
        for expert in specs
        if expert not in data.experts
    ]
    if not keep:
        raise DataError("none of the composition's experts has outcomes in the data")
    experts = tuple(data.experts[j] for j in keep)
    return replace(data, experts=experts, scores=data.scores[:, keep]), notes


def _portable(spec: ExpertSpec) -> ExpertSpec:
    """A spec without the adapter's place on this machine: it is no property of the expert."""
    if spec.adapter is None:
        return spec
    return spec.model_copy(update={"adapter": Path(spec.adapter.name)})
