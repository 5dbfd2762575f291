"""Ways of routing that are compared: Composer's own, and baselines in the manner of its peers.

A method is fitted on the prompts of the training folds and gives a value to every expert on each
prompt of the test fold; the expert with the highest one answers. The baselines are written here
from what is public of the methods, on the same embeddings; no peer's code is in them.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experts.errors import DataError
from routers.dataset import TaskData
from routers.training import Method as TrainingMethod
from routers.training import TrainingOptions, train_router
from routers.two_step import TwoStepRouter

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

Policy = Callable[[Floats, Sequence[str]], Doubles]
"""From embeddings (n, d) and texts of n prompts to values (n, n_experts)."""

Fit = Callable[[TaskData, Floats, int], Policy]
"""From training data without gaps in its scores, embeddings and a seed."""

CLUSTERS = 64
NEAREST_CLUSTERS = 3
NEIGHBOURS = 40
RANK = 16
STEPS = 300


def trained(method: TrainingMethod) -> Fit:
    """One of Composer's own methods; `two-step` without two categories is the best single."""

    def fit(data: TaskData, embeddings: Floats, seed: int) -> Policy:
        counts = Counter(category for category in data.categories if category is not None)
        if method == "two-step" and sum(n > 1 for n in counts.values()) < 2:
            return best_single(data, embeddings, seed)
        router, _ = train_router(data, embeddings, TrainingOptions(method=method, seed=seed))
        return policy_of(router)

    return fit


def policy_of(router: TwoStepRouter) -> Policy:
    """What a trained router expects, prompt by prompt as it is served."""

    def values(embeddings: Floats, texts: Sequence[str]) -> Doubles:
        rows = [
            list(router.score(row, text).quality.values())
            for row, text in zip(embeddings, texts, strict=True)
        ]
        return np.array(rows).reshape(len(texts), len(router.mapping.experts))

    return values


def best_single(data: TaskData, embeddings: Floats, seed: int) -> Policy:
    """The expert with the best mean on the training prompts."""
    return _constant(data.scores.mean(axis=0))


def random(data: TaskData, embeddings: Floats, seed: int) -> Policy:
    """Any expert."""
    generator = np.random.default_rng(seed)
    return lambda rows, texts: generator.random((len(texts), data.scores.shape[1]))


def hard_map(data: TaskData, embeddings: Floats, seed: int) -> Policy:
    """The category by logistic regression, then the expert with the best mean in it."""
    labelled = [i for i, category in enumerate(data.categories) if category is not None]
    names = sorted({str(data.categories[i]) for i in labelled})
    if len(names) < 2:
        return best_single(data, embeddings, seed)
    codes = np.array([names.index(str(data.categories[i])) for i in labelled])
    model = _logistic().fit(embeddings[labelled], codes)
    means = np.array([data.scores[labelled][codes == k].mean(axis=0) for k in range(len(names))])
    return lambda rows, texts: means[model.predict(rows)]


def nearest(data: TaskData, embeddings: Floats, seed: int) -> Policy:
    """Mean scores of the nearest training prompts."""
    k = min(NEIGHBOURS, len(embeddings))

    def values(rows: Floats, texts: Sequence[str]) -> Doubles:
        cosines = rows @ embeddings.T
        found = np.argpartition(cosines, cosines.shape[1] - k, axis=1)[:, -k:]
        return np.asarray(data.scores[found].mean(axis=1))

    return values


def logistic(data: TaskData, embeddings: Floats, seed: int) -> Policy:
    """A classifier of "the best expert" of a prompt (ties to the better one overall)."""
    return _label_policy(data, embeddings, _logistic())


def perceptron(data: TaskData, embeddings: Floats, seed: int) -> Policy:
    """As `logistic`, with a hidden layer."""
    from sklearn.neural_network import MLPClassifier

    model = MLPClassifier(128, early_stopping=True, max_iter=60, random_state=seed)
    return _label_policy(data, embeddings, model)


