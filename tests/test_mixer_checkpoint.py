"""The folder of a mixer: written, read back, and refused with a sentence that says what to do."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from experts.errors import ArtefactError, SetupError
from experts.mixer.checkpoint import load_mixture, save_mixture
from experts.mixer.description import base_fingerprint, check_mixer, mixer_version, read_spec
from experts.mixer.mixture import compose
from experts.mixer.spec import GateSpec, GlobalSpec
from tests.mixer_parts import adapters, save_base


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base("llama", tmp_path_factory.mktemp("base") / "tiny-llama")


@pytest.fixture
def saved(base: Path, tmp_path: Path) -> Path:
    mixture = compose(
        adapters("llama", tmp_path / "adapters"),
        gate=GateSpec(top_k=2),
        instructions={"one": "Add two numbers."},
        prior=GlobalSpec(),
    )
    gates = {name: torch.full_like(gate, 0.1) for name, gate in mixture.gates.items()}
    folder = tmp_path / "mixer"
    save_mixture(mixture.with_gates(mixture.spec.gate, gates), folder, base, {"steps": 3})
    return folder


def test_a_mixer_is_read_back_as_it_was_written(saved: Path, base: Path, tmp_path: Path) -> None:
    mixture = load_mixture(saved, base)
    spec, training = read_spec(saved)
    assert check_mixer(saved, base) == spec
    assert mixture.spec == spec
    assert (spec.base_name, spec.names, training) == (
        "tiny-llama",
        ("one", "two", "part"),
        {"steps": 3},
    )
    for adapter, first in zip(mixture.adapters, adapters("llama", tmp_path / "again"), strict=True):
        assert adapter.matrices.keys() == first.matrices.keys()
        for module, (a, b) in first.matrices.items():
            assert torch.equal(adapter.matrices[module][0], a)
            assert torch.equal(adapter.matrices[module][1], b)


def test_the_version_follows_the_content(saved: Path, base: Path, tmp_path: Path) -> None:
    mixture = load_mixture(saved, base)
    first = mixer_version(saved)
    assert save_mixture(mixture, tmp_path / "again", base) == first
    sharper = mixture.spec.gate.model_copy(update={"top_k": 1})
    assert save_mixture(mixture.with_gates(sharper, mixture.gates), saved, base) != first


def drop_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "mixer.safetensors")
    del tensors["gates.model.layers.1.self_attn.q_proj"]
    save_file(tensors, folder / "mixer.safetensors")


def change_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "mixer.safetensors")
    tensors["gates.model.layers.1.self_attn.q_proj"] += 1
    save_file(tensors, folder / "mixer.safetensors")


def cut_the_file(folder: Path) -> None:
    path = folder / "mixer.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def lose_the_file(folder: Path) -> None:
    (folder / "mixer.safetensors").unlink()


def lose_the_description(folder: Path) -> None:
    (folder / "mixer.json").unlink()


def break_the_description(folder: Path) -> None:
    (folder / "mixer.json").write_text("{")


def name_another_format(folder: Path) -> None:
    described = json.loads((folder / "mixer.json").read_text())
    (folder / "mixer.json").write_text(json.dumps(described | {"format": 9}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (drop_a_tensor, "gates.model.layers.1.self_attn.q_proj is missing .* copy the folder"),
        (change_a_tensor, "is not the file that mixer.json describes: copy both"),
        (cut_the_file, "missing or damaged .* copy the folder again"),
        (lose_the_file, "missing or damaged .* copy the folder again"),
        (lose_the_description, "can't read mixer.json.*name the folder that `coe mixer train`"),
        (break_the_description, "mixer.json is damaged"),
        (name_another_format, "has format 9, this version reads 1: train it again"),
    ],
)
def test_a_spoilt_mixer_is_refused(
    saved: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(saved)
    with pytest.raises(ArtefactError, match=message):
        load_mixture(saved)
    if spoil is not change_a_tensor:
        with pytest.raises(ArtefactError):
            check_mixer(saved, None)


def test_a_mixer_is_refused_on_another_base(saved: Path, tmp_path: Path) -> None:
    other = save_base("qwen", tmp_path / "other")
    with pytest.raises(ArtefactError, match="made for tiny-llama, whose geometry differs"):
        load_mixture(saved, other)
    with pytest.raises(ArtefactError, match="made for tiny-llama, whose geometry differs"):
        check_mixer(saved, other)


def test_a_base_without_a_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="holds no model"):
        base_fingerprint(tmp_path)
