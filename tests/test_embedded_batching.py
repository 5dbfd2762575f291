"""Continuous batching and its parts: adapters, sampling, text, on a tiny random model."""

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from experts.engines.embedded import weights
from experts.engines.embedded.adapters import read_adapter
from experts.engines.embedded.attention import decode_groups
from experts.engines.embedded.cache import SlotCache
from experts.engines.embedded.detokenize import Detokenizer
from experts.engines.embedded.lora import LoraBank
from experts.engines.embedded.mixers import MixerBank
from experts.engines.embedded.model import Geometry, load_base, sampling_defaults
from experts.engines.embedded.requests import (
    Generation,
    Progress,
    SamplingDefaults,
    SamplingParams,
)
from experts.engines.embedded.sampling import RowSampler, choose
from experts.engines.embedded.scheduler import Limits, Scheduler
from experts.errors import SetupError

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
VOCABULARY = 97


def write_adapter(
    model: torch.nn.Module, folder: Path, *, rank: int, targets: Sequence[str], **options: Any
) -> Path:
    """A random peft adapter with a B that is not zero, saved by peft."""
    torch.manual_seed(rank)
    config = LoraConfig(r=rank, lora_alpha=16, target_modules=list(targets), **options)
    adapted = get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    adapted.save_pretrained(folder)
    adapted.unload()
    return folder


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Tiny matrices gain nothing from a second thread, and lose much beside a busy process."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama small enough for many runs in float32."""
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_adapters(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    model = LlamaForCausalLM.from_pretrained(tiny)
    return {
        "narrow": write_adapter(model, root / "narrow", rank=2, targets=["q_proj", "v_proj"]),
        "wide": write_adapter(model, root / "wide", rank=7, targets=[*ATTENTION, "down_proj"]),
        "rslora": write_adapter(
            model, root / "rslora", rank=4, targets=["gate_proj", "q_proj"], use_rslora=True
        ),
    }


class Letters:
    """A decoder whose token n is one letter."""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return "".join(chr(ord("a") + token % 26) for token in ids)


def scheduler_for(
    folder: Path, adapters: Mapping[str, Path], *, eos: frozenset[int] = frozenset(), **limits: int
) -> Scheduler:
    model, geometry = load_base(folder, torch.float32)
    bank = LoraBank(model, [read_adapter(name, path) for name, path in adapters.items()])
    bounds = Limits(**{"max_running": 6, "max_context": 200, "prefill_tokens": 16, **limits})
    cache = SlotCache(geometry, max_slots=bounds.max_running, max_capacity=bounds.max_context)
    return Scheduler(model, bank, MixerBank(model, []), cache, Letters(), eos, bounds)


def request(
    prompt: Sequence[int], adapter: int = 0, *, tokens: int = 20, **params: Any
) -> Generation:
    params = {"temperature": 0.0, **params}
    return Generation(
        tuple(prompt), SamplingParams(max_tokens=tokens, **params), adapter, lambda progress: None
    )


@dataclass
class Heard:
    text: str = ""
    end: Progress | None = None


@torch.inference_mode()
def drive(
    scheduler: Scheduler, arrivals: Sequence[tuple[int, Generation]], steps: int = 2000
) -> dict[Generation, Heard]:
    """Step until all requests ended; each arrives before the step of its number."""
    heard = {generation: Heard() for _, generation in arrivals}
    for step in range(steps):
        for at, generation in arrivals:
            if at == step:
                scheduler.add(generation)
        for generation, progress in scheduler.step():
            heard[generation].text += progress.text
            if progress.finish is not None:
                heard[generation].end = progress
        if all(h.end is not None for h in heard.values()):
            return heard
    raise AssertionError("the requests did not end")


def prompts(seed: int, lengths: Sequence[int]) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(2, VOCABULARY) for _ in range(length)] for length in lengths]


