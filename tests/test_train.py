"""`coe train`: from files on disk to an artefact that a gateway can serve."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from composer.cli import main
from composer.config import demo_data_files
from routers.artefact import ARRAYS, MANIFEST, load_artefact
from routers.encoders import load_encoder
from routers.two_step import TwoStepRouter

CATEGORIES = ("arithmetic", "chat", "translation")
SCORES = {
    "calculator": {"arithmetic": 0.9, "chat": 0.1, "translation": 0.1},
    "talker": {"arithmetic": 0.1, "chat": 0.8, "translation": 0.3},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Prompts with categories in one file, outcomes in another, and a bad line."""
    folder = tmp_path_factory.mktemp("data")
    prompts, outcomes = [], []
    for file in demo_data_files():
        if file.stem in CATEGORIES:
            for line in file.read_text().splitlines()[:25]:
                row = json.loads(line)
                prompts.append({key: row[key] for key in ("id", "prompt", "category")})
                for i, (expert, by_category) in enumerate(SCORES.items()):
                    score = by_category[row["category"]]
                    good = (len(outcomes) * 7919 + i) % 100 < score * 100
                    outcomes.append({"id": row["id"], "expert": expert, "score": float(good)})
    (folder / "prompts.jsonl").write_text("".join(json.dumps(p) + "\n" for p in prompts))
    (folder / "outcomes.jsonl").write_text(
        "".join(json.dumps(o) + "\n" for o in outcomes) + '{"id": "x", "score": 2}\n'
    )
    return [folder / "prompts.jsonl", folder / "outcomes.jsonl"]


@pytest.fixture(autouse=True)
def _environment(cache_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COMPOSER_CACHE_DIR", str(cache_dir))
    monkeypatch.chdir(tmp_path)


def train(data: list[Path], out: Path, *more: str) -> tuple[int, str]:
    files = [part for file in data for part in ("--data", str(file))]
    result = CliRunner().invoke(main, ["train", *files, "--out", str(out), *more])
    return result.exit_code, result.output


def test_artefact_routes_and_the_report_tells_gain_and_bad_lines(
    data: list[Path], tmp_path: Path, cache_dir: Path
) -> None:
    code, output = train(data, tmp_path / "out")
    assert code == 0, output
    assert "outcomes.jsonl:151" in output
    assert "best single" in output
    artefact = load_artefact(tmp_path / "out")
    assert artefact.manifest.report["gain_low"] > 0
    encoder = load_encoder("onnx", cache_dir)
    artefact.require_encoder(encoder.id, encoder.dimension)
    prompt = "what is 12 plus 30"
    scores = artefact.router.score(encoder.encode([prompt])[0], prompt)
    assert scores.category == "arithmetic"
    assert scores.quality["calculator"] > scores.quality["talker"]


def test_the_same_data_gives_the_same_bytes(data: list[Path], tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert train(data, tmp_path / name)[0] == 0
    for file in (MANIFEST, ARRAYS):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_json_report_goes_to_standard_output_alone(data: list[Path], tmp_path: Path) -> None:
    files = [part for file in data for part in ("--data", str(file))]
    result = CliRunner().invoke(main, ["train", *files, "--out", str(tmp_path / "o"), "--json"])
    report = json.loads(result.stdout)
    assert report["n_scored"] == 75
    assert report["experts"] == ["calculator", "talker"]


def test_outcomes_of_experts_that_are_not_listed_are_left_out_and_said_so(
    data: list[Path], tmp_path: Path
) -> None:
    experts = tmp_path / "experts.yaml"
    experts.write_text(
        "- {id: talker, kind: remote, url: 'http://localhost:1/v1'}\n"
        "- {id: silent, kind: model, engine: e}\n"
    )
    code, output = train(data, tmp_path / "out", "--experts", str(experts))
    assert code == 0, output
    assert "outcomes of 'calculator' are left out" in output
    assert "expert 'silent' has no outcomes" in output
    manifest = load_artefact(tmp_path / "out").manifest
    assert manifest.experts == ("talker",)
    assert [spec.engine for spec in manifest.specs] == [None]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x00\xff garbage", "no usable line"),
        (b"", "the files are empty"),
        (b'{"prompt": "a", "category": "c", "expert": "e", "score": 1}\n', "4 prompts are needed"),
    ],
)
def test_useless_file_is_refused_with_the_reason(
    tmp_path: Path, content: bytes, message: str
) -> None:
    file = tmp_path / "data.jsonl"
    file.write_bytes(content)
    code, output = train([file], tmp_path / "out")
    assert code == 1
    assert message in output
    assert not (tmp_path / "out").exists()


def test_categories_alone_keep_the_scores_of_the_base(data: list[Path], tmp_path: Path) -> None:
    assert train(data, tmp_path / "base")[0] == 0
    code, output = train(data[:1], tmp_path / "out", "--base", str(tmp_path / "base"))
    assert code == 0, output
    assert "scores are those of the base version" in output
    assert "best single" not in output
    base, kept = (load_artefact(tmp_path / name) for name in ("base", "out"))
    assert kept.manifest.report["category_accuracy"] > 0.9
    assert kept.manifest.report["n_scored"] == 0
    for artefact in (base, kept):
        assert isinstance(artefact.router, TwoStepRouter)
    np.testing.assert_array_equal(base.router.mapping.by_category, kept.router.mapping.by_category)


def test_category_that_the_base_does_not_know_gets_no_invented_scores(
    data: list[Path], tmp_path: Path
) -> None:
    assert train(data, tmp_path / "base")[0] == 0
    renamed = tmp_path / "renamed.jsonl"
    renamed.write_text(data[0].read_text().replace('"translation"', '"spanish"'))
    code, output = train([renamed], tmp_path / "out", "--base", str(tmp_path / "base"))
    assert code == 0, output
    assert "category 'spanish' is new" in output
    assert "category 'translation' of the base version has no prompts" in output
    kept = load_artefact(tmp_path / "out").router
    assert isinstance(kept, TwoStepRouter)
    row = kept.mapping.by_category[kept.mapping.categories.index("spanish")]
    np.testing.assert_array_equal(row, kept.mapping.overall)


def test_categories_alone_are_refused_when_there_is_no_base(
    data: list[Path], tmp_path: Path
) -> None:
    code, output = train(data[:1], tmp_path / "out")
    assert code == 1
    assert "no version whose scores of the experts could be kept" in output


def test_preferences_alone_route_each_category_to_its_winner(
    data: list[Path], tmp_path: Path
) -> None:
    preferences = tmp_path / "preferences.jsonl"
    best = {"arithmetic": "calculator", "chat": "talker", "translation": "talker"}
    lines = []
    for line in data[0].read_text().splitlines():
        row = json.loads(line)
        winner = best[row["category"]]
        (loser,) = set(SCORES) - {winner}
        lines.append(json.dumps({"id": row["id"], "winner": winner, "loser": loser}))
    preferences.write_text("\n".join(lines))
    code, output = train([data[0], preferences], tmp_path / "out")
    assert code == 0, output
    assert "strengths of 2 experts from 75 preferences, 1.000 of held-out ones foreseen" in output
    assert "no routed score" in output
    router = load_artefact(tmp_path / "out").router
    assert isinstance(router, TwoStepRouter)
    for category, winner in best.items():
        row = router.mapping.by_category[router.mapping.categories.index(category)]
        assert router.mapping.experts[row.argmax()] == winner
