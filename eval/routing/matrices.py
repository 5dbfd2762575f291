"""Score matrices of public routing data: prompts x experts, from the folder `COMPOSER_DATA` names.

A matrix holds the experts that were scored on at least 98 % of its prompts, and the prompts that
have any score of theirs.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experts.errors import DataError
from routers.dataset import TaskData

FOLDER_VARIABLE = "COMPOSER_DATA"
MIN_SHARE = 0.98

COE_FIVE = (
    "Llama-3.1-70B-Instruct",
    "Qwen2-72B-Instruct",
    "Qwen2-7B-Instruct",
    "gemma-2-27b-it",
    "gemma-2-9b-it",
)
"""The expert pool of Composition of Experts (arXiv 2412.01868)."""


@dataclass(frozen=True, slots=True)
class Source:
    """One matrix: a data set's folder, and which of its categories and experts belong to it."""

    folder: str
    categories: tuple[str, ...] = ()
    category_prefix: str = ""
    experts: tuple[str, ...] = ()


SOURCES: dict[str, Source] = {
    "llmrouter": Source("llmrouter"),
    "mmlu_pro": Source("mmlu_pro"),
    "medagents": Source("medagents"),
    "routellm": Source("routellm", category_prefix="mmlu/"),
    "zeroeval_five": Source("zeroeval", ("gsm", "math-l5", "crux"), experts=COE_FIVE),
    "zeroeval": Source("zeroeval", ("gsm", "math-l5", "crux")),
    "routerarena": Source("routerarena"),
    "bfcl_v2": Source("bfcl_v2"),
    "alpaca_eval_2": Source("alpaca_eval_2"),
    "alpaca_eval_1": Source("alpaca_eval_1"),
    "arena_bench_v1": Source("arena_bench_v1"),
}
"""The eleven matrices that a default method is judged on."""


def data_folder(option: Path | None = None) -> Path | None:
    """The folder of public routing data: the option's, else `COMPOSER_DATA`'s, else none."""
    if option is not None:
        return option
    named = os.environ.get(FOLDER_VARIABLE)
    return Path(named) if named else None


def load_matrix(root: Path, name: str) -> TaskData:
    """Load one of `SOURCES`.

    Raises:
        DataError: unknown name, missing files, or nothing left of the matrix.
    """
    source = SOURCES.get(name)
    if source is None:
        raise DataError(f"'{name}' is no known matrix; known are: {', '.join(SOURCES)}")
    folder = root / source.folder
    prompts = read_rows(folder / "prompts.parquet", ("prompt_id", "category", "prompt"))
    prompts = [row for row in prompts if _belongs(source, row["category"])]
    scores = read_rows(folder / "scores.parquet", ("prompt_id", "model", "score"))
    return _assemble(name, source, prompts, scores)


def read_rows(file: Path, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of a parquet file.

    Raises:
        DataError: the file is missing, damaged, or lacks a column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows: list[dict[str, Any]] = pq.read_table(file, columns=list(columns)).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"can't read {file}: {error}") from error
    return rows


def _belongs(source: Source, category: str | None) -> bool:
    if source.categories and category not in source.categories:
        return False
    return not source.category_prefix or (category or "").startswith(source.category_prefix)


def _assemble(
    name: str, source: Source, prompts: list[dict[str, Any]], scores: list[dict[str, Any]]
) -> TaskData:
    row_of = {row["prompt_id"]: i for i, row in enumerate(prompts)}
    models = sorted({row["model"] for row in scores if row["prompt_id"] in row_of})
    column_of = {model: j for j, model in enumerate(models)}
    matrix: NDArray[np.float64] = np.full((len(prompts), len(models)), np.nan)
    for row in scores:
        i = row_of.get(row["prompt_id"])
        if i is not None and row["score"] is not None:
            matrix[i, column_of[row["model"]]] = row["score"]
    share = (~np.isnan(matrix)).mean(axis=0) if len(prompts) else np.zeros(len(models))
    wanted = set(source.experts) or set(models)
    keep = [j for j, m in enumerate(models) if m in wanted and share[j] >= MIN_SHARE]
    matrix = matrix[:, keep]
    rows = np.flatnonzero((~np.isnan(matrix)).any(axis=1)) if keep else np.zeros(0, int)
    if not rows.size:
        raise DataError(f"matrix '{name}': no expert has scores on {MIN_SHARE:.0%} of the prompts")
    return TaskData(
        ids=tuple(prompts[i]["prompt_id"] for i in rows),
        texts=tuple(prompts[i]["prompt"] for i in rows),
        categories=tuple(prompts[i]["category"] for i in rows),
        experts=tuple(models[j] for j in keep),
        scores=matrix[rows],
    )