def test_each_row_equals_pefts_own_greedy_answer_when_adapters_are_mixed_in_one_batch(
    tiny: Path, tiny_adapters: dict[str, Path]
) -> None:
    scheduler = scheduler_for(tiny, tiny_adapters)
    asked = [request(p, i % 4) for i, p in enumerate(prompts(1, [5, 30, 3, 17, 9, 40, 1, 22]))]
    heard = drive(scheduler, [(0, generation) for generation in asked])

    names = [None, *tiny_adapters]
    model = AutoModelForCausalLM.from_pretrained(tiny)
    for number, name in enumerate(names):
        alone = model if name is None else PeftModel.from_pretrained(model, tiny_adapters[name])
        for generation in (g for g in asked if g.adapter == number):
            ids = torch.tensor([generation.prompt])
            out = alone.generate(
                ids, max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0
            )
            expected = Letters().decode(out[0, ids.shape[1] :].tolist())
            assert heard[generation].text == expected, f"adapter {name}"
        if name is not None:
            alone.unload()


def test_logits_are_close_to_pefts_when_an_adapter_is_used(
    tiny: Path, tiny_adapters: dict[str, Path]
) -> None:
    captured: list[torch.Tensor] = []
    scheduler = scheduler_for(tiny, tiny_adapters)
    forward = scheduler._forward

    def spy(decoding: Any, chunks: Any) -> Any:
        logits, rows = forward(decoding, chunks)
        captured.append(logits.clone())
        return logits, rows

    scheduler._forward = spy  # type: ignore[method-assign]
    for number, (name, folder) in enumerate(tiny_adapters.items(), start=1):
        captured.clear()
        prompt = prompts(2, [12])[0]
        drive(scheduler, [(0, request(prompt, number, tokens=1))])
        alone = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny), folder)
        with torch.no_grad():
            expected = alone(torch.tensor([prompt])).logits[:, -1]
        torch.testing.assert_close(captured[0], expected, rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.parametrize("seed", range(3))
def test_greedy_text_is_the_same_in_a_batch_and_alone_when_rows_join_and_leave(
    tiny: Path, tiny_adapters: dict[str, Path], seed: int
) -> None:
    rng = random.Random(seed)
    lengths = [rng.randrange(1, 60) for _ in range(14)]
    plan = [
        (rng.randrange(30), prompt, rng.randrange(4), rng.randrange(1, 40))
        for prompt in prompts(seed, lengths)
    ]
    scheduler = scheduler_for(tiny, tiny_adapters)
    together = [(at, request(p, adapter, tokens=n)) for at, p, adapter, n in plan]
    batched = drive(scheduler, together)
    for (_, in_batch), (_, prompt, adapter, tokens) in zip(together, plan, strict=True):
        alone = request(prompt, adapter, tokens=tokens)
        assert batched[in_batch].text == drive(scheduler, [(0, alone)])[alone].text


def test_greedy_text_equals_transformers_when_the_real_model_runs_in_float32(
    cache_dir: Path,
) -> None:
    folder = weights.prepare_smollm2(cache_dir, print)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    asked = [
        request(tokenizer(text)["input_ids"], tokens=10)
        for text in ("The capital of France is", "1, 2, 3,", "def add(a, b):\n    return")
    ]
    scheduler = scheduler_for(folder, {}, prefill_tokens=4)
    heard = drive(scheduler, [(2 * i, generation) for i, generation in enumerate(asked)])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for generation in asked:
        ids = torch.tensor([generation.prompt])
        out = model.generate(ids, max_new_tokens=10, do_sample=False, eos_token_id=None)
        assert heard[generation].text == Letters().decode(out[0, ids.shape[1] :].tolist())


def test_row_leaves_at_the_next_boundary_when_it_is_cancelled(tiny: Path) -> None:
    scheduler = scheduler_for(tiny, {}, max_running=2)
    stays, goes, waits = (request(range(2, 9), tokens=150) for _ in range(3))
    for generation in (stays, goes, waits):
        scheduler.add(generation)
    with torch.inference_mode():
        scheduler.step()
        goes.cancelled = waits.cancelled = True
        deliveries = scheduler.step()
    assert (goes, Progress("", 1, "cancelled")) in deliveries
    assert (waits, Progress("", 0, "cancelled")) in deliveries
    assert (scheduler.running, scheduler.waiting) == (1, 0)


def test_running_row_gets_a_token_at_every_step_when_a_long_prompt_joins(tiny: Path) -> None:
    scheduler = scheduler_for(tiny, {}, prefill_tokens=16)
    runs, joins = request([5, 6]), request(range(2, 82))
    scheduler.add(runs)
    heard: list[list[Generation]] = []
    with torch.inference_mode():
        scheduler.step()
        scheduler.add(joins)
        heard += [[generation for generation, _ in scheduler.step()] for _ in range(6)]
    assert heard == [[runs]] * 4 + [[runs, joins]] * 2


def test_newcomer_alone_is_given_up_when_its_step_fails(tiny: Path) -> None:
    scheduler = scheduler_for(tiny, {})
    good, bad = request([5, 6, 7], tokens=12), request([5, VOCABULARY + 3], tokens=12)
    undisturbed = drive(scheduler, [(0, request([5, 6, 7], tokens=12))])
    heard = drive(scheduler, [(0, good), (4, bad)])
    assert heard[bad].end is not None
    assert heard[bad].end.finish == "error"
    assert heard[good].text == next(iter(undisturbed.values())).text


def test_only_the_row_is_given_up_when_its_logits_are_not_finite(
    tiny: Path, tiny_adapters: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "exploding"
    folder.mkdir()
    tensors = load_file(tiny_adapters["narrow"] / "adapter_model.safetensors")
    save_file({k: v * 1e30 for k, v in tensors.items()}, folder / "adapter_model.safetensors")
    config = (tiny_adapters["narrow"] / "adapter_config.json").read_text()
    (folder / "adapter_config.json").write_text(config)
    scheduler = scheduler_for(tiny, {"exploding": folder})
    good, bad, later = (request([7, 8, 9], adapter, tokens=9) for adapter in (0, 1, 0))
    heard = drive(scheduler, [(0, good), (0, bad), (3, later)])
    ends = [heard[g].end for g in (good, bad, later)]
    assert [end.finish for end in ends if end] == ["length", "error", "length"]
    assert heard[good].text == heard[later].text


def test_answer_ends_with_length_when_the_context_is_full(tiny: Path) -> None:
    scheduler = scheduler_for(tiny, {}, max_context=40)
    generation = request(range(2, 32), tokens=1000)
    end = drive(scheduler, [(0, generation)])[generation].end
    assert end == Progress(end.text if end else "", 10, "length")


def test_answer_ends_with_stop_when_the_end_token_comes(tiny: Path) -> None:
    every_token = frozenset(range(VOCABULARY))
    scheduler = scheduler_for(tiny, {}, eos=every_token)
    ends, ignores = request([4, 5]), request([4, 5], tokens=3, ignore_eos=True)
    heard = drive(scheduler, [(0, ends), (0, ignores)])
    assert heard[ends].end == Progress("", 1, "stop")
    assert heard[ignores].end is not None
    assert heard[ignores].end.finish == "length"


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 500)), min_size=1, max_size=12))
def test_every_row_is_attended_exactly_once_when_rows_are_grouped(
    gaps_and_lengths: list[tuple[int, int]],
) -> None:
    slots, at = [], -1
    for gap, _ in gaps_and_lengths:
        at += gap
        slots.append(at)
    lengths = [length for _, length in gaps_and_lengths]
    rows = []
    for group in decode_groups(slots, lengths, torch.float32):
        members = range(group.first, group.first + group.rows)
        assert [slots[i] for i in members] == [group.slot + j for j in range(group.rows)]
        assert group.length == max(lengths[i] for i in members)
        for i in members:
            visible = group.length
            if group.mask is not None:
                visible = int((group.mask[i - group.first] == 0).sum())
            assert visible == lengths[i]
        rows += members
    assert rows == list(range(len(slots)))


