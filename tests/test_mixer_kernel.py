"""The vLLM plug-in's term and checkpoint, without vLLM: whole, and split over simulated ranks."""

import ast
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from experts.errors import SetupError
from experts.mixer.checkpoint import save_mixture
from experts.mixer.mixture import Mixture, compose
from experts.mixer.routed import attach
from experts.mixer.spec import GateSpec
from experts.mixer.vllm_plugin.checkpoint import (
    section,
    vllm_tensors,
    write_vllm_checkpoint,
)
from experts.mixer.vllm_plugin.kernel import FusedTerm, Gating, InputPart, Slot
from experts.mixer.vllm_plugin.priors import Priors
from tests.mixer_parts import adapters, make_base, save_base

LAYER = "model.layers.0.self_attn"
WIDTH, TOKENS = 32, 7
QKV = {"q_proj": 32, "k_proj": 16, "v_proj": 16}


def whole(total: Tensor) -> Tensor:
    """Summing over one rank."""
    return total


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return adapters("llama", tmp_path_factory.mktemp("adapters"))


def mixture_of(experts: list[Any], **gate: Any) -> Mixture:
    mixture = compose(experts, gate=GateSpec(**gate))
    generator = torch.Generator().manual_seed(2)
    gates = {
        name: torch.randn(matrix.shape, generator=generator)
        for name, matrix in mixture.gates.items()
    }
    return mixture.with_gates(mixture.spec.gate, gates)


def gating_of(mixture: Mixture) -> Gating:
    gate = mixture.spec.gate
    return Gating(gate.kind, len(mixture.adapters), gate.top_k, gate.top_p, gate.temperature)


def tensors_of(mixture: Mixture) -> dict[str, Tensor]:
    return {name.removeprefix("mixer."): t for name, t in vllm_tensors(mixture).items()}


def qkv_term(mixture: Mixture, rank: int, size: int) -> FusedTerm:
    """The term of the fused q, k and v for one rank of a tensor-parallel group."""
    ranks = section(mixture, "v")["ranks"]
    shared = mixture.spec.gate.scope == "layer"
    slots = [
        Slot(
            name=f"{LAYER}.{leaf}",
            gate=0 if shared else number,
            ranks=ranks.get(f"{LAYER}.{leaf}", 0),
            start=rank * length // size,
            length=length // size,
        )
        for number, (leaf, length) in enumerate(QKV.items())
    ]
    term = FusedTerm(gating_of(mixture), slots, InputPart(WIDTH, 0, WIDTH), torch.float32)
    term.fill(tensors_of(mixture))
    return term


def o_term(mixture: Mixture, rank: int, size: int) -> FusedTerm:
    name = f"{LAYER}.o_proj"
    ranks = section(mixture, "v")["ranks"][name]
    length = WIDTH // size
    part = InputPart(WIDTH, rank * length, length)
    term = FusedTerm(gating_of(mixture), [Slot(name, 0, ranks, 0, WIDTH)], part, torch.float32)
    term.fill(tensors_of(mixture))
    return term


def some_tokens() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(8)
    x = torch.randn(TOKENS, WIDTH, generator=generator) + 0.3
    prior = torch.randn(TOKENS, 3, generator=generator)
    allowed = torch.ones(TOKENS, 3, dtype=torch.bool)
    allowed[2, 0] = allowed[5, 2] = False
    return x, prior, allowed


def reference(mixture: Mixture, leaf: str, *inputs: Tensor) -> Tensor:
    """What the routed linear of the Hugging Face model adds to its base."""
    x, prior, allowed = inputs
    model = make_base("llama")
    routing = attach(model, mixture)
    linear = model.get_submodule(f"{LAYER}.{leaf}")
    routing.prior, routing.allowed = prior, allowed
    routed: Tensor = linear(x) - linear.base(x)
    return routed


GATES: list[dict[str, Any]] = [
    {"kind": "linear", "top_k": 2},
    {"kind": "linear", "scope": "layer", "top_p": 0.7},
    {"kind": "vector", "top_k": 2},
    {"kind": "vector", "scope": "layer"},
    {"kind": "arrow", "top_k": 1, "temperature": 0.5},
    {"kind": "uniform"},
]


