"""The files of a LoRA adapter in peft's format: what they say, read without loading a tensor."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from experts.errors import SetupError

MAX_RANK = 1024
A_SUFFIX = ".lora_A.weight"
B_SUFFIX = ".lora_B.weight"
_KEY_PREFIX = "base_model.model."
_MAX_CONFIG_BYTES = 1 << 20

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

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """What adapter_config.json says of a plain LoRA adapter: its rank, and its scale."""

    rank: int
    scale: float


def read_adapter_config(name: str, folder: Path) -> AdapterConfig:
    """Read adapter_config.json, refusing what the engine would get wrong.

    Raises:
        SetupError: it is not the configuration of a plain LoRA adapter.
    """
    config = _read_json(name, folder / "adapter_config.json")
    if config.get("peft_type") != "LORA":
        raise SetupError(f"adapter {name}: {folder} is not a LoRA adapter")
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
    rank, alpha = _rank(name, config), _alpha(name, config)
    scale = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    return AdapterConfig(rank, scale)


def weights_file(name: str, folder: Path) -> Path:
    """Where the adapter's tensors are.

    Raises:
        SetupError: there are none, or only pickled ones.
    """
    path = folder / "adapter_model.safetensors"
    if not path.is_file():
        pickled = (folder / "adapter_model.bin").exists()
        hint = " (a pickled adapter_model.bin is not loaded: it could run code)" if pickled else ""
        raise SetupError(f"adapter {name}: {path} is missing{hint}")
    return path


def read_shapes(name: str, path: Path) -> dict[str, Shape]:
    """Shapes of a safetensors file's tensors by key, from its header alone.

    Raises:
        SetupError: the file is damaged.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise SetupError(f"adapter {name}: {path} is damaged: {error}") from error


def pair_up(name: str, keys: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """The keys of A and B by the name of the module that they adapt.

    Raises:
        SetupError: a tensor is not part of a plain LoRA adapter, or lacks its partner.
    """
    modules: dict[str, dict[str, str]] = {}
    for key in keys:
        for suffix in (A_SUFFIX, B_SUFFIX):
            if key.startswith(_KEY_PREFIX) and key.endswith(suffix):
                module = key[len(_KEY_PREFIX) : -len(suffix)]
                modules.setdefault(module, {})[suffix] = key
                break
        else:
            raise SetupError(f"adapter {name}: tensor {key!r} is not part of a plain LoRA adapter")
    if not modules:
        raise SetupError(f"adapter {name}: it holds no matrices")
    for module, pair in modules.items():
        if len(pair) != 2:
            raise SetupError(f"adapter {name}: {module} has only one of A and B")
    return {module: (pair[A_SUFFIX], pair[B_SUFFIX]) for module, pair in modules.items()}


def require_rank(name: str, module: str, a: Shape, b: Shape, rank: int) -> None:
    """
    Raises:
        SetupError: the matrices don't have the rank that the configuration says.
    """
    if len(a) != 2 or len(b) != 2 or a[0] != rank or b[1] != rank:
        raise SetupError(
            f"adapter {name}: {module} has A {a} and B {b}, "
            f"which is not the rank {rank} of its adapter_config.json"
        )


def check_adapter(name: str, folder: Path, base: Path | None) -> None:
    """Whether the files are a plain LoRA adapter, and fit the base model in the folder `base`.

    Raises:
        SetupError: they are not, or don't.
    """
    config = read_adapter_config(name, folder)
    shapes = read_shapes(name, weights_file(name, folder))
    weights = {} if base is None else _base_shapes(name, base)
    for module, (key_a, key_b) in pair_up(name, shapes).items():
        a, b = shapes[key_a], shapes[key_b]
        require_rank(name, module, a, b, config.rank)
        if not weights:
            continue
        of_base = weights.get(f"{module}.weight")
        if of_base is None:
            raise SetupError(f"adapter {name}: the base has no module {module}")
        if of_base != (b[0], a[1]):
            raise SetupError(
                f"adapter {name}: {module} is for a base with weights of shape {(b[0], a[1])}, "
                f"the base's are {of_base}"
            )


def _base_shapes(name: str, base: Path) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {}
    for file in sorted(base.glob("*.safetensors")):
        shapes |= read_shapes(name, file)
    return shapes


def _read_json(name: str, path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise SetupError(f"adapter {name}: {path} is over {_MAX_CONFIG_BYTES} bytes")
        config = json.loads(path.read_bytes())
    except OSError as error:
        raise SetupError(f"adapter {name}: can't read {path}: {error.strerror}") from error
    except ValueError as error:
        raise SetupError(f"adapter {name}: {path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise SetupError(f"adapter {name}: {path} is not the configuration of a LoRA adapter")
    return config


def _rank(name: str, config: dict[str, Any]) -> int:
    rank = config.get("r")
    if type(rank) is not int or not 1 <= rank <= MAX_RANK:
        raise SetupError(f"adapter {name}: r must be a rank of 1 to {MAX_RANK}, not {rank!r}")
    return rank


def _alpha(name: str, config: dict[str, Any]) -> float:
    alpha = config.get("lora_alpha")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not math.isfinite(alpha):
        raise SetupError(f"adapter {name}: lora_alpha must be a number, not {alpha!r}")
    return float(alpha)