def test_stored_keys_stay_when_the_cache_grows_and_go_when_it_is_released() -> None:
    geometry = Geometry(2, 2, 4, 10, 2048, torch.float32)
    cache = SlotCache(geometry, max_slots=5, max_capacity=1000)
    small = cache.nbytes
    cache.keys[1][1, :, 255] = 3.0
    cache.reserve(5, 900)
    assert cache.keys[1].shape == (5, 2, 1000, 4)
    assert (cache.keys[1][1, :, 255] == 3.0).all()
    assert cache.keys[1].sum() == 3.0 * 8
    with pytest.raises(ValueError, match="bound"):
        cache.reserve(6, 10)
    cache.release()
    assert cache.nbytes == small
    assert all(tensor.sum() == 0 for tensor in cache.keys)


@pytest.mark.parametrize(
    ("params", "kept"),
    [
        ({}, [0, 1, 2, 3]),
        ({"top_p": 0.6}, [0, 1]),
        ({"top_p": 0.05}, [0]),
        ({"top_p": 0.0}, [0]),
        ({"top_k": 3}, [0, 1, 2]),
        ({"top_k": 3, "top_p": 0.6}, [0, 1]),
        ({"min_p": 0.55}, [0, 1]),
        ({"min_p": 0.45, "top_p": 0.7}, [0, 1]),
        ({"logit_bias": ((0, -100.0),)}, [1, 2, 3]),
        ({"temperature": 0.0}, [0]),
    ],
)
def test_tokens_are_drawn_by_their_probability_when_sampling_is_restricted(
    params: dict[str, Any], kept: list[int]
) -> None:
    probabilities = torch.tensor([0.4, 0.25, 0.2, 0.15])
    samplers = [
        RowSampler(SamplingParams(max_tokens=1, seed=seed, **params), ()) for seed in range(50)
    ]
    counts = torch.zeros(4)
    for _ in range(80):
        for token in choose(probabilities.log().expand(50, 4).clone(), samplers):
            assert token is not None
            counts[token] += 1
    expected = torch.zeros(4)
    expected[kept] = probabilities[kept] / probabilities[kept].sum()
    torch.testing.assert_close(counts / counts.sum(), expected, rtol=0, atol=0.04)


