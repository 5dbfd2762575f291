"""Experts and categories that join a trained router."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from composer.cli import main
from experts.errors import DataError
from routers.artefact import load_artefact, save_artefact
from routers.dataset import TaskData
from routers.encoders import load_encoder
from routers.onboarding import add_expert, add_prompts
from routers.stack_training import NEVER
from routers.training import train_router
from routers.two_step import TwoStepRouter
from tests.test_stacked_routing import EXPERTS, KINDS, best_of, take, task_data


def without(data: TaskData, expert: str) -> TaskData:
    keep = [j for j, name in enumerate(data.experts) if name != expert]
    return replace(data, experts=tuple(data.experts[j] for j in keep), scores=data.scores[:, keep])


@pytest.fixture(scope="module")
def given() -> tuple[TaskData, np.ndarray]:
    return task_data(400)


@pytest.fixture(scope="module")
def router(given: tuple[TaskData, np.ndarray]) -> TwoStepRouter:
    data, embeddings = given
    return train_router(without(data, "coder"), embeddings)[0]


def joined(router: TwoStepRouter, given: tuple[TaskData, np.ndarray], n: int) -> TwoStepRouter:
    data, embeddings = given
    return add_expert(
        router,
        "coder",
        embeddings[:n],
        data.texts[:n],
        data.categories[:n],
        data.scores[:n, EXPERTS.index("coder")],
    )[0]


def score_of(router: TwoStepRouter, data: TaskData, embeddings: np.ndarray) -> float:
    chosen = [best_of(router, e, t) for e, t in zip(embeddings, data.texts, strict=True)]
    columns = [data.experts.index(expert) for expert in chosen]
    return float(data.scores[np.arange(len(columns)), columns].mean())


class TestExpert:
    def test_quality_grows_with_what_is_known_of_it(
        self, router: TwoStepRouter, given: tuple[TaskData, np.ndarray]
    ) -> None:
        test, embeddings = task_data(300, seed=11)
        scores = [score_of(joined(router, given, n), test, embeddings) for n in (0, 20, 100)]
        alone = score_of(router, test, embeddings)
        assert scores[0] == pytest.approx(alone)
        assert scores[1] >= alone - 0.03
        assert scores[2] > alone + 0.05

    def test_others_keep_their_scores(
        self, router: TwoStepRouter, given: tuple[TaskData, np.ndarray]
    ) -> None:
        data, embeddings = given
        more = joined(router, given, 0)
        before = router.score(embeddings[0], data.texts[0]).quality
        after = more.score(embeddings[0], data.texts[0]).quality
        assert {name: after[name] for name in before} == pytest.approx(before)
        assert set(after) - set(before) == {"coder"}

    def test_it_answers_its_own_kind_of_prompts_when_it_is_known_well(
        self, router: TwoStepRouter, given: tuple[TaskData, np.ndarray]
    ) -> None:
        more = joined(router, given, 200)
        test, embeddings = task_data(60, seed=12)
        chosen = {
            kind: [
                best_of(more, e, t)
                for e, t, c in zip(embeddings, test.texts, test.categories, strict=True)
                if c == kind
            ]
            for kind in KINDS
        }
        assert chosen["code"].count("coder") > 15
        assert chosen["prose"].count("coder") < 5

    def test_one_that_is_in_already_is_refused(self, router: TwoStepRouter) -> None:
        with pytest.raises(DataError, match="already"):
            add_expert(router, "teller", np.zeros((0, 12), np.float32), (), (), np.zeros(0))

    def test_artefact_carries_it(
        self, router: TwoStepRouter, given: tuple[TaskData, np.ndarray], tmp_path: Path
    ) -> None:
        data, embeddings = given
        more = joined(router, given, 50)
        save_artefact(tmp_path / "a", more, name="auto", encoder="e")
        loaded = load_artefact(tmp_path / "a").router
        for row in range(5):
            one = loaded.score(embeddings[row], data.texts[row])
            assert one == more.score(embeddings[row], data.texts[row])


class TestCategory:
    def test_new_category_joins_from_few_prompts(self, given: tuple[TaskData, np.ndarray]) -> None:
        data, embeddings = given
        old = np.array([i for i, c in enumerate(data.categories) if c != "prose"])
        new = np.array([i for i, c in enumerate(data.categories) if c == "prose"])[:30]
        base, _ = train_router(take(data, old), embeddings[old])
        more, report = add_prompts(base, take(data, new), embeddings[new])
        assert "prose" in more.category_router.categories
        assert report.categories["prose"] == 30
        test, rows = task_data(150, seed=13)
        assert score_of(more, test, rows) > score_of(base, test, rows) + 0.03

    def test_new_category_is_judged_by_itself_when_the_old_ones_bear_out_nothing(
        self, given: tuple[TaskData, np.ndarray], tmp_path: Path
    ) -> None:
        data, embeddings = given
        old = np.array([i for i, c in enumerate(data.categories) if c != "prose"])
        new = np.array([i for i, c in enumerate(data.categories) if c == "prose"])[:40]
        alike = data.scores.copy()
        alike[old] = (np.random.default_rng(5).random((len(old), 4)) < [0.4, 0.4, 0.4, 0.7]) * 1.0
        noisy = replace(data, scores=alike)
        base, _ = train_router(take(noisy, old), embeddings[old])
        more, _ = add_prompts(base, take(noisy, new), embeddings[new])
        assert base.stack is not None
        assert more.stack is not None
        assert more.stack.category_margins is not None
        names = more.category_router.categories
        assert more.stack.category_margins[names.index("prose")] < NEVER
        save_artefact(tmp_path / "a", more, name="auto", encoder="e")
        loaded = load_artefact(tmp_path / "a").router
        chosen = []
        for row in new:
            scores = loaded.score(embeddings[row], data.texts[row])
            assert scores == more.score(embeddings[row], data.texts[row])
            chosen.append(best_of(more, embeddings[row], data.texts[row]))
        assert chosen.count("teller") > len(new) / 2

    def test_refused_when_the_artefact_keeps_nothing(
        self, router: TwoStepRouter, given: tuple[TaskData, np.ndarray]
    ) -> None:
        with pytest.raises(DataError, match="keeps no training rows"):
            add_prompts(replace(router, kept=None), *given)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Path:
    """A folder with an artefact of two experts, a newcomer, and outcomes of it."""
    folder = tmp_path_factory.mktemp("onboard")
    data, _ = task_data(90)
    encoder = load_encoder("onnx", cache_dir, threads=1)
    few = replace(data, experts=EXPERTS[1:3], scores=data.scores[:, 1:3])
    router, report = train_router(few, encoder.encode(few.texts))
    save_artefact(folder / "old", router, name="auto", encoder=encoder.id, report=report.to_dict())
    (folder / "expert.yaml").write_text("id: coder\nparams_b: 7\n")
    (folder / "graded.jsonl").write_text(
        "".join(
            json.dumps(
                {
                    "prompt": data.texts[i],
                    "category": data.categories[i],
                    "expert": "coder",
                    "score": data.scores[i, 0],
                }
            )
            + "\n"
            for i in range(40)
        )
    )
    return folder


def call(files: Path, cache_dir: Path, *arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(
        main,
        ["onboard", "--artifact", str(files / "old"), *arguments],
        env={"COMPOSER_CACHE_DIR": str(cache_dir)},
    )
    return result.exit_code, result.output


def test_command_writes_a_new_version_and_leaves_the_old(files: Path, cache_dir: Path) -> None:
    before = load_artefact(files / "old").version
    code, output = call(
        files, cache_dir, "--expert", str(files / "expert.yaml"),
        "--data", str(files / "graded.jsonl"), "--out", str(files / "new"),
    )  # fmt: skip
    assert code == 0, output
    assert "'coder' joined with 40 outcomes" in output
    new = load_artefact(files / "new")
    assert new.manifest.experts == ("chooser", "teller", "coder")
    assert new.manifest.specs[-1].params_b == 7
    assert load_artefact(files / "old").version == before != new.version


def test_expert_without_outcomes_joins_and_is_told(files: Path, cache_dir: Path) -> None:
    code, output = call(
        files, cache_dir, "--expert", str(files / "expert.yaml"), "--out", str(files / "zero")
    )
    assert code == 0, output
    assert "joins as an average expert" in output


def test_nothing_to_onboard_is_refused(files: Path, cache_dir: Path) -> None:
    code, output = call(files, cache_dir, "--out", str(files / "none"))
    assert code == 1
    assert "nothing to onboard" in output
