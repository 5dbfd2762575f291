"""Labelled task data: JSONL lines of prompts with categories and graded outcomes.

Rows that share an `id` (else the same text) are one prompt. Missing scores stay missing, never
zero. A bad line is reported with its number and reason; the good ones are kept.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from experts.errors import DataError
from routers.conversation import routing_text

MAX_LINE_BYTES = 4 << 20
MAX_REPORTED = 20


class Message(BaseModel):
    model_config = ConfigDict(extra="ignore")

    role: str
    content: str


class Row(BaseModel):
    """One line. Other fields (a check, a source, ...) are allowed and ignored."""

    model_config = ConfigDict(extra="ignore", strict=True)

    id: str | None = Field(default=None, min_length=1, max_length=512)
    prompt: str | None = Field(default=None, max_length=1_000_000)
    messages: list[Message] | None = Field(default=None, min_length=1, max_length=10_000)
    category: str | None = Field(
        default=None, min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f]+$"
    )
    expert: str | None = Field(default=None, min_length=1, max_length=256)
    score: float | None = Field(default=None, ge=0, le=1)

    @model_validator(mode="after")
    def _says_something(self) -> "Row":
        if (self.expert is None) != (self.score is None):
            raise ValueError("'expert' and 'score' belong together")
        if self.score is not None and not math.isfinite(self.score):
            raise ValueError("'score' is not a number")
        if self.prompt is None and self.messages is None and self.id is None:
            raise ValueError("a line needs 'prompt', 'messages', or the 'id' of a prompt")
        return self

    @property
    def text(self) -> str | None:
        """The text to route on: the prompt, else the last thing that the user said."""
        if self.prompt is not None:
            return self.prompt
        if self.messages is None:
            return None
        return routing_text([(message.role, message.content) for message in self.messages])


@dataclass(frozen=True, slots=True)
class BadLine:
    file: str
    number: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.number}: {self.reason}"


@dataclass(frozen=True, slots=True)
class TaskData:
    """Prompts in the order of their first appearance.

    `texts`, `ids` and `categories` have length n_prompts (a category may be None); `scores` has
    shape (n_prompts, n_experts) with NaN where an outcome is missing, columns as in `experts`.
    """

    ids: tuple[str, ...]
    texts: tuple[str, ...]
    categories: tuple[str | None, ...]
    experts: tuple[str, ...]
    scores: NDArray[np.float64]
    bad_lines: tuple[BadLine, ...] = ()


@dataclass(slots=True)
class _Prompt:
    id: str
    text: str | None = None
    category: str | None = None
    scores: dict[str, list[float]] = field(default_factory=dict)


def read_task_data(files: Sequence[Path]) -> TaskData:
    """Read JSONL files as one data set.

    Repeated outcomes of one expert on one prompt are averaged.

    Raises:
        DataError: a file can't be read, or no good line is left.
    """
    prompts: dict[str, _Prompt] = {}
    bad: list[BadLine] = []
    for file in files:
        for number, line in _lines(file):
            try:
                _add(prompts, _parse(line))
            except DataError as error:
                bad.append(BadLine(file.name, number, error.message))
    for prompt in [p for p in prompts.values() if p.text is None]:
        bad.append(BadLine("", 0, f"id '{prompt.id}' has outcomes but no prompt in any file"))
        del prompts[prompt.id]
    if not prompts:
        reasons = "; ".join(str(line) for line in bad[:MAX_REPORTED]) or "the files are empty"
        raise DataError(f"no usable line in {', '.join(f.name for f in files)}: {reasons}")
    return _assemble(list(prompts.values()), tuple(bad))


def _lines(file: Path) -> Iterable[tuple[int, bytes]]:
    try:
        with file.open("rb") as stream:
            number = 0
            while line := stream.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
                    _skip_line(stream)
                if line.strip():
                    yield number, line
    except OSError as error:
        raise DataError(f"can't read {file}: {error.strerror}", param="data") from error


def _skip_line(stream: BinaryIO) -> None:
    while (part := stream.readline(MAX_LINE_BYTES)) and not part.endswith(b"\n"):
        pass


def _parse(line: bytes) -> Row:
    if len(line) > MAX_LINE_BYTES:
        raise DataError(f"the line is longer than {MAX_LINE_BYTES} bytes")
    try:
        return Row.model_validate(json.loads(line))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{where}: {first['msg']}" if where else first["msg"]) from error
    except UnicodeDecodeError as error:
        raise DataError("not UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise DataError("not JSON") from error


def _add(prompts: dict[str, _Prompt], row: Row) -> None:
    text = row.text
    if text is not None and not text.strip():
        raise DataError("the prompt is empty")
    key = row.id if row.id is not None else f"text:{text}"
    prompt = prompts.get(key)
    known = prompt.category if prompt is not None else None
    if known is not None and row.category not in (None, known):
        raise DataError(f"category '{row.category}' contradicts '{known}' of the same prompt")
    if prompt is not None and text is not None and prompt.text not in (None, text):
        raise DataError(f"the prompt differs from the one of the same id '{row.id}'")
    if prompt is None:
        prompt = prompts[key] = _Prompt(id=row.id or f"line-{len(prompts) + 1}")
    if prompt.text is None:
        prompt.text = text
    if prompt.category is None:
        prompt.category = row.category
    if row.expert is not None and row.score is not None:
        prompt.scores.setdefault(row.expert, []).append(row.score)


def _assemble(prompts: Sequence[_Prompt], bad: tuple[BadLine, ...]) -> TaskData:
    experts = tuple(sorted({expert for p in prompts for expert in p.scores}))
    column = {expert: j for j, expert in enumerate(experts)}
    scores = np.full((len(prompts), len(experts)), np.nan)
    for i, prompt in enumerate(prompts):
        for expert, values in prompt.scores.items():
            scores[i, column[expert]] = sum(values) / len(values)
    return TaskData(
        ids=tuple(p.id for p in prompts),
        texts=tuple(p.text or "" for p in prompts),
        categories=tuple(p.category for p in prompts),
        experts=experts,
        scores=scores,
        bad_lines=bad,
    )
