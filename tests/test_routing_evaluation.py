"""`coe eval`: methods side by side, and what is made of it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from composer.cli import main
from eval.routing.matrices import load_matrix
from eval.routing.measure import compare
from eval.routing.methods import BASELINES, OWN, baselines_of
from eval.routing.robustness import CHANGES, robustness
from eval.routing.scope import auroc
from experts.errors import DataError
from routers.encoders import load_encoder
from tests.test_stacked_routing import KINDS, task_data


@pytest.fixture(scope="module")
def compared() -> dict:
    data, embeddings = task_data(300)
    return compare("made", data, embeddings, {**OWN, **BASELINES}, folds=3).to_dict("auto")


def test_every_method_is_measured_on_the_same_prompts(compared: dict) -> None:
    assert set(compared["methods"]) == {*OWN, *BASELINES}
    for found in compared["methods"].values():
        assert compared["random"] - 0.15 < found["score"] <= compared["prompt_oracle"]
        assert found["gain"]["low"] <= found["gain"]["mean"] <= found["gain"]["high"]
        assert found["regret"] == pytest.approx(compared["prompt_oracle"] - found["score"])


def test_marks_stand_in_their_order(compared: dict) -> None:
    single, oracle = compared["best_single"]["score"], compared["prompt_oracle"]
    assert compared["random"] < single < compared["category_oracle"] < oracle


def test_default_is_not_behind_any_baseline_where_experts_specialise(compared: dict) -> None:
    auto = compared["methods"]["auto"]
    assert auto["gain"]["low"] > 0
    assert auto["behind"] is None
    for name in BASELINES:
        assert compared["methods"][name]["behind"]["high"] > 0


def test_data_of_one_category_are_measured_as_well() -> None:
    data, embeddings = task_data(120)
    alike = replace(data, categories=("all",) * 120)
    found = compare("alike", alike, embeddings, OWN, folds=2).to_dict("auto")
    assert found["methods"]["two-step"]["gain_over_trained_best"]["mean"] == 0


def test_best_single_has_no_gain_over_itself(compared: dict) -> None:
    assert compared["methods"]["best-single"]["gain_over_trained_best"]["mean"] == 0


def test_baselines_are_chosen_by_name() -> None:
    assert set(baselines_of("knn, elo")) == {"knn", "elo"}
    assert baselines_of("none") == {}
    with pytest.raises(DataError, match="no known baseline"):
        baselines_of("magic")


def test_few_prompts_graded_by_all_are_refused() -> None:
    data, embeddings = task_data(40)
    data.scores[8:, :2] = np.nan
    with pytest.raises(DataError, match="only 8 prompts"):
        compare("thin", data, embeddings, OWN)


def test_auroc_is_that_of_all_pairs() -> None:
    generator = np.random.default_rng(0)
    inside, outside = generator.integers(0, 8, 60) / 8, generator.integers(2, 10, 40) / 8
    pairs = np.mean([(o > i) + 0.5 * (o == i) for o in outside for i in inside])
    assert auroc(inside, outside) == pytest.approx(pairs)


def test_a_constant_choice_is_robust(cache_dir: Path) -> None:
    encoder = load_encoder("onnx", cache_dir, threads=1)
    texts = ["What is the capital of France?", "please list three primes"]
    found = robustness(
        lambda rows, asked: np.tile([0.2, 0.8], (len(asked), 1)),
        encoder,
        texts,
        encoder.encode(texts),
        np.array([[1.0, 0.0], [0.0, 1.0]]),
    )
    assert set(found) == set(CHANGES)
    assert all(figures["unchanged"] == 1 for figures in found.values())


@pytest.fixture
def public_data(tmp_path: Path) -> Path:
    """A folder laid out as the public data: one matrix with a model that ran too little."""
    folder = tmp_path / "public" / "llmrouter"
    folder.mkdir(parents=True)
    rows = [(f"p{i}", kind, KINDS[kind].format(i)) for i in range(40) for kind in sorted(KINDS)]
    pq.write_table(
        pa.table(
            {
                "prompt_id": [row[0] + row[1] for row in rows],
                "category": [row[1] for row in rows],
                "prompt": [row[2] for row in rows],
            }
        ),
        folder / "prompts.parquet",
    )
    scores = [
        (row[0] + row[1], model, float((i * 7 + len(model)) % 3 > 0))
        for i, row in enumerate(rows)
        for model in ("a", "bb", "rare")
        if model != "rare" or i % 2
    ]
    pq.write_table(
        pa.table(
            {
                "prompt_id": [s[0] for s in scores],
                "model": [s[1] for s in scores],
                "score": [s[2] for s in scores],
            }
        ),
        folder / "scores.parquet",
    )
    return tmp_path / "public"


def test_matrix_holds_the_experts_that_were_scored_nearly_everywhere(public_data: Path) -> None:
    found = load_matrix(public_data, "llmrouter")
    assert found.experts == ("a", "bb")
    assert found.scores.shape == (120, 2)
    with pytest.raises(DataError, match="no known matrix"):
        load_matrix(public_data, "other")
    with pytest.raises(DataError, match="can't read"):
        load_matrix(public_data, "mmlu_pro")


def test_command_writes_page_and_json(
    public_data: Path, tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMPOSER_CACHE_DIR", str(cache_dir))
    monkeypatch.setenv("COMPOSER_DATA", str(public_data))
    report = tmp_path / "report"
    arguments = [
        "eval",
        "--matrices",
        "llmrouter",
        "--folds",
        "2",
        "--baselines",
        "knn,best-single",
    ]
    arguments += ["--sizes", "40", "--draws", "1", "--reword", "--report", str(report)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    found = json.loads((report / "report.json").read_text())
    [comparison] = found["comparisons"]
    assert set(comparison["methods"]) == {*OWN, "knn", "best-single"}
    assert [point["size"] for point in found["learning"][0]["methods"]["auto"]] == [40]
    assert found["robustness"]["llmrouter"]["upper case"]["unchanged"] > 0.9
    page = (report / "report.html").read_text()
    assert "How good routing is" in page
    assert "llmrouter" in page
    assert "http-equiv" not in page


def test_absent_data_is_said_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COMPOSER_DATA", raising=False)
    result = CliRunner().invoke(main, ["eval"])
    assert result.exit_code == 0
    assert "nothing to evaluate" in result.output
    assert "COMPOSER_DATA" in result.output
