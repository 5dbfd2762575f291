"""Labelled task data: prompts with categories, graded outcomes of experts, and preferences.

Rows that share an `id` (else the same text) are one prompt. Missing scores stay missing, never
zero. A bad line is reported with its number and reason; the good ones are kept.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from experts.errors import DataError
from routers.rows import Row, read_rows

MAX_REPORTED = 20
MAX_BAD_KEPT = 1000
MAX_BAD_AT_START = 10_000
"""A file that begins with so many bad lines, and no good one, is not task data."""

MAX_NAMES = 1000
"""So many different experts, and so many categories."""

MAX_CELLS = 200_000_000
MAX_CHARACTERS = 2 << 30
"""Of all prompts together: compressed columns can hold far more than their file's size."""


class TooMuchData(DataError):
    """The data as a whole is too large, whatever its single lines are like."""


@dataclass(frozen=True, slots=True)
class BadLine:
    file: str
    number: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.number}: {self.reason}" if self.file else self.reason


@dataclass(frozen=True, slots=True)
class Preferences:
    """Comparisons of two experts' answers to a prompt, arrays of length n.

    `prompts` are rows of the task data, `winners` and `losers` indices into `experts`; a `ties`
    entry says that neither won.
    """

    experts: tuple[str, ...]
    prompts: NDArray[np.int64]
    winners: NDArray[np.int64]
    losers: NDArray[np.int64]
    ties: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.prompts)

    @classmethod
    def of(cls, comparisons: Iterable[tuple[int, str, str, bool]]) -> "Preferences":
        """From (row of the prompt, winner, loser, tie)."""
        listed = list(comparisons)
        experts = tuple(sorted({name for _, *two, _ in listed for name in two}))
        index = {expert: i for i, expert in enumerate(experts)}
        return cls(
            experts,
            np.array([row for row, *_ in listed], dtype=np.int64),
            np.array([index[winner] for _, winner, _, _ in listed], dtype=np.int64),
            np.array([index[loser] for _, _, loser, _ in listed], dtype=np.int64),
            np.array([tie for *_, tie in listed], dtype=np.bool_),
        )

    def among(self, experts: Collection[str]) -> "Preferences":
        """The comparisons between two of these experts."""
        named = self.experts
        return Preferences.of(
            (int(p), named[w], named[loser], bool(tie))
            for p, w, loser, tie in zip(
                self.prompts, self.winners, self.losers, self.ties, strict=True
            )
            if named[w] in experts and named[loser] in experts
        )


NO_PREFERENCES = Preferences.of(())


@dataclass(frozen=True, slots=True)
class TaskData:
    """Prompts in the order of their first appearance.

    `texts`, `ids` and `categories` have length n_prompts (a category may be None); `scores` has
    shape (n_prompts, n_experts) with NaN where an outcome is missing, columns as in `experts`.
    `inferred`, of the same shape, marks scores that nobody graded but a model expects: routers may
    learn from them, and are never judged on them.
    """

    ids: tuple[str, ...]
    texts: tuple[str, ...]
    categories: tuple[str | None, ...]
    experts: tuple[str, ...]
    scores: NDArray[np.float64]
    bad_lines: tuple[BadLine, ...] = ()
    n_bad: int = 0
    preferences: Preferences = NO_PREFERENCES
    inferred: NDArray[np.bool_] | None = None

    @property
    def graded(self) -> NDArray[np.float64]:
        """The scores that were graded, NaN elsewhere: what a router may be judged on."""
        if self.inferred is None:
            return self.scores
        return np.where(self.inferred, np.nan, self.scores)


@dataclass(slots=True)
class Prompt:
    """What the rows so far say of one prompt. `text` is None until a row has brought it."""

    id: str
    text: str | None = None
    category: str | None = None
    scores: dict[str, list[float]] = field(default_factory=dict)
    comparisons: list[tuple[str, str, bool]] = field(default_factory=list)


