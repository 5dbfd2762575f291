"""A mixer as a checkpoint of vLLM: the base's files, one more, a section of config.json.

Runs where Composer runs, not inside vLLM.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from experts.errors import SetupError
from experts.mixer.checkpoint import load_mixture
from experts.mixer.description import mixer_version
from experts.mixer.gates import prepared
from experts.mixer.mixture import Mixture
from experts.mixer.spec import gate_name
from experts.mixer.vllm_plugin import FAMILIES, PREFIX, SECTION
from experts.mixer.weights import Part, stack

EXTRA = "mixer.safetensors"
_INDEX = "model.safetensors.index.json"
_REPLACED = ("config.json", _INDEX)


def write_vllm_checkpoint(mixer: Path, base: Path, out: Path, *, copy: bool = False) -> str:
    """Make the folder `out` from a mixer and its base; returns the mixer's version.

    The base's files are linked, or copied if `copy` is set (for a folder that is to be moved).

    Raises:
        ArtefactError: the mixer is unfit, or made for another base.
        SetupError: vLLM has no architecture for the base, or `out` is there already.
    """
    mixture = load_mixture(mixer, base)
    config = json.loads((base / "config.json").read_bytes())
    architecture = (config.get("architectures") or ["none"])[0]
    if architecture not in FAMILIES:
        raise SetupError(
            f"{base}: mixers on {architecture} can't be served by vLLM; served are "
            f"{', '.join(FAMILIES)}: use the embedded engine"
        )
    if out.exists():
        raise SetupError(f"{out} is there already: delete it, or name another folder")
    partial = out.with_name(out.name + ".partial")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    for file in sorted(base.iterdir()):
        if file.is_file() and file.name not in _REPLACED:
            _place(file, partial / file.name, copy)
    tensors = vllm_tensors(mixture)
    save_file(tensors, partial / EXTRA, metadata={"format": "pt"})
    version = mixer_version(mixer)
    config["architectures"] = [PREFIX + architecture]
    config[SECTION] = section(mixture, version)
    (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if (base / _INDEX).exists():
        _extend_index(base / _INDEX, partial / _INDEX, tensors)
    os.replace(partial, out)
    return version


def vllm_tensors(mixture: Mixture) -> dict[str, Tensor]:
    """The stacked tensors of every routed projection, under the base's names."""
    tensors: dict[str, Tensor] = {}
    spec = mixture.spec
    for module in mixture.modules:
        stacked = stack(mixture.parts(module))
        tensors[f"mixer.{module}.a"] = stacked.a.contiguous()
        tensors[f"mixer.{module}.b"] = stacked.b.contiguous()
        tensors[f"mixer.{module}.columns"] = stacked.columns
        if spec.gate.kind != "uniform":
            gate = mixture.gates[gate_name(module, spec.gate.scope)]
            # Cloned: gates shared by several projections may not share memory in a file.
            tensors[f"mixer.{module}.gate"] = prepared(spec.gate.kind, gate).clone()
    return tensors


def section(mixture: Mixture, version: str) -> dict[str, Any]:
    """What the plug-in must know before the tensors are read."""
    spec = mixture.spec
    return {
        "version": version,
        "experts": list(spec.names),
        "open": [not member.closed for member in spec.members],
        "gate": spec.gate.kind,
        "scope": spec.gate.scope,
        "top_k": spec.gate.top_k,
        "top_p": spec.gate.top_p,
        "temperature": spec.gate.temperature,
        "ranks": {module: _ranks(mixture.parts(module)) for module in mixture.modules},
    }


def _ranks(parts: list[Part | None]) -> int:
    return sum(part.a.shape[0] for part in parts if part is not None)


def _place(file: Path, target: Path, copy: bool) -> None:
    if copy:
        shutil.copyfile(file, target)
    else:
        target.symlink_to(file.resolve())


def _extend_index(index: Path, target: Path, tensors: dict[str, Tensor]) -> None:
    """With an index, vLLM reads only the files that it lists."""
    told = json.loads(index.read_bytes())
    told["weight_map"] |= dict.fromkeys(tensors, EXTRA)
    target.write_text(json.dumps(told, indent=2) + "\n")