def clusters(data: TaskData, embeddings: Floats, seed: int) -> Policy:
    """Mean scores of the clusters nearest to the prompt, in the manner of Avengers-Pro."""
    from sklearn.cluster import KMeans

    n = max(1, min(CLUSTERS, len(embeddings) // 10))
    model = KMeans(n, n_init=1, max_iter=50, random_state=seed).fit(embeddings)
    overall = data.scores.mean(axis=0)
    means = np.array(
        [
            data.scores[model.labels_ == k].mean(axis=0) if (model.labels_ == k).any() else overall
            for k in range(n)
        ]
    )
    k = min(NEAREST_CLUSTERS, n)

    def values(rows: Floats, texts: Sequence[str]) -> Doubles:
        distance = model.transform(rows)
        near = np.argsort(distance, axis=1)[:, :k]
        weight = np.exp(-9 * np.take_along_axis(distance, near, axis=1) ** 2)
        weight /= np.maximum(weight.sum(axis=1, keepdims=True), 1e-12)
        return np.asarray((weight[:, :, None] * means[near]).sum(axis=1))

    return values


def factors(data: TaskData, embeddings: Floats, seed: int) -> Policy:
    """Matrix factorisation: expert vectors times a projection of the prompt, as in RouteLLM and
    EmbedLLM, by full-batch Adam on the log-likelihood."""
    generator = np.random.default_rng(seed)
    n_experts = data.scores.shape[1]
    parameters = [
        generator.normal(scale=0.1, size=(embeddings.shape[1], RANK)),
        generator.normal(scale=0.1, size=(RANK, n_experts)),
        np.zeros(n_experts),
    ]
    x = embeddings.astype(np.float64)
    first = [np.zeros_like(p) for p in parameters]
    second = [np.zeros_like(p) for p in parameters]
    for step in range(1, STEPS + 1):
        hidden = x @ parameters[0]
        surprise = _sigmoid(hidden @ parameters[1] + parameters[2]) - data.scores
        surprise /= len(x)
        gradients = [
            x.T @ (surprise @ parameters[1].T) + 1e-4 * parameters[0],
            hidden.T @ surprise + 1e-4 * parameters[1],
            surprise.sum(axis=0),
        ]
        for p, g, m, v in zip(parameters, gradients, first, second, strict=True):
            m += 0.1 * (g - m)
            v += 0.001 * (g**2 - v)
            p -= 0.03 * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
    return lambda rows, texts: rows @ parameters[0] @ parameters[1] + parameters[2]


def elo(data: TaskData, embeddings: Floats, seed: int) -> Policy:
    """One rating for each expert, from every pair of experts on every training prompt."""
    above = data.scores[:, :, None] - data.scores[:, None, :]
    wins = (above > 0).mean(axis=0) + 0.5 * (above == 0).mean(axis=0)
    return _constant(wins.mean(axis=1))


OWN: dict[str, Fit] = {"auto": trained("auto"), "two-step": trained("two-step")}
BASELINES: dict[str, Fit] = {
    "best-single": best_single,
    "random": random,
    "hard-map": hard_map,
    "knn": nearest,
    "logistic": logistic,
    "mlp": perceptron,
    "clusters": clusters,
    "factors": factors,
    "elo": elo,
}


def baselines_of(names: str) -> dict[str, Fit]:
    """The baselines that a list of names with commas says, or `all`, or `none`.

    Raises:
        DataError: an unknown name.
    """
    if names == "all":
        return dict(BASELINES)
    wanted = [name.strip() for name in names.split(",") if name.strip() not in ("", "none")]
    for name in wanted:
        if name not in BASELINES:
            raise DataError(
                f"'{name}' is no known baseline; known are: {', '.join(BASELINES)}",
                param="baselines",
            )
    return {name: BASELINES[name] for name in wanted}


def _constant(values: Doubles) -> Policy:
    return lambda rows, texts: np.tile(values, (len(texts), 1))


def _logistic() -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=10, max_iter=300, tol=1e-3)


def _label_policy(data: TaskData, embeddings: Floats, model: Any) -> Policy:
    n_experts = data.scores.shape[1]
    favour = 1e-6 * data.scores.mean(axis=0)
    labels = (data.scores + favour).argmax(axis=1)
    present, counts = np.unique(labels, return_counts=True)
    kept = np.isin(labels, present[counts >= 2])
    if len(np.unique(labels[kept])) < 2:
        return best_single(data, embeddings, 0)
    model.fit(embeddings[kept], labels[kept])

    def values(rows: Floats, texts: Sequence[str]) -> Doubles:
        found = np.zeros((len(rows), n_experts))
        found[:, model.classes_] = model.predict_proba(rows)
        return found

    return values


def _sigmoid(values: Doubles) -> Doubles:
    found: Doubles = 1 / (1 + np.exp(-np.clip(values, -30, 30)))
    return found
