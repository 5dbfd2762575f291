"""LoRA adapters in peft's format: reading them, and refusing what this engine would get wrong."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from experts.errors import SetupError

_MAX_CONFIG_BYTES = 1 << 20
_MAX_RANK = 1024
_KEY_PREFIX = "base_model.model."
_A_SUFFIX = ".lora_A.weight"
_B_SUFFIX = ".lora_B.weight"

# Fields of adapter_config.json whose effect is not computed here: each must be absent or empty.
_UNSUPPORTED = (
    "use_dora",
    "lora_bias",
    "fan_in_fan_out",
    "modules_to_save",
    "rank_pattern",
    "alpha_pattern",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "arrow_config",
    "use_qalora",
    "use_bdlora",
    "kasa_config",
    "monteclora_config",
    "velora_config",
)

# These ways to begin training change the base as well, so the adapter alone is only half of it.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True, slots=True)
class Adapter:
    """One adapter's matrices by module name: A (rank, d_in) and B (d_out, rank), and its scale."""

    name: str
    rank: int
    scale: float
    matrices: dict[str, tuple[Tensor, Tensor]]


def read_adapter(name: str, folder: Path) -> Adapter:
    """Read adapter_config.json and adapter_model.safetensors; raises `SetupError`."""
    config = _read_config(name, folder)
    rank = _rank(name, config)
    alpha = _alpha(name, config)
    scale = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    matrices = _pair_up(name, _read_tensors(name, folder))
    for module, (a, b) in matrices.items():
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != rank or b.shape[1] != rank:
            raise SetupError(
                f"adapter {name}: {module} has A {tuple(a.shape)} and B {tuple(b.shape)}, "
                f"which is not the rank {rank} of its adapter_config.json"
            )
        if not (a.isfinite().all() and b.isfinite().all()):
            raise SetupError(f"adapter {name}: {module} holds values that are not finite")
    return Adapter(name, rank, scale, matrices)


def _read_config(name: str, folder: Path) -> dict[str, Any]:
    path = folder / "adapter_config.json"
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise SetupError(f"adapter {name}: {path} is over {_MAX_CONFIG_BYTES} bytes")
        config = json.loads(path.read_bytes())
    except OSError as error:
        raise SetupError(f"adapter {name}: can't read {path}: {error.strerror}") from error
    except ValueError as error:
        raise SetupError(f"adapter {name}: {path} is not JSON: {error}") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise SetupError(f"adapter {name}: {path} is not the configuration of a LoRA adapter")
    for field in _UNSUPPORTED:
        if config.get(field):
            raise SetupError(f"adapter {name}: {field} is not supported; train it without")
    begun = str(config.get("init_lora_weights"))
    if begun.startswith(_CHANGES_BASE):
        raise SetupError(
            f"adapter {name}: init_lora_weights {begun!r} changes the base too; convert the "
            "adapter to plain LoRA when saving it (peft: path_initial_model_for_weight_conversion)"
        )
    if config.get("bias", "none") != "none":
        raise SetupError(f"adapter {name}: bias must be 'none', not {config['bias']!r}")
    return config


def _rank(name: str, config: dict[str, Any]) -> int:
    rank = config.get("r")
    if type(rank) is not int or not 1 <= rank <= _MAX_RANK:
        raise SetupError(f"adapter {name}: r must be a rank of 1 to {_MAX_RANK}, not {rank!r}")
    return rank


def _alpha(name: str, config: dict[str, Any]) -> float:
    alpha = config.get("lora_alpha")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not math.isfinite(alpha):
        raise SetupError(f"adapter {name}: lora_alpha must be a number, not {alpha!r}")
    return float(alpha)


def _read_tensors(name: str, folder: Path) -> dict[str, Tensor]:
    path = folder / "adapter_model.safetensors"
    if not path.is_file():
        pickled = (folder / "adapter_model.bin").exists()
        hint = " (a pickled adapter_model.bin is not loaded: it could run code)" if pickled else ""
        raise SetupError(f"adapter {name}: {path} is missing{hint}")
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise SetupError(f"adapter {name}: {path} is damaged: {error}") from error
    return tensors


def _pair_up(name: str, tensors: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    modules: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        for suffix in (_A_SUFFIX, _B_SUFFIX):
            if key.startswith(_KEY_PREFIX) and key.endswith(suffix):
                module = key[len(_KEY_PREFIX) : -len(suffix)]
                modules.setdefault(module, {})[suffix] = tensor.to(torch.float32)
                break
        else:
            raise SetupError(f"adapter {name}: tensor {key!r} is not part of a plain LoRA adapter")
    if not modules:
        raise SetupError(f"adapter {name}: it holds no matrices")
    for module, pair in modules.items():
        if len(pair) != 2:
            raise SetupError(f"adapter {name}: {module} has only one of A and B")
    return {module: (pair[_A_SUFFIX], pair[_B_SUFFIX]) for module, pair in modules.items()}
