"""A training in its own process: what it is told, what it tells, and its work.

All of it is files in one folder: `job.json` says what to do, `progress.jsonl` grows meanwhile, and
`result.json` with the folder `artefact` is there at the end.
"""

import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from experts.errors import ComposerError
from experts.spec import ExpertSpec
from routers.encoders import Backend

JOB = "job.json"
PROGRESS = "progress.jsonl"
RESULT = "result.json"
ARTEFACT = "artefact"
NICENESS = 10
"""Answers come first: a training takes what the gateway and the engines leave."""


class Job(BaseModel):
    """`base` is the artefact of the version that is live."""

    model_config = ConfigDict(frozen=True)

    composition: str
    files: tuple[Path, ...]
    specs: tuple[ExpertSpec, ...]
    base: Path | None = None
    quality_weight: float = 1.0
    backend: Backend
    cache_dir: Path


class Step(BaseModel):
    """A line of `progress.jsonl`."""

    share: float | None = None
    line: str | None = None


class Result(BaseModel):
    """`error` says why there is no artefact."""

    figures: dict[str, Any] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()
    error: str = ""


def run_job(folder: Path) -> bool:
    """Do the work; whether it succeeded."""
    os.nice(NICENESS)
    job = Job.model_validate_json((folder / JOB).read_bytes())
    try:
        result = _train(job, folder)
    except ComposerError as error:
        result = Result(error=error.message)
    staged = folder / f"{RESULT}.tmp"
    staged.write_text(result.model_dump_json())
    staged.replace(folder / RESULT)
    return not result.error


def _train(job: Job, folder: Path) -> Result:
    from composer.train import train_artefact
    from routers.artefact import load_artefact
    from routers.encoders import load_encoder

    with (folder / PROGRESS).open("a", buffering=1) as stream:

        def tell(step: Step) -> None:
            stream.write(step.model_dump_json(exclude_none=True) + "\n")

        tell(Step(line="loading the encoder"))
        trained = train_artefact(
            job.files,
            {spec.id: spec for spec in job.specs},
            load_encoder(job.backend, job.cache_dir, threads=1),
            folder / ARTEFACT,
            job.composition,
            lambda line: tell(Step(line=line)),
            base=load_artefact(job.base) if job.base is not None else None,
            quality_weight=job.quality_weight,
            on_share=lambda share: tell(Step(share=share)),
        )
    return Result(figures=trained.figures, notes=trained.notes)
