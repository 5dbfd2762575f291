"""The demo adapters: the data they learn from, and the files they are."""

import json
import re
from pathlib import Path

import pytest

from eval.demo.checkers import score
from experts.demo.data_common import Example
from experts.demo.make_data import (
    CATEGORIES,
    DATA_SETS,
    normalised,
    read_prompts,
    write_all,
    write_examples,
)
from routers.intervals import paired_bootstrap

ROOT = Path(__file__).parents[1]
ADAPTERS = ROOT / "experts" / "demo" / "adapters"
PROMPTS = ROOT / "routers" / "demo" / "prompts"
MAX_BYTES = 2_000_000
SHARE = 0.05
DATA_NAMES = [data.name for data in DATA_SETS]


@pytest.fixture(scope="module")
def examples() -> dict[str, list[Example]]:
    return {data.name: write_examples(data, seed=7, share=SHARE) for data in DATA_SETS}


@pytest.mark.parametrize("name", sorted(DATA_NAMES))
def test_card_states_the_recipe_that_the_script_follows(name: str) -> None:
    from experts.demo.train_adapters import RECIPES

    card = " ".join((ADAPTERS / name / "README.md").read_text().split())
    recipe = RECIPES[name]
    assert f"{recipe.steps} steps of {recipe.batch} examples" in card
    assert f"peak learning rate {recipe.rate:g}" in card


def test_data_is_the_same_when_written_twice_with_one_seed(tmp_path: Path) -> None:
    for folder in ("first", "second"):
        write_all(tmp_path / folder, seed=3, share=0.01)
    write_all(tmp_path / "other", seed=4, share=0.01)
    for data in DATA_SETS:
        for part in ("train", "heldout"):
            name = f"{data.name}.{part}.jsonl"
            first = (tmp_path / "first" / name).read_bytes()
            assert first == (tmp_path / "second" / name).read_bytes()
            assert first != (tmp_path / "other" / name).read_bytes()


def test_held_out_prompts_are_not_trained_on_when_data_is_written(tmp_path: Path) -> None:
    write_all(tmp_path, seed=0, share=0.02)
    for data in DATA_SETS:
        parts = []
        for part in ("train", "heldout"):
            lines = (tmp_path / f"{data.name}.{part}.jsonl").read_text(encoding="utf-8")
            parts.append({json.loads(line)["prompt"] for line in lines.splitlines()})
        assert parts[0]
        assert parts[1]
        assert not parts[0] & parts[1]


@pytest.mark.parametrize("name", sorted(CATEGORIES))
def test_examples_answer_their_own_checks_when_generated(
    name: str, examples: dict[str, list[Example]]
) -> None:
    assert {example.category for example in examples[name]} == set(CATEGORIES[name])
    for example in examples[name]:
        assert score(example.check, example.answer) == 1, example


def test_no_hand_written_prompt_is_trained_on_when_they_are_left_out(tmp_path: Path) -> None:
    without = read_prompts(PROMPTS)
    assert without
    write_all(tmp_path, seed=0, share=0.1, without=without)
    for data in DATA_SETS:
        lines = (tmp_path / f"{data.name}.train.jsonl").read_text(encoding="utf-8").splitlines()
        assert not without & {normalised(json.loads(line)["prompt"]) for line in lines}


@pytest.mark.parametrize("name", sorted(CATEGORIES))
def test_adapter_is_small_and_names_no_folder_when_shipped(name: str) -> None:
    folder = ADAPTERS / name
    assert (folder / "adapter_model.safetensors").stat().st_size < MAX_BYTES
    text = (folder / "adapter_config.json").read_text(encoding="utf-8")
    config = json.loads(text)
    assert config["base_model_name_or_path"] == "SmolLM2-135M-Instruct"
    assert config["r"] == 8
    assert set(config["target_modules"]) == {"q_proj", "k_proj", "v_proj", "o_proj"}
    for words in (text, (folder / "README.md").read_text(encoding="utf-8")):
        assert not re.search(r"(?<![\w.])/(home|root|tmp|work|Users|mnt|var)\b", words)


@pytest.mark.parametrize("name", sorted(CATEGORIES))
def test_adapter_has_its_declared_shape_when_loaded(name: str) -> None:
    from safetensors.torch import load_file

    tensors = load_file(ADAPTERS / name / "adapter_model.safetensors")
    assert len(tensors) == 30 * 4 * 2
    for key, value in tensors.items():
        assert str(value.dtype) == "torch.bfloat16"
        assert value.isfinite().all()
        rank = value.shape[0] if "lora_A" in key else value.shape[1]
        assert rank == 8
    assert any(value.abs().sum() > 0 for key, value in tensors.items() if "lora_B" in key)


def test_interval_lies_above_zero_when_every_difference_does() -> None:
    interval = paired_bootstrap([0.5, 1.0, 0.75, 1.0])
    assert interval.low > 0
    assert interval.low <= interval.mean <= interval.high
    assert interval == paired_bootstrap([0.5, 1.0, 0.75, 1.0])


def test_interval_holds_zero_when_gains_and_losses_cancel() -> None:
    interval = paired_bootstrap([1.0, -1.0] * 20, resamples=2000)
    assert interval.low < 0 < interval.high


def test_bootstrap_refuses_when_there_is_nothing_to_resample() -> None:
    with pytest.raises(ValueError, match="no differences"):
        paired_bootstrap([])
