"""What the folder of a mixer says of itself: its mixer.json, read without loading a tensor."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open

from experts.engines.embedded.adapter_files import read_shapes
from experts.errors import ArtefactError, SetupError
from experts.mixer.spec import MixerSpec

FORMAT = 1
DESCRIPTION = "mixer.json"
TENSORS = "mixer.safetensors"
INSTRUCTIONS = "instructions"
_MAX_DESCRIPTION_BYTES = 16 << 20
_GEOMETRY = (
    "architectures",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "state_size",
)


class Description(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int
    spec: MixerSpec
    shapes: dict[str, tuple[int, ...]]
    sha256: str
    training: dict[str, Any] = {}


def base_fingerprint(folder: Path) -> str:
    """A hash of the geometry that the base's config.json states.

    Raises:
        SetupError: the folder holds no model.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise SetupError(f"{folder} holds no model: can't read its config.json") from error
    geometry = {key: config.get(key) for key in _GEOMETRY}
    return hashlib.sha256(json.dumps(geometry, sort_keys=True).encode()).hexdigest()[:16]


def mixer_version(folder: Path) -> str:
    """A hash of what the mixer computes: its spec and its tensors."""
    description = describe(folder)
    told = description.spec.model_dump_json() + description.sha256
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def read_spec(folder: Path) -> tuple[MixerSpec, dict[str, Any]]:
    """What mixer.json says: the spec, and the findings of the training.

    Raises:
        ArtefactError: it is missing, damaged, or of another format.
    """
    description = describe(folder)
    return description.spec, description.training


def describe(folder: Path) -> Description:
    path = folder / DESCRIPTION
    try:
        if path.stat().st_size > _MAX_DESCRIPTION_BYTES:
            raise ArtefactError(f"mixer {folder}: {DESCRIPTION} is too large to be one")
        description = Description.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ArtefactError(
            f"mixer {folder}: can't read {DESCRIPTION}: {error.strerror}; "
            "name the folder that `coe mixer train` wrote"
        ) from error
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, problem["loc"])) or DESCRIPTION
        raise ArtefactError(
            f"mixer {folder}: {DESCRIPTION} is damaged at {where}: {problem['msg']}"
        ) from error
    if description.format != FORMAT:
        raise ArtefactError(
            f"mixer {folder}: it has format {description.format}, this version reads {FORMAT}: "
            "train it again"
        )
    return description


def check_mixer(folder: Path, base: Path | None) -> MixerSpec:
    """The mixer's spec, after a look at its files that loads no tensor.

    Raises:
        ArtefactError: something is missing or damaged, or it was made for another base.
    """
    description = describe(folder)
    if base is not None:
        require_base(folder, description.spec, base)
    try:
        shapes = read_shapes(str(folder), folder / TENSORS)
    except SetupError as error:
        raise ArtefactError(
            f"mixer {folder}: {TENSORS} is missing or damaged: copy the folder again"
        ) from error
    for key, shape in description.shapes.items():
        if shapes.get(key) != shape:
            raise missing(folder, key)
    return description.spec


def read_instructions(folder: Path, spec: MixerSpec) -> NDArray[np.float32] | None:
    """Unit vectors (experts, width) of the members' instructions, if the mixer has them.

    Raises:
        ArtefactError: the file is damaged.
    """
    try:
        with safe_open(folder / TENSORS, framework="numpy") as file:
            if INSTRUCTIONS not in file.keys():  # noqa: SIM118
                return None
            vectors: NDArray[np.float32] = file.get_tensor(INSTRUCTIONS)
    except (SafetensorError, OSError) as error:
        raise ArtefactError(f"mixer {folder}: {TENSORS} is missing or damaged: {error}") from error
    if vectors.ndim != 2 or len(vectors) != len(spec.members):
        raise missing(folder, INSTRUCTIONS)
    return vectors


def require_base(folder: Path, spec: MixerSpec, base: Path) -> None:
    """
    Raises:
        ArtefactError: the mixer was made for a base of another geometry.
    """
    if base_fingerprint(base) != spec.base:
        raise ArtefactError(
            f"mixer {folder}: it was made for {spec.base_name or 'another base'}, whose geometry "
            f"differs from that of {base}; register it on its own base"
        )


def missing(folder: Path, key: str) -> ArtefactError:
    return ArtefactError(
        f"mixer {folder}: the tensor {key} is missing from {TENSORS} or has another shape: "
        "copy the folder again, or train the mixer again"
    )
