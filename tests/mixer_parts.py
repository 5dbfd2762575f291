"""Tiny bases of several families, and adapters on them that peft itself wrote."""

import zlib
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model

from experts.engines.embedded.adapters import Adapter, read_adapter

VOCABULARY = 320
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}
MAMBA = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "state_size": 4,
    "num_hidden_layers": 2,
    "pad_token_id": 0,
}
FAMILIES: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "llama": ("LlamaConfig", SMALL, ATTENTION),
    "qwen": ("Qwen3Config", SMALL, ATTENTION),
    "gemma": ("Gemma2Config", SMALL, (*ATTENTION, "down_proj")),
    "mamba": ("MambaConfig", MAMBA, ("in_proj", "x_proj")),
}


def make_base(family: str, **more: Any) -> Any:
    """A random model of a family, frozen: what needs a gradient is multiplied differently."""
    name, values, _ = FAMILIES[family]
    torch.manual_seed(zlib.crc32(family.encode()))
    config = getattr(transformers, name)(**{**values, **more})
    return transformers.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)


def save_base(family: str, folder: Path, **more: Any) -> Path:
    make_base(family, **more).save_pretrained(folder)
    return folder


def write_adapter(
    family: str,
    folder: Path,
    *,
    seed: int,
    rank: int,
    alpha: float,
    targets: tuple[str, ...] | None = None,
) -> Path:
    """A random adapter as peft saves it."""
    config = LoraConfig(
        r=rank, lora_alpha=alpha, target_modules=list(targets or FAMILIES[family][2])
    )
    model = get_peft_model(make_base(family), config)
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data = torch.randn(weight.shape, generator=generator) * 0.2
    model.save_pretrained(folder)
    return folder


def adapters(family: str, root: Path) -> list[Adapter]:
    """Three adapters of different rank and scale; the last leaves the first target alone."""
    targets = FAMILIES[family][2]
    folders = {
        "one": write_adapter(family, root / "one", seed=1, rank=4, alpha=7),
        "two": write_adapter(family, root / "two", seed=2, rank=2, alpha=3),
        "part": write_adapter(family, root / "part", seed=3, rank=3, alpha=5, targets=targets[1:]),
    }
    return [read_adapter(name, folder) for name, folder in folders.items()]


def plain_lora(family: str, folder: Path) -> Any:
    """The reference: peft's own model under one adapter."""
    return PeftModel.from_pretrained(make_base(family), folder).eval()


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    out: torch.Tensor = model(input_ids=ids).logits
    return out


def some_ids(rows: int = 2, length: int = 9, seed: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, VOCABULARY, (rows, length), generator=generator)
