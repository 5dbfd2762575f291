"""The folder of a mixer: mixer.json and mixer.safetensors, nothing that loading could run."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from experts.engines.embedded.adapters import Adapter
from experts.errors import ArtefactError
from experts.mixer.description import (
    DESCRIPTION,
    FORMAT,
    INSTRUCTIONS,
    TENSORS,
    Description,
    base_fingerprint,
    describe,
    missing,
    mixer_version,
    require_base,
)
from experts.mixer.mixture import Mixture


def save_mixture(
    mixture: Mixture, folder: Path, base: Path, training: dict[str, Any] | None = None
) -> str:
    """Write a mixer for the base in the folder `base`; returns its version.

    `training` is what its training found (load, specialisation, ...), for `coe mixer show`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    spec = mixture.spec.model_copy(
        update={"base": base_fingerprint(base), "base_name": mixture.spec.base_name or base.name}
    )
    tensors = {key: _compact(key, tensor) for key, tensor in _tensors(mixture).items()}
    save_file(tensors, folder / TENSORS, metadata={"format": "pt"})
    digest = _digest(folder / TENSORS)
    description = Description(
        format=FORMAT,
        spec=spec,
        shapes={key: tuple(tensor.shape) for key, tensor in tensors.items()},
        sha256=digest,
        training=training or {},
    )
    (folder / DESCRIPTION).write_text(description.model_dump_json(indent=2) + "\n")
    return mixer_version(folder)


def load_mixture(folder: Path, base: Path | None = None) -> Mixture:
    """Read a mixer, for the base in the folder `base` if given.

    Raises:
        ArtefactError: something is missing, damaged, or made for another base.
    """
    description = describe(folder)
    spec = description.spec
    if base is not None:
        require_base(folder, spec, base)
    tensors = _load_tensors(folder, description)
    adapters = tuple(
        Adapter(member.name, member.rank, member.scale, _matrices(folder, number, tensors))
        for number, member in enumerate(spec.members)
    )
    gates = {
        key.removeprefix("gates."): tensor
        for key, tensor in tensors.items()
        if key.startswith("gates.")
    }
    mixture = Mixture(spec, adapters, gates, tensors.get(INSTRUCTIONS))
    _check_gates(folder, mixture)
    return mixture


def _load_tensors(folder: Path, description: Description) -> dict[str, Tensor]:
    path = folder / TENSORS
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ArtefactError(
            f"mixer {folder}: {TENSORS} is missing or damaged ({error}): copy the folder again"
        ) from error
    for key, shape in description.shapes.items():
        if key not in tensors or tuple(tensors[key].shape) != shape:
            raise missing(folder, key)
    if _digest(path) != description.sha256:
        raise ArtefactError(
            f"mixer {folder}: {TENSORS} is not the file that {DESCRIPTION} describes: "
            "copy both from one training"
        )
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise ArtefactError(f"mixer {folder}: {TENSORS} holds values that are not finite")
    return {key: tensor.to(torch.float32) for key, tensor in tensors.items()}


def _tensors(mixture: Mixture) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for number, adapter in enumerate(mixture.adapters):
        for module, (a, b) in adapter.matrices.items():
            tensors[f"adapters.{number}.{module}.a"] = a
            tensors[f"adapters.{number}.{module}.b"] = b
    tensors |= {f"gates.{name}": gate for name, gate in mixture.gates.items()}
    if mixture.instructions is not None:
        tensors[INSTRUCTIONS] = mixture.instructions
    return tensors


def _matrices(
    folder: Path, number: int, tensors: dict[str, Tensor]
) -> dict[str, tuple[Tensor, Tensor]]:
    prefix = f"adapters.{number}."
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for key in tensors:
        if key.startswith(prefix) and key.endswith(".a"):
            module = key[len(prefix) : -2]
            partner = tensors.get(f"{prefix}{module}.b")
            if partner is None:
                raise ArtefactError(f"mixer {folder}: {module} has only one of its two matrices")
            found[module] = (tensors[key], partner)
    return found


def _check_gates(folder: Path, mixture: Mixture) -> None:
    experts = len(mixture.adapters)
    wanted = {} if mixture.spec.gate.kind == "uniform" else mixture.gate_widths()
    for name, width in wanted.items():
        gate = mixture.gates.get(name)
        if gate is None or tuple(gate.shape) != (experts, width):
            raise ArtefactError(
                f"mixer {folder}: it has no gate of shape {(experts, width)} for {name}: "
                "train it again"
            )


def _compact(key: str, tensor: Tensor) -> Tensor:
    """In bfloat16 where that loses nothing: adapters are mostly stored so. Instructions are read
    where there is no bfloat16."""
    if key == INSTRUCTIONS:
        return tensor.contiguous()
    half = tensor.to(torch.bfloat16)
    same = tensor.dtype == torch.float32 and torch.equal(half.float(), tensor)
    return (half if same else tensor).contiguous()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
