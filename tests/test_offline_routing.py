"""`coe route --artifact`: a file of prompts routed with no server running."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from composer.cli import main
from tests.small_composition import SENTENCES, write_artefact

QUALITY = {
    category: {"one": 0.9 if i == 0 else 0.2, "two": 0.2 if i == 0 else 0.9}
    for i, category in enumerate(SENTENCES)
}


@pytest.fixture
def artefact(tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COMPOSER_CACHE_DIR", str(cache_dir))
    write_artefact(tmp_path / "artefact", cache_dir, QUALITY)
    return tmp_path / "artefact"


def route(artefact: Path, folder: Path, lines: list[object]) -> tuple[int, str, list[dict]]:
    prompts, out = folder / "prompts.jsonl", folder / "decisions.jsonl"
    prompts.write_text(
        "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    )
    result = CliRunner().invoke(
        main, ["route", "--artifact", str(artefact), "--in", str(prompts), "--out", str(out)]
    )
    found = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    return result.exit_code, result.output, found


def test_decisions_stand_in_the_order_of_the_prompts(artefact: Path, tmp_path: Path) -> None:
    (first, one), (second, two) = SENTENCES.items()
    code, output, found = route(
        artefact, tmp_path, [{"id": "b", "prompt": two}, {"id": 7, "prompt": one}] * 200
    )
    assert code == 0, output
    assert [decision["id"] for decision in found[:2]] == ["b", 7]
    assert [decision["expert"] for decision in found[:2]] == ["two", "one"]
    assert [decision["category"] for decision in found[:2]] == [second, first]
    assert found[0]["ranking"] == ["two", "one"]
    assert not found[0]["general"]
    assert found[0]["category_probability"] > 0.5
    assert len(found) == 400


def test_unknown_prompt_is_general_with_its_likeliest_category(
    artefact: Path, tmp_path: Path
) -> None:
    code, _, [found] = route(artefact, tmp_path, [{"id": "x", "prompt": "zq xv 0000 ##"}])
    assert code == 0
    assert found["general"]
    assert found["category"] in SENTENCES


def test_policy_of_a_line_rules_out(artefact: Path, tmp_path: Path) -> None:
    prompt = next(iter(SENTENCES.values()))
    _, _, found = route(
        artefact,
        tmp_path,
        [
            {"id": 1, "prompt": prompt, "policy": {"experts": ["two"]}},
            {"id": 2, "prompt": prompt, "policy": {"experts": ["nobody"]}},
        ],
    )
    assert found[0]["expert"] == "two"
    assert found[1]["expert"] is None
    assert "no expert can answer" in found[1]["error"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "prompts.jsonl:2: not JSON"),
        ({"id": 1}, "prompts.jsonl:2: prompt"),
        ({"id": 1, "prompt": "x", "policy": {"colour": 1}}, "prompts.jsonl:2: policy.colour"),
    ],
)
def test_wrong_line_is_told_and_nothing_is_written(
    artefact: Path, tmp_path: Path, line: object, reason: str
) -> None:
    code, output, found = route(artefact, tmp_path, [{"id": 0, "prompt": "hello"}, line])
    assert code == 1
    assert reason in output
    assert found == []


def test_halves_of_the_call_are_refused() -> None:
    result = CliRunner().invoke(main, ["route", "--artifact", "x"])
    assert result.exit_code == 2
    assert "belong together" in result.output
    assert CliRunner().invoke(main, ["route"]).exit_code == 2
