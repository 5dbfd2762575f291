"""Category router, mapping, ranking: the arithmetic of a decision, with numpy alone."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experts.errors import DataError, ExpertUnavailable, NoEligibleExpert
from experts.spec import ExpertSpec
from routers.artefact_parts import take_apart
from routers.calibration import (
    expected_calibration_error,
    fit_temperature,
    softmax,
    threshold_for_accuracy,
)
from routers.category import linear_category_router, normalised_entropy
from routers.dataset import TaskData
from routers.mapping import fit_mapping
from routers.ranking import Conditions, rank, request_price
from routers.training import train_two_step
from routers.two_step import TwoStepRouter
from routers.types import GENERAL, Needs, Policy, RouteQuery

D = 8


def spec(expert_id: str, **fields: object) -> ExpertSpec:
    return ExpertSpec.model_validate(
        {"id": expert_id, "kind": "model", "engine": "e", "params_b": 1.0, **fields}
    )


def null(expert_id: str = "canned") -> ExpertSpec:
    return ExpertSpec(id=expert_id, kind="null", text="no", params_b=0)


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def clustered(
    n_per_category: int = 30, spread: float = 0.25, seed: int = 0
) -> tuple[TaskData, np.ndarray]:
    """Three categories around three axes; each expert is good at one of them."""
    generator = np.random.default_rng(seed)
    names = ["code", "law", "maths"]
    rows, categories, scores = [], [], []
    for i, name in enumerate(names):
        centre = np.zeros(D)
        centre[i] = 1
        for _ in range(n_per_category):
            rows.append(centre + spread * generator.normal(size=D))
            categories.append(name)
            chances = [0.9 if e == i else 0.3 for e in range(3)]
            scores.append([float(generator.random() < p) for p in chances])
    n = len(rows)
    data = TaskData(
        ids=tuple(map(str, range(n))),
        texts=tuple(map(str, range(n))),
        categories=tuple(categories),
        experts=("coder", "lawyer", "mathematician"),
        scores=np.array(scores),
    )
    return data, unit(np.array(rows))


@pytest.fixture(scope="module")
def trained() -> TwoStepRouter:
    data, embeddings = clustered()
    return train_two_step(data, embeddings)[0]


class TestTraining:
    def test_report_beats_the_best_single_expert_when_experts_specialise(self) -> None:
        data, embeddings = clustered(60)
        _, report = train_two_step(data, embeddings)
        assert report.category_accuracy > 0.9
        assert report.gain is not None
        assert report.gain_low is not None
        assert report.gain_low > 0
        assert max(report.random, report.best_single) < report.routed < report.oracle

    def test_gain_is_not_significant_when_all_experts_are_alike(self) -> None:
        data, embeddings = clustered(40)
        generator = np.random.default_rng(3)
        alike = (generator.random(data.scores.shape) < 0.5).astype(float)
        data = TaskData(data.ids, data.texts, data.categories, data.experts, alike)
        _, report = train_two_step(data, embeddings)
        assert report.gain_low is not None
        assert report.gain_low <= 0

    def test_the_same_data_and_seed_give_the_same_router(self) -> None:
        data, embeddings = clustered()
        first, _ = train_two_step(data, embeddings)
        second, _ = train_two_step(data, embeddings)
        (_, one), (_, two) = take_apart(first), take_apart(second)
        assert one.keys() == two.keys()
        assert all(np.array_equal(one[name], two[name]) for name in one)
        assert np.array_equal(first.mapping.by_category, second.mapping.by_category)

    def test_refused_when_there_is_one_category(self) -> None:
        data, embeddings = clustered()
        one = TaskData(data.ids, data.texts, ("law",) * len(data.ids), data.experts, data.scores)
        with pytest.raises(DataError, match="two categories"):
            train_two_step(one, embeddings)

    def test_refused_when_there_are_no_outcomes(self) -> None:
        data, embeddings = clustered()
        empty = TaskData(data.ids, data.texts, data.categories, (), np.zeros((len(data.ids), 0)))
        with pytest.raises(DataError, match="no outcomes"):
            train_two_step(empty, embeddings)

    def test_two_categories_train_to_a_router_that_tells_them_apart(self) -> None:
        data, embeddings = clustered()
        keep = [i for i, c in enumerate(data.categories) if c != "maths"]
        two = TaskData(
            tuple(data.ids[i] for i in keep),
            tuple(data.texts[i] for i in keep),
            tuple(data.categories[i] for i in keep),
            data.experts,
            data.scores[keep],
        )
        router, report = train_two_step(two, embeddings[keep])
        assert router.category_router.categories == ("code", "law")
        assert report.category_accuracy > 0.9

    def test_missing_scores_stay_missing_when_the_matrix_is_ragged(self) -> None:
        data, embeddings = clustered()
        whole, _ = train_two_step(data, embeddings)
        ragged = data.scores.copy()
        ragged[::2, 0] = np.nan
        data = TaskData(data.ids, data.texts, data.categories, data.experts, ragged)
        router, report = train_two_step(data, embeddings)
        assert np.abs(router.mapping.by_category - whole.mapping.by_category).max() < 0.2
        assert report.n_scored == len(data.ids)

    def test_report_says_so_when_no_prompt_was_scored_on_every_expert(self) -> None:
        data, embeddings = clustered()
        one_each = np.full_like(data.scores, np.nan)
        rows = np.arange(len(data.ids))
        one_each[rows, rows % 3] = data.scores[rows, rows % 3]
        data = TaskData(data.ids, data.texts, data.categories, data.experts, one_each)
        _, report = train_two_step(data, embeddings)
        assert report.routed is None
        assert any("no routed score" in warning for warning in report.warnings)

    def test_prompts_are_judged_among_the_experts_scored_on_them_when_none_was_scored_on_all(
        self,
    ) -> None:
        data, embeddings = clustered()
        two_each = data.scores.copy()
        rows = np.arange(len(data.ids))
        two_each[rows, rows % 3] = np.nan
        data = TaskData(data.ids, data.texts, data.categories, data.experts, two_each)
        _, report = train_two_step(data, embeddings)
        assert report.oracle == pytest.approx(np.nanmax(two_each, axis=1).mean())
        assert report.random == pytest.approx(np.nanmean(two_each, axis=1).mean())
        assert report.routed is not None
        assert report.best_single is not None
        assert report.random < report.best_single < report.routed <= report.oracle
        assert any("judged among the experts" in warning for warning in report.warnings)


class TestCategoryRouter:
    def test_prompt_goes_to_its_category_when_it_is_clear(self, trained: TwoStepRouter) -> None:
        embedding = np.eye(D, dtype=np.float32)[1]
        scores = trained.score(embedding, "")
        assert scores.category == "law"
        assert max(scores.quality, key=lambda e: scores.quality[e]) == "lawyer"

    def test_prompt_goes_to_general_when_it_is_far_from_all_training_data(
        self, trained: TwoStepRouter
    ) -> None:
        embedding = -np.eye(D, dtype=np.float32)[5]
        scores = trained.score(embedding, "")
        assert scores.category == GENERAL
        assert scores.unsure_because is not None
        assert "far from" in scores.unsure_because
        assert list(scores.quality.values()) == pytest.approx(trained.mapping.overall.tolist())

    def test_prompt_goes_to_general_when_no_category_is_clear(self) -> None:
        router = linear_category_router(
            categories=("a", "b"),
            coefficients=np.zeros((2, D), np.float32),
            intercepts=np.zeros(2, np.float32),
            temperature=1.0,
            anchors=np.eye(D, dtype=np.float32),
            min_probability=0.6,
            min_similarity=0.0,
        )
        prediction = router.predict(np.eye(D, dtype=np.float32)[0])
        assert prediction.category == GENERAL
        assert prediction.uncertainty == pytest.approx(1.0)

    @given(st.lists(st.floats(0.001, 1), min_size=2, max_size=30))
    def test_entropy_lies_between_0_and_1(self, weights: list[float]) -> None:
        p = np.array(weights, np.float32)
        assert -1e-6 <= normalised_entropy(p / p.sum()) <= 1 + 1e-5


class TestCalibration:
    def test_temperature_recovers_overconfidence(self) -> None:
        generator = np.random.default_rng(0)
        logits = generator.normal(size=(4000, 4)) * 2
        p = softmax(logits)
        labels = np.array([generator.choice(4, p=row) for row in p])
        assert fit_temperature(logits * 3, labels) == pytest.approx(3, rel=0.15)
        assert expected_calibration_error(p, labels) < 0.03
        assert expected_calibration_error(softmax(logits * 3), labels) > 0.1

    def test_threshold_is_the_lowest_that_reaches_the_target(self) -> None:
        confidence = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
        correct = np.array([True, True, True, False, False])
        found = threshold_for_accuracy(confidence, correct, 0.75)
        assert (found.value, found.coverage, found.accuracy) == (0.6, 0.8, 0.75)

    @given(
        st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60),
        st.floats(0.1, 1),
    )
    def test_accepted_prompts_reach_the_target_whenever_any_threshold_does(
        self, rows: list[tuple[float, bool]], target: float
    ) -> None:
        confidence = np.array([c for c, _ in rows])
        correct = np.array([ok for _, ok in rows])
        found = threshold_for_accuracy(confidence, correct, target)
        reachable = any(correct[confidence >= c].mean() >= target for c in confidence)
        if reachable:
            assert correct[confidence >= found.value].mean() >= target


class TestMapping:
    def test_category_mean_is_trusted_more_the_more_evidence_it_has(self) -> None:
        generator = np.random.default_rng(1)
        much = generator.random(400) < 0.9
        little = np.array([True, True, True])
        rest = generator.random(400) < 0.3
        scores = np.concatenate([much, little, rest]).astype(float)[:, None]
        categories = ["much"] * 400 + ["little"] * 3 + ["rest"] * 400
        mapping = fit_mapping(scores, categories, ["much", "little", "rest"], ["e"])
        much_row, little_row, _ = mapping.by_category[:, 0]
        assert much_row == pytest.approx(0.9, abs=0.05)
        assert mapping.overall[0] < little_row < 1.0

    def test_category_without_outcomes_gets_the_overall_mean(self) -> None:
        scores = np.array([[1.0], [0.0], [1.0], [0.0]])
        mapping = fit_mapping(scores, ["a", "a", "b", "b"], ["a", "b", "new"], ["e"])
        assert mapping.by_category[2, 0] == mapping.overall[0]

    def test_expert_that_was_scored_on_easy_prompts_only_gains_nothing_by_it(self) -> None:
        easy, hard = [[0.9, 0.8]] * 20, [[0.4, np.nan]] * 20
        mapping = fit_mapping(
            np.array(easy + hard), ["easy"] * 20 + ["hard"] * 20, ["easy", "hard"], ["all", "part"]
        )
        assert mapping.by_category[1, 1] < mapping.by_category[1, 0]
        assert mapping.overall[1] < mapping.overall[0]

    def test_single_outcomes_are_shrunk_when_they_are_all_the_evidence(self) -> None:
        scores = np.array([[1.0], [0.0], [1.0]])
        mapping = fit_mapping(scores, ["a", "b", "c"], ["a", "b", "c"], ["e"])
        assert np.all(mapping.by_category > 0.2)
        assert np.all(mapping.by_category < 0.98)

    @settings(max_examples=50)
    @given(st.integers(0, 2**32 - 1))
    def test_expected_scores_stay_scores_when_outcomes_are_ragged(self, seed: int) -> None:
        generator = np.random.default_rng(seed)
        scores = generator.random((40, 3))
        scores[generator.random(scores.shape) < 0.3] = np.nan
        categories = [str(c) for c in generator.integers(0, 4, 40)]
        names = ["0", "1", "2", "3"]
        mapping = fit_mapping(scores, categories, names, ["x", "y", "z"])
        assert np.all((mapping.by_category >= 0) & (mapping.by_category <= 1))
        assert np.all((mapping.overall >= 0) & (mapping.overall <= 1))


class TestRanking:
    experts = {e.id: e for e in (spec("small", params_b=1), spec("large", params_b=70))}  # noqa: RUF012
    quality = {"small": 0.6, "large": 0.7}  # noqa: RUF012

    def ids(self, query: RouteQuery, conditions: Conditions | None = None) -> list[str]:
        ranking = rank(self.quality, self.experts, query, conditions or Conditions())
        return [candidate.id for candidate in ranking.experts]

    def test_best_quality_stands_first(self) -> None:
        assert self.ids(RouteQuery("x")) == ["large", "small"]

    def test_cheaper_expert_stands_first_when_cost_weighs_more(self) -> None:
        assert self.ids(RouteQuery("x", policy=Policy(quality_weight=0.5)))[0] == "small"

    def test_cheaper_expert_wins_a_tie(self) -> None:
        ranking = rank({"large": 0.5, "small": 0.5}, self.experts, RouteQuery("x"), Conditions())
        assert ranking.experts[0].id == "small"

    @pytest.mark.parametrize(
        ("query", "reason"),
        [
            (RouteQuery("x", policy=Policy(max_params_b=7)), "max_params_b"),
            (RouteQuery("x", policy=Policy(experts=frozenset({"small"}))), "not among"),
        ],
    )
    def test_expert_is_ruled_out_with_the_reason(self, query: RouteQuery, reason: str) -> None:
        ranking = rank(self.quality, self.experts, query, Conditions())
        assert [c.id for c in ranking.experts] == ["small"]
        assert reason in ranking.ruled_out["large"]

    def test_unavailable_expert_is_passed_over(self) -> None:
        conditions = Conditions(unavailable={"large": "its engine is starting"})
        assert self.ids(RouteQuery("x"), conditions) == ["small"]

    def test_slow_expert_is_ruled_out_when_the_request_bounds_latency(self) -> None:
        conditions = Conditions(latency_ms={"large": 900.0})
        query = RouteQuery("x", policy=Policy(max_latency_ms=500))
        assert self.ids(query, conditions) == ["small"]

    def test_missing_capability_is_named_when_no_expert_has_it(self) -> None:
        query = RouteQuery("x", needs=Needs(capabilities=frozenset({"tools"})))
        with pytest.raises(NoEligibleExpert, match="lacks: tools"):
            rank(self.quality, self.experts, query, Conditions())

    def test_too_long_prompt_is_refused_when_no_context_holds_it(self) -> None:
        query = RouteQuery("x", needs=Needs(context_tokens=10_000))
        with pytest.raises(NoEligibleExpert, match="10000 tokens"):
            rank(self.quality, self.experts, query, Conditions())

    def test_refusal_is_retryable_when_experts_are_only_unavailable(self) -> None:
        conditions = Conditions(unavailable=dict.fromkeys(self.experts, "its engine is starting"))
        with pytest.raises(ExpertUnavailable):
            rank(self.quality, self.experts, RouteQuery("x"), conditions)

    def test_canned_answer_stands_first_when_it_is_the_best(self) -> None:
        experts = {**self.experts, "canned": null()}
        ranking = rank({**self.quality, "canned": 0.9}, experts, RouteQuery("x"), Conditions())
        assert ranking.experts[0].id == "canned"

    def test_canned_answer_is_no_fallback_when_others_are_better_or_away(self) -> None:
        experts = {**self.experts, "canned": null()}
        quality = {**self.quality, "canned": 0.1}
        away = Conditions(unavailable=dict.fromkeys(self.experts, "down"))
        with pytest.raises(ExpertUnavailable):
            rank(quality, experts, RouteQuery("x"), away)
        ranking = rank(quality, experts, RouteQuery("x"), Conditions())
        assert "canned" not in [candidate.id for candidate in ranking.experts]

    def test_price_counts_prompt_and_answer(self) -> None:
        expert = spec("paid", price_in=2.0, price_out=10.0, context_length=8192)
        needs = Needs(context_tokens=1000, output_tokens=500)
        assert request_price(expert, needs) == pytest.approx((1000 * 2 + 500 * 10) / 1e6)

    @given(
        st.dictionaries(st.sampled_from("abcdef"), st.floats(0, 1), min_size=1),
        st.floats(0, 1),
    )
    def test_ranking_is_a_permutation_with_falling_utility(
        self, quality: dict[str, float], weight: float
    ) -> None:
        experts = {e: spec(e, params_b=float(ord(e))) for e in quality}
        query = RouteQuery("x", policy=Policy(quality_weight=weight))
        ranking = rank(quality, experts, query, Conditions())
        assert {c.id for c in ranking.experts} == set(quality)
        utilities = [c.utility for c in ranking.experts]
        assert all(a >= b - 1e-8 for a, b in pairwise(utilities))
