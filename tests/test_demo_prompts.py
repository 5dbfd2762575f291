"""The shipped prompt set is whole, varied in its texts, and graded by valid checks."""

import json
from collections import Counter
from pathlib import Path
from typing import TypedDict

import pytest

from eval.demo.checkers import KINDS, compile_check

PROMPTS = Path(__file__).parents[1] / "routers" / "demo" / "prompts"
CATEGORIES = {
    "arithmetic": "number",
    "brainstorm": "items",
    "chat": "text",
    "code": "python",
    "extraction": "json",
    "facts": "contains",
    "live_info": "declines",
    "sql": "sql",
    "summary": "text",
    "translation": "contains",
    "triage": "label",
    "word_problem": "number",
    "writing": "text",
}


class Prompt(TypedDict):
    id: str
    category: str
    prompt: str
    check: dict[str, object]


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    return [
        json.loads(line)
        for category in CATEGORIES
        for line in (PROMPTS / f"{category}.jsonl").read_text(encoding="utf-8").splitlines()
    ]


def test_set_has_thirteen_categories_of_forty_prompts_or_more(prompts: list[Prompt]) -> None:
    counts = Counter(p["category"] for p in prompts)
    assert set(counts) == set(CATEGORIES)
    assert len(prompts) >= 600
    assert min(counts.values()) >= 40


def test_every_prompt_is_in_its_category_with_that_kind_of_check(prompts: list[Prompt]) -> None:
    assert set(CATEGORIES.values()) == set(KINDS)
    for prompt in prompts:
        assert prompt.keys() == {"id", "category", "prompt", "check"}
        assert prompt["id"].startswith(f"{prompt['category']}-")
        assert prompt["check"]["kind"] == CATEGORIES[prompt["category"]], prompt["id"]


def test_ids_and_texts_are_unique(prompts: list[Prompt]) -> None:
    ids = Counter(p["id"] for p in prompts)
    texts = Counter(" ".join(p["prompt"].casefold().split()) for p in prompts)
    assert [key for key, n in (ids + texts).items() if n > 1] == []


def test_prompts_fit_a_small_context(prompts: list[Prompt]) -> None:
    assert all(1 <= len(p["prompt"]) <= 1_500 for p in prompts)


def test_every_check_is_valid_and_gives_nothing_for_an_empty_answer(prompts: list[Prompt]) -> None:
    for prompt in prompts:
        assert compile_check(prompt["check"])("") == 0.0, prompt["id"]


def test_labels_are_named_in_the_prompt(prompts: list[Prompt]) -> None:
    for prompt in prompts:
        options = prompt["check"].get("options", [])
        assert isinstance(options, list)
        text = prompt["prompt"].casefold()
        assert [o for o in options if o.casefold() not in text] == [], prompt["id"]


def test_names_to_be_used_in_the_answer_are_given_in_the_prompt(prompts: list[Prompt]) -> None:
    for prompt in prompts:
        value = prompt["check"].get("value")
        names = list(value) if isinstance(value, dict) else []
        names += [str(prompt["check"][f]) for f in ("function",) if f in prompt["check"]]
        assert [name for name in names if name not in prompt["prompt"]] == [], prompt["id"]