@dataclass(slots=True)
class Collector:
    """Joins rows to prompts, and keeps account of the bad ones (the first of them whole)."""

    prompts: dict[str, Prompt] = field(default_factory=dict)
    bad_lines: list[BadLine] = field(default_factory=list)
    n_bad: int = 0
    _experts: set[str] = field(default_factory=set)
    _categories: set[str] = field(default_factory=set)
    _characters: int = 0

    def read(self, file: Path) -> Iterable[Row]:
        """Take in a file; yields each good row once it is in.

        Raises:
            DataError: the file can't be read, or begins with too many bad lines.
        """
        good = 0
        for number, row in read_rows(file):
            try:
                if isinstance(row, DataError):
                    raise row
                self.add(row)
            except TooMuchData:
                raise
            except DataError as error:
                self.report(BadLine(file.name, number, error.message))
                if not good and self.n_bad >= MAX_BAD_AT_START:
                    raise self.nothing_usable([file]) from error
            else:
                good += 1
                yield row

    def add(self, row: Row) -> None:
        """
        Raises:
            DataError: the row contradicts another of the same prompt, or names too much.
        """
        text = row.text
        if text is not None and not text.strip():
            raise DataError("the prompt is empty")
        key = row.id if row.id is not None else f"text:{text}"
        prompt = self.prompts.get(key)
        known = prompt.category if prompt is not None else None
        if known is not None and row.category not in (None, known):
            raise DataError(f"category '{row.category}' contradicts '{known}' of the same prompt")
        if prompt is not None and text is not None and prompt.text not in (None, text):
            raise DataError(f"the prompt differs from the one of the same id '{row.id}'")
        _take_in(self._categories, [row.category], "categories")
        _take_in(self._experts, [row.expert, row.winner, row.loser], "experts")
        if prompt is None:
            prompt = self.prompts[key] = Prompt(id=row.id or f"line-{len(self.prompts) + 1}")
        if prompt.text is None and text is not None:
            prompt.text = text
            self._count(text)
        if prompt.category is None:
            prompt.category = row.category
        if row.expert is not None and row.score is not None:
            prompt.scores.setdefault(row.expert, []).append(row.score)
        if row.winner is not None and row.loser is not None:
            prompt.comparisons.append((row.winner, row.loser, bool(row.tie)))

    def _count(self, text: str) -> None:
        self._characters += len(text)
        if self._characters > MAX_CHARACTERS:
            raise TooMuchData(
                f"the prompts have more than {MAX_CHARACTERS} characters: send fewer", param="data"
            )

    def report(self, line: BadLine) -> None:
        self.n_bad += 1
        if len(self.bad_lines) < MAX_BAD_KEPT:
            self.bad_lines.append(line)

    def nothing_usable(self, files: Sequence[Path]) -> DataError:
        """The error of data without a good line."""
        shown = self.bad_lines[:MAX_REPORTED]
        reasons = "; ".join(str(line) for line in shown) or "the files are empty"
        more = f"; and {self.n_bad - len(shown)} more" if self.n_bad > len(shown) else ""
        names = ", ".join(file.name for file in files)
        return DataError(f"no usable line in {names}: {reasons}{more}", param="data")


def read_task_data(files: Sequence[Path]) -> TaskData:
    """Read files (JSONL or parquet) as one data set.

    Repeated outcomes of one expert on one prompt are averaged.

    Raises:
        DataError: a file can't be read, or no good line is left.
    """
    collector = Collector()
    for file in files:
        for _ in collector.read(file):
            pass
    prompts = [prompt for prompt in collector.prompts.values() if prompt.text is not None]
    for prompt in collector.prompts.values():
        if prompt.text is None:
            reason = f"id '{prompt.id}' has outcomes but no prompt in any file"
            collector.report(BadLine("", 0, reason))
    if not prompts:
        raise collector.nothing_usable(files)
    return _assemble(prompts, collector)


def _take_in(known: set[str], names: Sequence[str | None], what: str) -> None:
    new = {name for name in names if name is not None} - known
    if len(known) + len(new) > MAX_NAMES:
        raise DataError(f"more than {MAX_NAMES} {what}: '{min(new)}' is one too many")
    known |= new


def _assemble(prompts: Sequence[Prompt], collector: Collector) -> TaskData:
    experts = tuple(sorted({expert for p in prompts for expert in p.scores}))
    if len(prompts) * len(experts) > MAX_CELLS:
        raise DataError(
            f"{len(prompts)} prompts times {len(experts)} experts are more than {MAX_CELLS} scores",
            param="data",
        )
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
        bad_lines=tuple(collector.bad_lines),
        n_bad=collector.n_bad,
        preferences=Preferences.of(
            (i, *comparison) for i, p in enumerate(prompts) for comparison in p.comparisons
        ),
    )
