"""The `auto` method: text features, category models, predictors, and the stack of them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experts.errors import ArtefactError, DataError
from routers.artefact import ARRAYS, MANIFEST, load_artefact, save_artefact
from routers.dataset import TaskData
from routers.folds import make_folds
from routers.predictor_training import KernelFamily, LinearFamily
from routers.stack import bounded, hold_back
from routers.stack_training import NEVER, choose_margin, standard_errors
from routers.text_features import TextFeatures, hashed_ngrams, plain
from routers.text_training import fit_text_features
from routers.training import TrainingOptions, fill_gaps, train_router
from routers.two_step import TwoStepRouter
from routers.wording import normalise

D = 12
KINDS = {
    "code": "write a function that returns item {} of the list [1, 2, 3]",
    "choice": "which of these is number {}? a) one b) two c) three",
    "prose": "please tell me a little story about the number {}",
}
EXPERTS = ("coder", "chooser", "teller", "generalist")


def task_data(n: int = 240, seed: int = 0, skill: float = 0.5) -> tuple[TaskData, np.ndarray]:
    """Prompts of three kinds whose embeddings say little of the kind: the text does."""
    generator = np.random.default_rng(seed)
    kinds = [sorted(KINDS)[i % 3] for i in range(n)]
    texts = tuple(KINDS[kind].format(generator.integers(10_000)) for kind in kinds)
    rows = generator.normal(size=(n, D))
    rows[:, :3] += 0.8 * np.eye(3)[[sorted(KINDS).index(kind) for kind in kinds]]
    rows[:, -1] += 4
    best = {"code": 0, "choice": 1, "prose": 2}
    chances = np.full((n, 4), 0.45)
    chances[:, 3] = 0.5
    for row, kind in enumerate(kinds):
        chances[row, best[kind]] += skill
    scores = (generator.random((n, 4)) < chances).astype(float)
    data = TaskData(tuple(map(str, range(n))), texts, tuple(kinds), EXPERTS, scores)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return data, unit.astype(np.float32)


@pytest.fixture(scope="module")
def trained() -> TwoStepRouter:
    return train_router(*task_data())[0]


@pytest.fixture(scope="module")
def features() -> TextFeatures:
    return fit_text_features([kind.format(i) for kind in KINDS.values() for i in range(20)])[0]


def best_of(router: TwoStepRouter, embedding: np.ndarray, text: str) -> str:
    quality = router.score(embedding, text).quality
    return max(quality, key=lambda expert: quality[expert])


class TestWording:
    @pytest.mark.parametrize(
        "polite",
        [
            "Could you please help me with this: {}",
            "hi there, can you help me with the following question: {}",
            "  Please  help: {}",
        ],
    )
    def test_courtesy_before_a_colon_is_left_out(self, polite: str) -> None:
        assert normalise(polite.format("add 2 and 3")) == "add 2 and 3"

    @pytest.mark.parametrize(
        "text",
        [
            "Translate this: hello",
            "Please help with Fourier series: what is the period?",
            "Question: what is 2 + 2?",
            "could you please help me with this:",
            "please:help",
            "a: b",
            "",
        ],
    )
    def test_anything_that_says_what_is_asked_stays(self, text: str) -> None:
        assert normalise(text) == text

    @given(st.text())
    @settings(max_examples=200)
    def test_white_space_never_matters(self, text: str) -> None:
        assert normalise(normalise(text)) == normalise(f"  {text}\n") or "please" in text.lower()


class TestTextFeatures:
    def test_rows_of_training_are_those_of_serving(self) -> None:
        texts = [kind.format(i) for kind in KINDS.values() for i in range(20)]
        features, rows = fit_text_features(texts)
        np.testing.assert_allclose(features.rows(texts), rows, atol=1e-5)

    def test_case_and_white_space_do_not_matter(self, features: TextFeatures) -> None:
        one = features.row("Which of THESE\n is it?  a) one")
        np.testing.assert_array_equal(one, features.row("which of these is it? a) one"))

    @given(st.text(alphabet=st.characters(exclude_categories=()), max_size=3000))
    @settings(max_examples=100)
    def test_any_text_has_finite_features(self, features: TextFeatures, text: str) -> None:
        row = features.row(text)
        assert row.shape == (features.dimension,)
        assert np.isfinite(row).all()

    def test_work_is_bounded_when_a_text_is_huge(self) -> None:
        assert len(plain("word " * 1_000_000)) <= 2 * 768 + 1

    def test_equal_words_share_a_bucket_wherever_they_stand(self) -> None:
        alone, _ = hashed_ngrams("zebra")
        inside, _ = hashed_ngrams("the zebra runs")
        assert len(set(alone) & set(inside)) > len(alone) / 2


class TestFolds:
    def test_equal_prompts_share_a_fold(self) -> None:
        texts = ["What is it?", "what  is it?", *(f"prompt {i}" for i in range(30))]
        folds = make_folds(texts, np.zeros(len(texts), dtype=np.int64), 5)
        assert sorted(np.concatenate(folds)) == list(range(len(texts)))
        assert any({0, 1} <= set(fold) for fold in folds)

    def test_there_are_fewer_folds_when_there_are_fewer_prompts(self) -> None:
        assert len(make_folds(["a", "b", "A"], np.zeros(3, dtype=np.int64), 5)) == 2


class TestPredictors:
    def test_out_of_fold_predictions_are_those_of_a_fit_without_the_fold(self) -> None:
        generator = np.random.default_rng(0)
        x = generator.normal(size=(60, 5)).astype(np.float32)
        y = generator.random((60, 2)).astype(np.float32)
        test = np.arange(12)
        train = np.arange(12, 60)
        for setting, found in LinearFamily(x, y).out_of_fold([test]):
            fitted = LinearFamily(x[train], y[train]).fit(setting)
            np.testing.assert_allclose(found[test], fitted.predict(x[test]), atol=2e-4)
            assert np.isnan(found[train]).all()

    def test_kernel_learns_what_no_line_can(self) -> None:
        generator = np.random.default_rng(1)
        x = generator.normal(size=(400, 2)).astype(np.float32)
        y = (np.linalg.norm(x, axis=1) < 1).astype(np.float32)[:, None]
        fitted = KernelFamily(x, y, 0).fit("gamma 1 penalty 1")
        assert np.corrcoef(fitted.predict(x)[:, 0], y[:, 0])[0, 1] > 0.8

    def test_thousands_of_experts_are_factored(self) -> None:
        generator = np.random.default_rng(2)
        x = generator.normal(size=(80, 6)).astype(np.float32)
        y = (x @ generator.normal(size=(6, 400))).astype(np.float32)
        fitted = LinearFamily(x, y).fit("penalty 5")
        assert fitted.coefficients.spread is not None
        whole = LinearFamily(x, y[:, :200]).fit("penalty 5")
        np.testing.assert_allclose(fitted.predict(x)[:, :200], whole.predict(x), atol=1e-3)


class TestStack:
    @given(
        st.lists(st.lists(st.floats(0, 1), min_size=4, max_size=4), min_size=1, max_size=20),
        st.integers(0, 3),
        st.floats(0, 1),
    )
    def test_only_clear_leads_over_the_best_single_expert_count(
        self, rows: list[list[float]], best: int, margin: float
    ) -> None:
        expected = np.array(rows)
        held = hold_back(expected, best, margin)
        ahead = expected - expected[:, [best]]
        chosen = held.argmax(axis=1)
        for row, choice in enumerate(chosen):
            if ahead[row].max() > margin:
                assert choice == expected[row].argmax()
            else:
                assert choice == best

    def test_experts_held_back_keep_their_order(self) -> None:
        held = hold_back(np.array([[0.5, 0.52, 0.51, 0.2]]), 0, 0.05)[0]
        assert list(np.argsort(-held)) == [0, 1, 2, 3]

    def test_scores_stay_in_bounds_with_the_best_still_best(self) -> None:
        found = bounded(np.array([[1.1, 1.05, -0.1]]))[0]
        assert found.max() <= 1
        assert found.min() >= 0
        assert found[0] > found[1]

    def test_no_margin_passes_when_leads_are_noise(self) -> None:
        generator = np.random.default_rng(0)
        actual = (generator.random((2000, 3)) < 0.5).astype(float)
        noise = generator.random((2000, 3))
        assert choose_margin(noise, actual, int(actual.mean(axis=0).argmax())) == NEVER

    def test_the_bar_is_a_test_at_five_percent_when_data_are_plenty(self) -> None:
        assert standard_errors(10_000) == pytest.approx(1.65)
        assert standard_errors(50) < standard_errors(300) < standard_errors(5000)


class TestTraining:
    def test_text_tells_prompts_apart_that_embeddings_do_not(self, trained: TwoStepRouter) -> None:
        data, embeddings = task_data(300, seed=5)
        right = np.mean(
            [
                best_of(trained, row, text) == dict(zip(("code", "choice", "prose"), EXPERTS))[kind]  # noqa: B905
                for row, text, kind in zip(embeddings, data.texts, data.categories, strict=True)
            ]
        )
        assert right > 0.9

    @pytest.mark.parametrize("seed", range(4))
    def test_never_significantly_worse_than_the_best_single_expert_when_scores_are_noise(
        self, seed: int
    ) -> None:
        data, embeddings = task_data(600, seed=seed, skill=0.0)
        train, test = np.arange(300), np.arange(300, 600)
        router, _ = train_router(take(data, train), embeddings[train])
        chosen = [best_of(router, embeddings[i], data.texts[i]) for i in test]
        scores = data.scores[test]
        routed = scores[np.arange(len(test)), [EXPERTS.index(expert) for expert in chosen]]
        gain = routed - scores[:, int(data.scores[train].mean(axis=0).argmax())]
        assert gain.mean() > -1.65 * gain.std() / np.sqrt(len(gain)) - 1e-9

    def test_report_tells_method_model_and_weights(self) -> None:
        _, report = train_router(*task_data())
        assert report.method == "auto"
        assert report.category_model in report.category_losses
        assert set(report.stack["weights"]) == {"categories", "linear", "kernel", "neighbours"}
        assert report.gain is not None
        assert report.gain > 0.1

    def test_prompt_unlike_all_training_prompts_gets_the_overall_scores(
        self, trained: TwoStepRouter
    ) -> None:
        away = np.zeros(D, dtype=np.float32)
        away[-1] = -1
        scores = trained.score(away, "\u4f60\u597d " * 40)
        assert scores.category == "general"
        assert scores.uncertainty > 0.3
        assert list(scores.quality.values()) == pytest.approx(trained.mapping.overall.tolist())


class TestDegenerateData:
    def test_categories_are_found_when_no_prompt_has_one(self) -> None:
        data, embeddings = task_data(180)
        bare = replace(data, categories=(None,) * len(data.ids))
        router, report = train_router(bare, embeddings)
        assert router.category_router.categories[0].startswith("found-")
        assert any("found as clusters" in warning for warning in report.warnings)

    def test_labels_grow_to_prompts_that_are_alike(self) -> None:
        data, embeddings = task_data(180)
        few = replace(
            data, categories=tuple(c if i < 60 else None for i, c in enumerate(data.categories))
        )
        _, report = train_router(few, embeddings, TrainingOptions(grow=True))
        assert sum(report.categories.values()) > 60

    @pytest.mark.parametrize("case", ["one category", "one expert", "equal scores", "ten prompts"])
    def test_thin_data_train_to_something_sensible(self, case: str) -> None:
        data, embeddings = task_data(60)
        if case == "one category":
            data = replace(data, categories=("code",) * 60)
        elif case == "one expert":
            data = replace(data, experts=("coder",), scores=data.scores[:, :1])
        elif case == "equal scores":
            data = replace(data, scores=np.full_like(data.scores, 0.5))
        else:
            data, embeddings = take(data, np.arange(10)), embeddings[:10]
        router, report = train_router(data, embeddings)
        quality = router.score(embeddings[0], data.texts[0]).quality
        assert all(0 <= value <= 1 for value in quality.values())
        assert report.n_prompts == len(data.ids)

    def test_contradictory_duplicates_count_once_for_folds(self) -> None:
        data, embeddings = task_data(60)
        twice = TaskData(
            tuple(map(str, range(120))),
            data.texts * 2,
            data.categories * 2,
            data.experts,
            np.concatenate([data.scores, 1 - data.scores]),
        )
        _, report = train_router(twice, np.concatenate([embeddings, embeddings]))
        assert report.gain is not None
        assert report.gain < 0.15

    def test_category_of_outcomes_alone_and_noise_categories_do_no_harm(self) -> None:
        data, embeddings = task_data(120)
        noisy = tuple(f"c{i}" if i % 2 else c for i, c in enumerate(data.categories))
        router, report = train_router(replace(data, categories=noisy), embeddings)
        assert set(router.category_router.categories) <= set(KINDS)
        assert sum("single prompt" in warning for warning in report.warnings) == 60

    def test_an_embedding_that_is_no_number_is_refused(self) -> None:
        data, embeddings = task_data(60)
        embeddings[3, 0] = np.nan
        with pytest.raises(DataError, match="not a number"):
            train_router(data, embeddings)

    def test_missing_scores_are_filled_by_what_is_expected(self) -> None:
        scores = np.array([[1.0, np.nan], [0.0, 0.0]])
        found = fill_gaps(scores, np.array([[0.4, 0.6], [0.4, 0.6]]))
        assert found[0, 1] == pytest.approx(0.6 + 0.6 / 2)
        assert found[1].tolist() == [0.0, 0.0]


class TestArtefact:
    def test_the_same_data_and_seed_give_the_same_bytes(self, tmp_path: Path) -> None:
        for name in "ab":
            router, _ = train_router(*task_data())
            save_artefact(tmp_path / name, router, name="auto", encoder="e")
        for file in (MANIFEST, ARRAYS):
            assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()

    def test_loaded_router_scores_like_the_saved_one(
        self, tmp_path: Path, trained: TwoStepRouter
    ) -> None:
        save_artefact(tmp_path / "a", trained, name="auto", encoder="e")
        artefact = load_artefact(tmp_path / "a")
        assert artefact.manifest.method == "auto"
        assert artefact.manifest.dimension == D
        data, embeddings = task_data(20, seed=9)
        for row, text in zip(embeddings, data.texts, strict=True):
            assert artefact.router.score(row, text) == trained.score(row, text)

    @pytest.mark.parametrize("change", ["missing", "shape", "nan", "best"])
    def test_arrays_that_do_not_fit_are_refused(
        self, tmp_path: Path, trained: TwoStepRouter, change: str
    ) -> None:
        from safetensors.numpy import load_file, save_file

        save_artefact(tmp_path / "a", trained, name="auto", encoder="e")
        arrays = load_file(tmp_path / "a" / ARRAYS)
        if change == "missing":
            del arrays["text_idf"]
        elif change == "shape":
            arrays["projection"] = np.ascontiguousarray(arrays["projection"][:-1])
        elif change == "nan":
            arrays["centre"][0] = np.nan
        else:
            manifest = json.loads((tmp_path / "a" / MANIFEST).read_text())
            manifest["router"]["stack"]["best"] = 99
            (tmp_path / "a" / MANIFEST).write_text(json.dumps(manifest))
        save_file(arrays, tmp_path / "a" / ARRAYS)
        with pytest.raises(ArtefactError):
            load_artefact(tmp_path / "a")

    def test_schema_1_still_loads(self, tmp_path: Path) -> None:
        from safetensors.numpy import save_file

        generator = np.random.default_rng(0)
        folder = tmp_path / "old"
        folder.mkdir()
        save_file(
            {
                "coefficients": generator.normal(size=(2, 4)).astype(np.float32),
                "intercepts": np.zeros(2, np.float32),
                "anchors": np.eye(4, dtype=np.float32),
                "by_category": generator.random((2, 3)),
                "overall": generator.random(3),
            },
            folder / ARRAYS,
        )
        manifest = {
            "schema_version": 1,
            "method": "two-step",
            "name": "auto",
            "encoder": "e",
            "dimension": 4,
            "categories": ["a", "b"],
            "experts": ["x", "y", "z"],
            "specs": [],
            "temperature": 1.5,
            "min_probability": 0.4,
            "min_similarity": 0.1,
            "report": {},
        }
        (folder / MANIFEST).write_text(json.dumps(manifest))
        scores = load_artefact(folder).router.score(np.eye(4, dtype=np.float32)[0], "any text")
        assert set(scores.quality) == {"x", "y", "z"}


def take(data: TaskData, rows: np.ndarray) -> TaskData:
    return replace(
        data,
        ids=tuple(data.ids[i] for i in rows),
        texts=tuple(data.texts[i] for i in rows),
        categories=tuple(data.categories[i] for i in rows),
        scores=data.scores[rows],
    )
