"""LoRA adapters in peft's format: loading the matrices that `adapter_files` describes."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from experts.engines.embedded.adapter_files import (
    pair_up,
    read_adapter_config,
    require_rank,
    weights_file,
)
from experts.errors import SetupError


@dataclass(frozen=True, slots=True)
class Adapter:
    """One adapter's matrices by module name: A (rank, d_in) and B (d_out, rank), and its scale."""

    name: str
    rank: int
    scale: float
    matrices: dict[str, tuple[Tensor, Tensor]]


def read_adapter(name: str, folder: Path) -> Adapter:
    """Read adapter_config.json and adapter_model.safetensors; raises `SetupError`."""
    config = read_adapter_config(name, folder)
    tensors = _read_tensors(name, weights_file(name, folder))
    matrices: dict[str, tuple[Tensor, Tensor]] = {}
    for module, (key_a, key_b) in pair_up(name, tensors).items():
        a, b = tensors[key_a].to(torch.float32), tensors[key_b].to(torch.float32)
        require_rank(name, module, tuple(a.shape), tuple(b.shape), config.rank)
        if not (a.isfinite().all() and b.isfinite().all()):
            raise SetupError(f"adapter {name}: {module} holds values that are not finite")
        matrices[module] = (a, b)
    return Adapter(name, config.rank, config.scale, matrices)


def _read_tensors(name: str, path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise SetupError(f"adapter {name}: {path} is damaged: {error}") from error
    return tensors
