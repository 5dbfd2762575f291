"""Training of experts and gates on a tiny base: what is learned, kept, resumed and refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from peft import PeftModel
from torch import Tensor

from composer.cli import main
from experts.errors import ArtefactError, DataError
from experts.mixer.checkpoint import load_mixture
from experts.mixer.instructions import write_instructions
from experts.mixer.losses import RoutingLoss
from experts.mixer.mixture import Mixture, compose
from experts.mixer.spec import GateSpec
from experts.mixer.training import loop
from experts.mixer.training.data import (
    Batches,
    Encoded,
    Example,
    balanced_sample,
    by_domain,
    encode,
    read_examples,
)
from experts.mixer.training.experts import (
    fresh_adapter,
    read_experts,
    train_expert,
    train_experts,
)
from experts.mixer.training.findings import observe
from experts.mixer.training.job import MixerJob, train_mixer
from experts.mixer.training.loop import Recipe
from experts.mixer.training.router import RouterTraining, train_router, train_vectors
from experts.mixer.training.tasks import Attached, Base, answer_loss, load_base, pad
from tests.mixer_tasks import examples, save_base_with_words, write_examples

EXPERT = Recipe(steps=60, rate=2e-2, batch=8)
ROUTER = Recipe(steps=40, rate=3e-2, batch=8)
Encodings = dict[str, list[Encoded]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base_with_words(tmp_path_factory.mktemp("bases") / "tiny")


@pytest.fixture(scope="module")
def base(folder: Path) -> Base:
    return load_base(folder, "float32")


@pytest.fixture(scope="module")
def encoded(base: Base) -> Encodings:
    return {name: encode(base.tokenizer, rows, 32) for name, rows in by_domain(examples()).items()}


@pytest.fixture(scope="module")
def experts(
    base: Base, encoded: Encodings, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("experts")
    return train_experts(base, encoded, EXPERT, out, rank=4, alpha=8)


@pytest.fixture
def mixture(experts: dict[str, Path]) -> Mixture:
    return compose(read_experts(experts), gate=GateSpec(top_k=1))


def everything(encoded: Encodings) -> list[Encoded]:
    return [item for items in encoded.values() for item in items]


@torch.no_grad()
def loss(base: Base, mixture: Mixture, items: list[Encoded]) -> float:
    with Attached(base, mixture):
        return float(answer_loss(base.model, pad(items)))


def test_each_expert_learns_its_own_domain_and_not_the_other(
    base: Base, encoded: Encodings, experts: dict[str, Path]
) -> None:
    for adapter in read_experts(experts):
        alone = compose([adapter], gate=GateSpec(kind="uniform"))
        own = loss(base, alone, encoded[adapter.name])
        other = "numbers" if adapter.name == "colours" else "colours"
        assert own < 0.6
        assert loss(base, alone, encoded[other]) > own + 1


def test_an_expert_is_a_plain_lora_adapter_that_peft_loads(
    base: Base, folder: Path, encoded: Encodings, experts: dict[str, Path]
) -> None:
    reference = PeftModel.from_pretrained(load_base(folder, "float32").model, experts["numbers"])
    alone = compose(read_experts({"numbers": experts["numbers"]}), gate=GateSpec(kind="uniform"))
    batch = pad(encoded["numbers"])
    with torch.no_grad():
        expected = reference(input_ids=batch.ids).logits
    with torch.no_grad(), Attached(base, alone):
        found = base.model(input_ids=batch.ids).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_the_router_finds_the_expert_and_leaves_the_adapters_bit_identical(
    base: Base, encoded: Encodings, mixture: Mixture
) -> None:
    before = [
        (a.clone(), b.clone()) for adapter in mixture.adapters for a, b in adapter.matrices.values()
    ]
    items = everything(encoded)
    trained, losses = train_router(base, mixture, items, RouterTraining(ROUTER))
    after = [pair for adapter in trained.adapters for pair in adapter.matrices.values()]
    assert all(
        torch.equal(a, x) and torch.equal(b, y)
        for (a, b), (x, y) in zip(before, after, strict=True)
    )
    assert losses[-1] < losses[0]
    uniform = compose(mixture.adapters, gate=GateSpec(kind="uniform"))
    assert loss(base, trained, items) < loss(base, uniform, items)
    found = observe(base, trained, encoded)
    assert found.by_domain["colours"][0] > found.by_domain["numbers"][0]


@pytest.mark.parametrize("sign", [-1, 1])
def test_the_entropy_term_moves_routing_the_way_its_sign_says(
    base: Base, encoded: Encodings, mixture: Mixture, sign: int
) -> None:
    items = everything(encoded)
    dense = mixture.with_gates(GateSpec(), mixture.gates)
    found = {}
    for weight in (0.0, 1.0):
        routing = RoutingLoss(balance=0.0, entropy=weight, sign=1 if sign == 1 else -1)
        trained, _ = train_router(base, dense, items, RouterTraining(ROUTER, routing))
        found[weight] = observe(base, trained, encoded).entropy
    assert (found[1.0] > found[0.0]) == (sign == -1)


def test_joint_training_moves_the_experts_and_preservation_holds_them(
    base: Base, encoded: Encodings, mixture: Mixture
) -> None:
    def moved(beta: float) -> Tensor:
        training = RouterTraining(replace(ROUTER, steps=10), None, preserve=beta)
        trained, _ = train_router(base, mixture, everything(encoded), training)
        pairs = zip(trained.adapters, mixture.adapters, strict=True)
        distances = [
            (now.matrices[module][side] - first.matrices[module][side]).square().sum()
            for now, first in pairs
            for module in first.matrices
            for side in (0, 1)
        ]
        return torch.stack(distances).sum()

    free, held = moved(0.0), moved(100.0)
    assert 0 < held < free / 2


def test_gate_vectors_tell_the_domains_apart(
    base: Base, encoded: Encodings, mixture: Mixture
) -> None:
    trained = train_vectors(base, mixture, encoded, replace(ROUTER, rate=5e-2))
    assert trained.spec.gate.kind == "vector"
    assert all(gate.abs().sum(dim=1).gt(0).all() for gate in trained.gates.values())
    found = observe(base, trained, encoded)
    assert found.by_domain["colours"][0] > found.by_domain["numbers"][0]


def test_a_run_that_was_cut_off_ends_with_the_very_same_weights(
    base: Base, encoded: Encodings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_KEEP_EVERY_S", 0.0)
    fresh = fresh_adapter(base, "colours", 4, 8.0, ("q_proj", "o_proj"), seed=3)
    recipe = Recipe(steps=12, rate=1e-2, batch=4, accumulate=2, seed=3)
    whole, losses = train_expert(base, fresh, encoded["colours"], recipe)

    class CutOff(Exception):
        pass

    def cut_off(line: str) -> None:
        raise CutOff

    monkeypatch.setattr(loop, "_REPORT_EVERY", 7)
    with pytest.raises(CutOff):
        train_expert(base, fresh, encoded["colours"], recipe, keep=tmp_path / "run", report=cut_off)
    resumed, again = train_expert(base, fresh, encoded["colours"], recipe, keep=tmp_path / "run")
    assert again == losses
    for module, (a, b) in whole.matrices.items():
        assert torch.equal(resumed.matrices[module][0], a)
        assert torch.equal(resumed.matrices[module][1], b)
    with pytest.raises(ArtefactError, match="another recipe"):
        train_expert(
            base, fresh, encoded["colours"], replace(recipe, rate=1.0), keep=tmp_path / "run"
        )


def test_batches_cover_a_pass_and_are_known_by_number_alone(encoded: Encodings) -> None:
    items = encoded["colours"]
    batches, again = Batches(items, 4, seed=1), Batches(items, 4, seed=1)
    seen = [item for number in range(4) for item in batches[number]]
    assert sorted(item.ids for item in seen) == sorted(item.ids for item in items)
    assert again[7] == batches[7]
    assert Batches(items, 4, seed=2)[0] != batches[0]


def test_a_sample_has_as_many_of_every_domain_as_there_are() -> None:
    rows = [Example("large", str(n), "x") for n in range(50)]
    rows += [Example("small", str(n), "x") for n in range(3)]
    sample = balanced_sample(by_domain(rows), 20, seed=1)
    assert len(sample) == 20
    assert sum(row.domain == "small" for row in sample) == 3


def test_bad_lines_are_told_with_their_number_and_the_good_ones_kept(tmp_path: Path) -> None:
    path = write_examples(tmp_path / "data.jsonl", examples()[:2])
    with path.open("a") as file:
        file.write('{"prompt": "a", "answer": 3, "category": "x"}\nnot json\n')
    found, problems = read_examples([path])
    assert len(found) == 2
    assert [problem.split(": ")[0] for problem in problems] == [f"{path}:3", f"{path}:4"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "holds no usable example: it is empty"),
        (examples()[:6], "domain 'colours' has 3 examples, an expert needs 8 or more: add some"),
        (
            [Example(row.domain, row.prompt, "same") for row in examples()],
            "every answer of domain 'colours' is the same, 'same': there is nothing to learn",
        ),
        (
            [row for row in examples() if row.domain == "colours"],
            "come from colours alone: it learns to tell experts",
        ),
    ],
)
def test_data_that_can_teach_nothing_is_refused(
    folder: Path, tmp_path: Path, rows: list[Example], message: str
) -> None:
    data = write_examples(tmp_path / "data.jsonl", rows)
    with pytest.raises(DataError, match=message):
        train_mixer(MixerJob(base=folder, data=(data,), out=tmp_path / "out"))


def test_gate_vectors_are_refused_where_an_adapter_has_no_data(
    folder: Path, tmp_path: Path, experts: dict[str, Path]
) -> None:
    data = write_examples(tmp_path / "data.jsonl", examples())
    job = MixerJob(
        base=folder,
        data=(data,),
        out=tmp_path / "out",
        adapters={"colours": experts["colours"], "shapes": experts["numbers"]},
        gate=GateSpec(kind="vector", top_k=2),
    )
    with pytest.raises(DataError, match="no category shapes: name the adapters as the categories"):
        train_mixer(job)


def test_an_instruction_is_written_from_three_examples() -> None:
    asked: list[str] = []

    def ask(prompt: str) -> str:
        asked.append(prompt)
        return "**Instruction:** Name the colour\nthat follows.\n\nMore talk."

    domains = by_domain(examples())
    found = write_instructions(ask, domains, {"numbers": "Count."})
    assert found == {"colours": "Name the colour that follows.", "numbers": "Count."}
    assert len(asked) == 1
    assert asked[0].count("Input: ") == 3
    silent = write_instructions(lambda prompt: " \n", domains, {})
    assert silent["colours"].count("name ") == 3


def test_the_command_line_trains_a_mixer_and_explains_it(folder: Path, tmp_path: Path) -> None:
    data = write_examples(tmp_path / "data.jsonl", examples())
    out = tmp_path / "mixer"
    options = ["--base", folder, "--data", data, "--out", out, "--dtype", "float32", "--rank", 2]
    options += [
        "--prior",
        "--expert-steps",
        4,
        "--router-steps",
        4,
        "--instruction",
        "numbers=Count.",
    ]
    run = CliRunner().invoke(main, ["mixer", "train", *map(str, options)])
    assert run.exit_code == 0, run.output
    assert "router: step 4/4" in run.stderr
    mixture = load_mixture(out, folder)
    assert mixture.spec.names == ("colours", "numbers")
    assert mixture.instructions is not None
    assert mixture.instructions.shape == (2, 384)
    shown = CliRunner().invoke(main, ["mixer", "show", str(out), "--map"])
    assert "numbers: Count." in shown.stdout
    assert "model.layers.1.self_attn.o_proj" in shown.stdout
    told = json.loads(CliRunner().invoke(main, ["mixer", "show", str(out), "--json"]).stdout)
    assert told["training"]["experts"] == ["colours", "numbers"]
    refused = CliRunner().invoke(main, ["mixer", "show", str(tmp_path)])
    assert refused.exit_code == 1
    assert "can't read mixer.json" in refused.output
