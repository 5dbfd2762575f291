"""Learning from preferences: known strengths are found again, and nothing is made up."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routers.dataset import Preferences, TaskData
from routers.preferences import fit_strengths, infer_scores

EXPERTS = ("a", "b", "c", "d")


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def task_data(
    categories: list[str | None], comparisons: list[tuple[int, str, str, bool]]
) -> TaskData:
    n = len(categories)
    return TaskData(
        ids=tuple(f"p{i}" for i in range(n)),
        texts=tuple(f"prompt {i}" for i in range(n)),
        categories=tuple(categories),
        experts=(),
        scores=np.empty((n, 0)),
        preferences=Preferences.of(comparisons),
    )


def drawn(strengths: np.ndarray, n: int, seed: int = 0) -> TaskData:
    """One comparison of two random experts on each of n prompts of each category."""
    generator = np.random.default_rng(seed)
    categories, comparisons = [], []
    for c, row in enumerate(strengths):
        for _ in range(n):
            i, j = generator.choice(len(row), 2, replace=False)
            if generator.random() > sigmoid(row[i] - row[j]):
                i, j = j, i
            comparisons.append((len(categories), EXPERTS[i], EXPERTS[j], False))
            categories.append(f"c{c}")
    return task_data(categories, comparisons)


def score_of(data: TaskData, category: str, expert: str) -> float:
    rows = [i for i, c in enumerate(data.categories) if c == category]
    values = data.scores[rows, data.experts.index(expert)]
    return float(np.nanmean(values))


STRENGTHS = np.array([[1.5, 0.5, -0.5, -1.5], [-1.5, -0.5, 0.5, 1.5]])


def test_known_strengths_are_found_again_in_each_category() -> None:
    data, report = infer_scores(drawn(STRENGTHS, 1500))
    assert report.accuracy is not None
    assert report.accuracy > 0.7
    for c, row in enumerate(STRENGTHS):
        for expert, strength in zip(EXPERTS, row, strict=True):
            assert score_of(data, f"c{c}", expert) == pytest.approx(sigmoid(strength), abs=0.06)


def test_category_with_little_evidence_has_nearly_the_overall_strengths() -> None:
    many = drawn(STRENGTHS[[0, 0, 0]], 200)
    contrary = (len(many.ids), "d", "a", False)
    data = task_data([*many.categories, "rare"], [*comparisons_of(many), contrary])
    data, _ = infer_scores(data)
    assert data.scores[-1, data.experts.index("a")] > 0.6
    assert data.scores[-1, data.experts.index("d")] < 0.4


def comparisons_of(data: TaskData) -> list[tuple[int, str, str, bool]]:
    p = data.preferences
    return [
        (int(row), p.experts[w], p.experts[loser], bool(tie))
        for row, w, loser, tie in zip(p.prompts, p.winners, p.losers, p.ties, strict=True)
    ]


def test_only_compared_experts_get_scores_and_they_are_marked_as_inferred() -> None:
    data, report = infer_scores(
        task_data(["x", "x", None], [(0, "a", "b", False), (1, "b", "c", True)])
    )
    assert report.accuracy is None
    assert report.ties == 1
    assert np.isnan(data.scores).tolist() == [
        [False, False, True],
        [True, False, False],
        [True, True, True],
    ]
    assert np.isnan(data.graded).all()


def test_graded_outcomes_are_kept_and_set_the_scale_of_the_strengths() -> None:
    """`new` beats `old` as often as an expert of score 0.8 beats one of 0.5 (odds 4 to 1)."""
    n = 300
    data = task_data(["x"] * n, [(i, *(("new", "old") if i % 5 else ("old", "new")), False)
                                 for i in range(n)])  # fmt: skip
    graded = np.array([[float(i % 2)] for i in range(n)])
    data, report = infer_scores(replace(data, experts=("old",), scores=graded))
    assert report.anchored
    assert report.inferred == ("new",)
    old, new = data.experts.index("old"), data.experts.index("new")
    np.testing.assert_array_equal(data.scores[:, old], graded[:, 0])
    assert data.scores[:, new] == pytest.approx(0.8, abs=0.03)
    assert np.isnan(data.graded[:, new]).all()


def test_without_graded_outcomes_scores_are_win_rates_around_one_half() -> None:
    data, report = infer_scores(drawn(np.zeros((1, 4)), 400))
    assert not report.anchored
    assert np.nanmean(data.scores) == pytest.approx(0.5, abs=0.02)


COMPARISONS = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 3), st.integers(1, 3), st.booleans()),
    min_size=1,
    max_size=30,
).map(lambda rows: [(p, EXPERTS[i], EXPERTS[(i + step) % 4], tie) for p, i, step, tie in rows])


@settings(max_examples=60, deadline=None)
@given(COMPARISONS)
def test_swapping_winners_and_losers_mirrors_the_strengths(
    comparisons: list[tuple[int, str, str, bool]],
) -> None:
    categories = np.array([p % 2 for p, *_ in comparisons])
    there = fit_strengths(Preferences.of(comparisons), categories, 2)
    swapped = Preferences.of([(p, loser, w, tie) for p, w, loser, tie in comparisons])
    back = fit_strengths(swapped, categories, 2)
    np.testing.assert_allclose(there.by_category, -back.by_category, atol=1e-3)
    np.testing.assert_allclose(there.overall.sum(), 0, atol=1e-3)
    assert np.isfinite(there.by_category).all()


@settings(max_examples=40, deadline=None)
@given(COMPARISONS)
def test_one_more_win_never_lowers_the_winner(
    comparisons: list[tuple[int, str, str, bool]],
) -> None:
    _, winner, loser, _ = comparisons[0]
    more = [*comparisons, (0, winner, loser, False)]
    before, after = (
        fit_strengths(Preferences.of(found), np.zeros(len(found), np.int64), 1)
        for found in (comparisons, more)
    )
    j, k = before.experts.index(winner), before.experts.index(loser)
    lead = before.by_category[0, j] - before.by_category[0, k]
    assert after.by_category[0, j] - after.by_category[0, k] >= lead - 1e-3


@settings(max_examples=40, deadline=None)
@given(COMPARISONS)
def test_inferred_scores_are_probabilities_whatever_was_compared(
    comparisons: list[tuple[int, str, str, bool]],
) -> None:
    data, report = infer_scores(task_data(["x", "y", None, "x", "y", None], comparisons))
    known = data.scores[~np.isnan(data.scores)]
    assert ((known > 0) & (known < 1)).all()
    assert report.n == len(comparisons)