@pytest.mark.parametrize("gate", GATES, ids=str)
@pytest.mark.parametrize("size", [1, 2, 4])
def test_fused_projections_equal_the_routed_linears_however_the_output_is_split(
    experts: list[Any], gate: dict[str, Any], size: int
) -> None:
    mixture = mixture_of(experts, **gate)
    inputs = some_tokens()
    parts = [qkv_term(mixture, rank, size)(*inputs, whole) for rank in range(size)]
    lengths = [length // size for length in QKV.values()]
    cut = [part.split(lengths, dim=-1) for part in parts]
    for number, leaf in enumerate(QKV):
        found = torch.cat([pieces[number] for pieces in cut], dim=-1)
        expected = reference(mixture, leaf, *inputs)
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("gate", GATES, ids=str)
@pytest.mark.parametrize("size", [1, 2, 4])
def test_every_rank_has_the_whole_term_when_the_input_is_split(
    experts: list[Any], gate: dict[str, Any], size: int
) -> None:
    mixture = mixture_of(experts, **gate)
    x, prior, allowed = some_tokens()
    terms = [o_term(mixture, rank, size) for rank in range(size)]
    pieces = x.split(WIDTH // size, dim=-1)
    products = [term.products(piece) for term, piece in zip(terms, pieces, strict=True)]
    total = torch.stack(products).sum(dim=0)
    expected = reference(mixture, "o_proj", x, prior, allowed)
    for term, piece in zip(terms, pieces, strict=True):
        found = term.finish(total, piece, prior, allowed)
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


def test_priors_follow_their_requests_through_the_batch() -> None:
    tables = Priors([True, True, False], requests=4, tokens=10)
    tables.set_row(0, [1.0, 2.0, 3.0], None)
    tables.set_row(1, None, [0, 1, 1])
    tables.spread(torch.tensor([0, 3, 5]), tokens=6)
    assert tables.prior[:, 1].tolist() == [2.0, 2.0, 2.0, 0, 0, 0, 0, 0, 0, 0]
    assert tables.allowed[:6].tolist() == [[True, True, False]] * 3 + [[False, True, False]] * 2 + [
        [True, True, False]
    ]
    tables.move_row(0, 1, swap=True)
    tables.spread(torch.tensor([0, 1, 2]), tokens=2)
    assert tables.prior[:2, 0].tolist() == [0.0, 1.0]
    tables.move_row(1, 0, swap=False)
    tables.set_row(1, None, None)
    tables.spread(torch.tensor([0, 1, 2]), tokens=2)
    assert tables.prior[:2, 0].tolist() == [1.0, 0.0]
    tables.spread(torch.tensor([0, 2]), tokens=2, rows=torch.tensor([3]))
    assert tables.prior[:2].eq(0).all()
    tables.spread(None, tokens=2)
    assert tables.allowed[:2].tolist() == [[True, True, False]] * 2


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_base("llama", tmp_path / "base")


def test_a_checkpoint_is_the_base_with_one_more_file_and_a_section(
    experts: list[Any], base: Path, tmp_path: Path
) -> None:
    mixture = mixture_of(experts, kind="vector", scope="layer", top_k=2)
    version = save_mixture(mixture, tmp_path / "mixer", base)
    (base / "model.safetensors.index.json").write_text('{"metadata": {}, "weight_map": {"a": "b"}}')
    out = tmp_path / "served"
    assert write_vllm_checkpoint(tmp_path / "mixer", base, out) == version
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == ["LoRAMixerLlamaForCausalLM"]
    assert config["hidden_size"] == WIDTH
    assert config["lora_mixer"]["open"] == [True, True, True]
    assert config["lora_mixer"]["ranks"][f"{LAYER}.q_proj"] == 6
    tensors = load_file(out / "mixer.safetensors")
    assert tensors[f"mixer.{LAYER}.k_proj.gate"].shape == (3, WIDTH)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == {"a", *tensors}
    assert (out / "model.safetensors").samefile(base / "model.safetensors")
    with pytest.raises(SetupError, match="is there already: delete it"):
        write_vllm_checkpoint(tmp_path / "mixer", base, out)
    write_vllm_checkpoint(tmp_path / "mixer", base, tmp_path / "moved", copy=True)
    assert not (tmp_path / "moved" / "model.safetensors").is_symlink()


def test_a_base_that_vllm_can_not_mix_on_is_refused(tmp_path: Path) -> None:
    base = save_base("mamba", tmp_path / "base")
    mixture = compose(
        adapters("mamba", tmp_path), targets=("in_proj", "x_proj"), gate=GateSpec(kind="uniform")
    )
    save_mixture(mixture, tmp_path / "mixer", base)
    with pytest.raises(SetupError, match=r"can't be served by vLLM.*use the embedded engine"):
        write_vllm_checkpoint(tmp_path / "mixer", base, tmp_path / "out")


def test_what_runs_inside_vllm_imports_nothing_that_is_not_there() -> None:
    """The distribution is installed there without its dependencies. The writer of checkpoints runs
    where Composer does."""
    mixer = Path(__file__).parents[1] / "experts" / "mixer"
    inside = [file for file in (mixer / "vllm_plugin").glob("*.py") if file.name != "checkpoint.py"]
    shared = {f"experts.mixer.{name}" for name in ("gates", "kinds")}
    for file in [*inside, mixer / "__init__.py", mixer / "gates.py", mixer / "kinds.py"]:
        for node in ast.walk(ast.parse(file.read_text())):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            for name in names:
                root = name.partition(".")[0]
                ours = name in shared or name.startswith("experts.mixer.vllm_plugin")
                allowed = root in {"torch", "vllm", "safetensors"} | sys.stdlib_module_names
                assert ours or allowed, f"{file.name} imports {name}"
