"""Routing files of prompts with an artefact, no server running: `coe route --artifact`."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from experts.errors import DataError, NoEligibleExpert
from experts.spec import ExpertSpec
from routers.artefact import Artefact
from routers.encoders.base import Encoder
from routers.ranking import Conditions, rank
from routers.types import GENERAL, Policy, RouteQuery, Scores
from routers.wording import normalise

BATCH = 256
MAX_LINE_BYTES = 4 << 20


class LinePolicy(BaseModel):
    """What a line allows; the fields are those of a request's `composer` object."""

    model_config = ConfigDict(extra="forbid")

    max_params_b: float | None = Field(default=None, ge=0)
    max_price: float | None = Field(default=None, ge=0)
    quality_weight: float | None = Field(default=None, ge=0, le=1)
    experts: list[str] | None = None


class PromptLine(BaseModel):
    """One line of input; other fields are allowed and ignored."""

    model_config = ConfigDict(extra="ignore")

    id: str | int
    prompt: str = Field(min_length=1, max_length=1_000_000)
    policy: LinePolicy | None = None


def route_lines(
    artefact: Artefact, encoder: Encoder, lines: Iterable[PromptLine]
) -> Iterator[dict[str, Any]]:
    """Decisions in the order of the lines, as `coe route` writes them.

    `category` is the most probable one even where the router is unsure of it (`general`). A line
    whose policy rules everybody out has an `error` and no expert.
    """
    specs = specs_of(artefact)
    batch: list[PromptLine] = []
    for line in lines:
        batch.append(line)
        if len(batch) == BATCH:
            yield from _route(artefact, encoder, specs, batch)
            batch = []
    yield from _route(artefact, encoder, specs, batch)


def specs_of(artefact: Artefact) -> dict[str, ExpertSpec]:
    """Specs of all experts; one that training was told nothing of has no size and no price."""
    known = {spec.id: spec for spec in artefact.manifest.specs}
    return {
        expert: known.get(expert) or ExpertSpec.model_construct(id=expert, kind="remote")
        for expert in artefact.manifest.experts
    }


def read_lines(file: Path) -> Iterator[PromptLine]:
    """Lines of a JSONL file of prompts.

    Raises:
        DataError: the file can't be read, or a line is wrong; the number is told.
    """
    try:
        with file.open("rb") as stream:
            number = 0
            while line := stream.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES:
                    raise DataError(f"{file.name}:{number}: longer than {MAX_LINE_BYTES} bytes")
                if line.strip():
                    yield _parse(file, number, line)
    except OSError as error:
        raise DataError(f"can't read {file}: {error.strerror}", param="in") from error


def _parse(file: Path, number: int, line: bytes) -> PromptLine:
    try:
        return PromptLine.model_validate(json.loads(line))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{file.name}:{number}: {where}: {first['msg']}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file.name}:{number}: not JSON") from error


def _route(
    artefact: Artefact,
    encoder: Encoder,
    specs: Mapping[str, ExpertSpec],
    batch: Sequence[PromptLine],
) -> Iterator[dict[str, Any]]:
    texts = [normalise(line.prompt) for line in batch]
    for line, text, embedding in zip(batch, texts, encoder.encode(texts), strict=True):
        yield _decide(line, text, artefact.router.score(embedding, text), specs)


def _decide(
    line: PromptLine, text: str, scores: Scores, specs: Mapping[str, ExpertSpec]
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "id": line.id,
        "category": max(scores.probabilities, key=lambda c: scores.probabilities[c], default=None),
        "category_probability": scores.category_probability,
        "uncertainty": scores.uncertainty,
        "general": scores.category == GENERAL,
    }
    policy = line.policy or LinePolicy()
    allowed = frozenset(policy.experts) if policy.experts is not None else None
    query = RouteQuery(
        text,
        policy=Policy(
            max_params_b=policy.max_params_b,
            max_price=policy.max_price,
            quality_weight=policy.quality_weight,
            experts=allowed,
        ),
    )
    try:
        ranking = rank(scores.quality, specs, query, Conditions())
    except NoEligibleExpert as error:
        return {**found, "expert": None, "ranking": [], "error": error.message}
    best = ranking.experts[0]
    return {
        **found,
        "expert": best.id,
        "score": best.quality,
        "ranking": [candidate.id for candidate in ranking.experts],
    }
