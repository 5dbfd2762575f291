"""The evaluation as a whole: data sets, methods, learning curves, robustness, scope."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.routing.embedded import with_embeddings
from eval.routing.matrices import SOURCES, load_matrix, read_rows
from eval.routing.measure import compare, complete_part, take
from eval.routing.methods import OWN, Fit, baselines_of, policy_of
from eval.routing.report import OWN as REFERENCE
from eval.routing.robustness import robustness
from eval.routing.scope import scope_figures
from routers.dataset import TaskData, read_task_data
from routers.encoders.base import Encoder
from routers.folds import make_folds
from routers.training import train_router

Floats = NDArray[np.float32]
Progress = Callable[[str], None]

MAX_REWORDED = 600
"""So many prompts are embedded anew for every change of wording."""

SCOPE_SOURCE = "clinc150"
OUT_OF_SCOPE = "oos"


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure. `sizes` are those of learning curves, with `draws` for each."""

    baselines: str = "all"
    folds: int = 5
    repeats: int = 1
    sizes: tuple[int, ...] = ()
    draws: int = 4
    reword: bool = False
    scope: bool = False
    seed: int = 0


def evaluate(
    data_sets: Mapping[str, TaskData],
    encoder: Encoder,
    cache_dir: Path,
    plan: Plan,
    progress: Progress,
    root: Path | None = None,
) -> dict[str, Any]:
    """Measure everything that `plan` asks for. `root` is the folder of public data, for scope.

    Raises:
        DataError: unknown baselines, or data that routing can't be judged on.
    """
    methods: dict[str, Fit] = {**OWN, **baselines_of(plan.baselines)}
    results: dict[str, Any] = {
        "encoder": encoder.id,
        "folds": plan.folds,
        "repeats": plan.repeats,
        "comparisons": [],
        "learning": [],
        "robustness": {},
        "scope": {},
    }
    for name, data in data_sets.items():
        data, embeddings = with_embeddings(data, encoder, cache_dir, progress)
        found = compare(
            name,
            data,
            embeddings,
            methods,
            folds=plan.folds,
            repeats=plan.repeats,
            seed=plan.seed,
            progress=progress,
        )
        results["comparisons"].append(found.to_dict(REFERENCE))
        if plan.sizes:
            results["learning"].append(_curve(name, data, embeddings, plan, progress))
        if plan.reword:
            progress(f"{name}: other wordings")
            results["robustness"][name] = _reworded(data, embeddings, encoder, plan.seed)
    if plan.scope and root is not None:
        progress("prompts of no category")
        results["scope"][SCOPE_SOURCE] = measure_scope(root, encoder, cache_dir, progress)
    return results


def matrices(root: Path, names: Sequence[str]) -> dict[str, TaskData]:
    """The matrices of the public data by these names; all where none is named."""
    return {name: load_matrix(root, name) for name in names or SOURCES}


def files_as_data(files: Sequence[Path]) -> dict[str, TaskData]:
    """The files as one data set."""
    return {"+".join(file.stem for file in files): read_task_data(files)}


def measure_scope(
    root: Path, encoder: Encoder, cache_dir: Path, progress: Progress
) -> dict[str, float]:
    """Domains of clinc150 with its out-of-scope prompts; one fold in five is judged.

    The router sees no out-of-scope prompt in training.
    """
    rows = read_rows(root / SCOPE_SOURCE / "prompts.parquet", ("prompt_id", "category", "prompt"))
    data = TaskData(
        ids=tuple(row["prompt_id"] for row in rows),
        texts=tuple(row["prompt"] for row in rows),
        categories=tuple(row["category"] for row in rows),
        experts=("any",),
        scores=np.ones((len(rows), 1)),
    )
    data, embeddings = with_embeddings(data, encoder, cache_dir, progress)
    outside = np.array([c == OUT_OF_SCOPE for c in data.categories])
    inside = np.flatnonzero(~outside)
    away = np.flatnonzero(outside)
    names = sorted({str(data.categories[i]) for i in inside})
    codes = np.array([names.index(str(data.categories[i])) for i in inside])
    test = inside[make_folds([data.texts[i] for i in inside], codes, 5)[0]]
    train = np.setdiff1d(inside, test)
    router, _ = train_router(take(data, train), embeddings[train])
    return scope_figures(
        router,
        embeddings[test],
        [data.texts[i] for i in test],
        [str(data.categories[i]) for i in test],
        embeddings[away],
        [data.texts[i] for i in away],
    )


def _curve(
    name: str, data: TaskData, embeddings: Floats, plan: Plan, progress: Progress
) -> dict[str, Any]:
    methods = {key: OWN[key] for key in OWN}
    points: dict[str, list[dict[str, Any]]] = {key: [] for key in methods}
    for size in plan.sizes:
        found = compare(
            f"{name}, {size} prompts",
            data,
            embeddings,
            methods,
            folds=plan.folds,
            repeats=plan.draws,
            size=size,
            seed=plan.seed,
            progress=progress,
        )
        for measured in found.methods:
            gain = measured.gain
            points[measured.name].append(
                {"size": size, "gain": {"mean": gain.mean, "low": gain.low, "high": gain.high}}
            )
    return {"data": name, "methods": points}


def _reworded(data: TaskData, embeddings: Floats, encoder: Encoder, seed: int) -> dict[str, Any]:
    data, embeddings = complete_part(data, embeddings)
    test = make_folds(data.texts, np.zeros(len(data.texts), dtype=np.int64), 5, seed)[0]
    train = np.setdiff1d(np.arange(len(data.texts)), test)
    router, _ = train_router(take(data, train), embeddings[train])
    asked = test[:MAX_REWORDED]
    return robustness(
        policy_of(router),
        encoder,
        [data.texts[i] for i in asked],
        embeddings[asked],
        data.scores[asked],
        seed,
    )


def each_line(results: dict[str, Any]) -> Iterator[str]:
    """A few lines for the terminal."""
    for comparison in results["comparisons"]:
        best = comparison["best_single"]
        yield (
            f"{comparison['data']}: {comparison['prompts']} prompts, {comparison['experts']} "
            f"experts, best single {best['expert']} {best['score']:.4f}"
        )