def test_draws_do_not_depend_on_the_rest_of_the_batch_when_a_seed_is_given() -> None:
    logits = torch.randn(8, 50, generator=torch.Generator().manual_seed(1))
    params = [
        SamplingParams(max_tokens=1, seed=i, top_p=0.3 + 0.1 * (i % 5), top_k=7 * (i % 3))
        for i in range(8)
    ]
    together = [choose(logits.clone(), rows) for rows in [[RowSampler(p, ()) for p in params]] * 3]
    alone = [
        [choose(logits[i : i + 1].clone(), [row])[0] for _ in range(3)]
        for i, row in enumerate(RowSampler(p, ()) for p in params)
    ]
    assert [list(tokens) for tokens in zip(*together, strict=True)] == alone


def test_repeated_tokens_become_less_likely_when_penalties_are_set() -> None:
    params = SamplingParams(
        max_tokens=9, temperature=0.0, frequency_penalty=0.5, presence_penalty=0.25
    )
    row = RowSampler(params, (2, 2, 2))
    for token in (0, 0, 1):
        row.record(token)
    logits = torch.tensor([[1.0, 1.0, 1.0]])
    assert choose(logits, [row]) == [2]
    torch.testing.assert_close(logits, torch.tensor([[-0.25, 0.25, 1.0]]))

    repetition = RowSampler(
        SamplingParams(max_tokens=9, temperature=0.0, repetition_penalty=2.0), (1,)
    )
    repetition.record(2)
    logits = torch.tensor([[1.0, 3.0, -1.0]])
    assert choose(logits, [repetition]) == [1]
    torch.testing.assert_close(logits, torch.tensor([[1.0, 1.5, -2.0]]))


class Bytes:
    """A decoder whose token n is one byte: the hardest case for characters of several bytes."""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return bytes(ids).decode(errors="replace")


@given(st.text(max_size=40))
def test_pieces_add_up_to_the_text_when_characters_span_tokens(text: str) -> None:
    detokenizer = Detokenizer(Bytes(), ())
    pieces = [detokenizer.push(byte) for byte in text.encode()]
    assert all("\N{REPLACEMENT CHARACTER}" not in piece for piece in pieces) or "\ufffd" in text
    assert "".join(pieces) + detokenizer.finish() == text


