"""Loading the base: a plain causal language model of transformers, made ready for ragged steps."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from experts.engines.embedded.attention import ATTENTION_NAME, register_attention
from experts.engines.embedded.requests import SamplingDefaults
from experts.errors import SetupError


@dataclass(frozen=True, slots=True)
class Geometry:
    """What the scheduler and the cache must know of a model."""

    layers: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    max_positions: int
    dtype: torch.dtype


class PackedLinear(nn.Module):
    """A bias-free bfloat16 Linear whose weight lies in oneDNN's blocked layout.

    The result equals `nn.Linear`'s bit for bit; the plain layout is read 1.4 times slower at every
    batch size, because oneDNN reorders it on the way.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, None, "none", [], "")
        return out


def choose_dtype(name: str) -> torch.dtype:
    """`auto` is bfloat16 where the processor multiplies it natively, else float32."""
    if name == "auto":
        capability = torch.cpu.get_capabilities()
        native = capability.get("avx512_bf16") or capability.get("amx_bf16")
        return torch.bfloat16 if native else torch.float32
    return {"bfloat16": torch.bfloat16, "float32": torch.float32}[name]


def load_base(folder: Path, dtype: torch.dtype) -> tuple[Any, Geometry]:
    """The model in `folder` (config.json and safetensors) in evaluation mode, and its geometry.

    Raises `SetupError` for a folder or an architecture that this engine can't serve.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    if not (folder / "config.json").is_file():
        raise SetupError(f"{folder} holds no model: config.json is missing")
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    register_attention()
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        config=config,
        dtype=dtype,
        local_files_only=True,
        use_safetensors=True,
        attn_implementation=ATTENTION_NAME,
    ).eval()
    return model, _geometry(model.config.get_text_config(), dtype)


def _geometry(config: Any, dtype: torch.dtype) -> Geometry:
    heads = config.num_attention_heads
    max_positions = config.max_position_embeddings
    window = getattr(config, "sliding_window", None)
    if window is not None and getattr(config, "use_sliding_window", True):
        # Within one window, sliding attention is full attention.
        max_positions = min(max_positions, window)
    return Geometry(
        layers=config.num_hidden_layers,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        vocabulary=config.vocab_size,
        max_positions=max_positions,
        dtype=dtype,
    )


def pack_linears(model: nn.Module) -> None:
    """Replace every Linear that has a faster packed form, in place.

    What is left is copied out of the mapped file, whose pages would otherwise count as this
    process's memory for good.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return
    for name, linear in list(model.named_modules()):
        if not isinstance(linear, nn.Linear) or linear.bias is not None:
            continue
        if linear.weight.dtype is torch.bfloat16:
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, PackedLinear(linear))
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()


def sampling_defaults(generation_config: Any) -> SamplingDefaults:
    """What the model's generation_config.json recommends, where it recommends sampling."""
    if not generation_config.do_sample:
        return SamplingDefaults()
    off = SamplingDefaults()
    return SamplingDefaults(
        temperature=_given(generation_config.temperature, off.temperature),
        top_p=_given(generation_config.top_p, off.top_p),
        top_k=int(_given(generation_config.top_k, off.top_k)),
        repetition_penalty=_given(generation_config.repetition_penalty, off.repetition_penalty),
    )


def _given(value: float | None, default: float) -> float:
    return default if value is None else float(value)