@settings(max_examples=300)
@given(
    st.text(alphabet="abc", max_size=30),
    st.lists(st.text(alphabet="abc", min_size=1, max_size=4), min_size=1, max_size=4),
)
def test_text_ends_before_the_first_stop_string_when_one_comes(text: str, stop: list[str]) -> None:
    detokenizer = Detokenizer(Bytes(), stop)
    sent = ""
    for byte in text.encode():
        sent += detokenizer.push(byte)
        assert text.startswith(sent)
        if detokenizer.stopped:
            break
    else:
        sent += detokenizer.finish()
    ends = [text.find(s) + len(s) for s in stop if s in text]
    if not ends:
        assert sent == text
        return
    met = text[: min(ends)]
    assert detokenizer.stopped
    assert sent == met[: min(met.find(s) for s in stop if s in met)]


def test_broken_bytes_are_sent_as_they_are_when_no_character_can_come_of_them() -> None:
    detokenizer = Detokenizer(Bytes(), ())
    sent = "".join(detokenizer.push(0xFF) for _ in range(20)) + detokenizer.finish()
    assert sent == "\ufffd" * 20


Edit = Callable[[dict[str, Any], dict[str, torch.Tensor]], None]
FIRST = "base_model.model.model.layers.0.self_attn.q_proj."


def _set(field: str, value: Any) -> Edit:
    return lambda config, tensors: config.__setitem__(field, value)


def _rename(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    for name in [name for name in tensors if ".q_proj." in name]:
        tensors[name.replace(".q_proj.", ".query.")] = tensors.pop(name)


def _drop(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    del tensors[FIRST + "lora_A.weight"]


def _widen(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    tensors[FIRST + "lora_A.weight"] = torch.zeros(2, 64)


def _poison(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    tensors[FIRST + "lora_A.weight"][0, 0] = torch.nan


def _magnitude(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    tensors[FIRST + "lora_magnitude_vector"] = torch.ones(48)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (_set("use_dora", True), "use_dora is not supported"),
        (_set("bias", "all"), "bias must be 'none'"),
        (_set("modules_to_save", ["lm_head"]), "modules_to_save is not supported"),
        (_set("rank_pattern", {"q_proj": 3}), "rank_pattern is not supported"),
        (_set("init_lora_weights", "pissa"), "changes the base too"),
        (_set("peft_type", "IA3"), "is not a LoRA adapter"),
        (_set("r", "2"), "r must be a rank"),
        (_set("r", 3), "not the rank 3"),
        (_set("lora_alpha", None), "lora_alpha must be a number"),
        (_rename, "the base has no module"),
        (_drop, "only one of A and B"),
        (_widen, "is it for another base"),
        (_poison, "not finite"),
        (_magnitude, "not part of a plain LoRA adapter"),
    ],
)
def test_adapter_is_refused_with_its_reason_when_it_can_not_be_served(
    tiny: Path, tiny_adapters: dict[str, Path], tmp_path: Path, edit: Edit, words: str
) -> None:
    source = tiny_adapters["narrow"]
    config = json.loads((source / "adapter_config.json").read_text())
    tensors = load_file(source / "adapter_model.safetensors")
    edit(config, tensors)
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(SetupError, match=words):
        LoraBank(LlamaForCausalLM.from_pretrained(tiny), [read_adapter("x", tmp_path)])


def test_adapter_is_refused_when_its_weights_are_a_pickle(
    tiny_adapters: dict[str, Path], tmp_path: Path
) -> None:
    config = (tiny_adapters["narrow"] / "adapter_config.json").read_text()
    (tmp_path / "adapter_config.json").write_text(config)
    (tmp_path / "adapter_model.bin").write_bytes(b"never read")
    with pytest.raises(SetupError, match="could run code"):
        read_adapter("x", tmp_path)


def test_makers_sampling_is_the_default_when_the_model_folder_recommends_it(
    cache_dir: Path,
) -> None:
    from transformers import GenerationConfig

    recommended = sampling_defaults(
        GenerationConfig.from_pretrained(weights.prepare_smollm2(cache_dir, print))
    )
    assert (recommended.temperature, recommended.top_p) == (0.2, 0.9)
    greedy = sampling_defaults(GenerationConfig(do_sample=False, temperature=0.5))
    assert greedy == SamplingDefaults()
