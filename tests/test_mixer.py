"""What a mixture computes, with peft's plain LoRA as the reference."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from experts.engines.embedded.adapters import Adapter, read_adapter
from experts.errors import InvalidRequest, SetupError
from experts.mixer.gates import (
    arrow_prototype,
    gate_weights,
    local_logits,
    normalised,
    prepared,
)
from experts.mixer.losses import RoutingLoss, balance_loss, entropy, preservation_loss
from experts.mixer.mixture import Mixture, compose
from experts.mixer.parameter_space import SkillWeights, combine
from experts.mixer.prior import check_mask, check_prior, global_prior
from experts.mixer.routed import Routing, attach, detach, routed_linears
from experts.mixer.spec import GateSpec, GlobalSpec
from tests.mixer_parts import (
    ATTENTION,
    FAMILIES,
    adapters,
    logits,
    make_base,
    plain_lora,
    some_ids,
    write_adapter,
)

UNIFORM = GateSpec(kind="uniform")


def random_gates(mixture: Mixture, seed: int = 11) -> Mixture:
    """The mixture with gates that tell tokens apart."""
    generator = torch.Generator().manual_seed(seed)
    gates = {
        name: torch.randn(gate.shape, generator=generator) for name, gate in mixture.gates.items()
    }
    return mixture.with_gates(mixture.spec.gate, gates)


def attached(
    family: str, mixture: Mixture, *, exact: bool = False, dtype: torch.dtype | None = None
) -> tuple[Any, Routing]:
    model = make_base(family)
    routing = attach(model, mixture, exact=exact)
    return (model if dtype is None else model.to(dtype)), routing


def targets(family: str) -> tuple[str, ...]:
    return FAMILIES[family][2]


@pytest.fixture(scope="module", params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folders(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp(family)
    adapters(family, root)
    return root


@pytest.fixture
def experts(folders: Path) -> list[Adapter]:
    return [read_adapter(name, folders / name) for name in ("one", "two", "part")]


def test_one_expert_equals_plain_lora_bit_for_bit(
    family: str, folders: Path, experts: list[Adapter]
) -> None:
    mixture = random_gates(compose(experts[:1], targets=targets(family)))
    model, _ = attached(family, mixture, exact=True)
    ids = some_ids()
    assert torch.equal(logits(model, ids), logits(plain_lora(family, folders / "one"), ids))


def test_one_expert_equals_plain_lora_when_computed_at_once(
    family: str, folders: Path, experts: list[Adapter]
) -> None:
    model, _ = attached(family, random_gates(compose(experts[:1], targets=targets(family))))
    ids = some_ids()
    expected = logits(plain_lora(family, folders / "one"), ids)
    torch.testing.assert_close(logits(model, ids), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_hard_routing_equals_the_single_adapter_whatever_the_gates_say(
    family: str, folders: Path, experts: list[Adapter], number: int
) -> None:
    mixture = random_gates(compose(experts, targets=targets(family)))
    model, routing = attached(family, mixture, exact=True)
    ids = some_ids()
    only = torch.zeros(2, 3, dtype=torch.bool)
    only[:, number] = True
    with routing.request(allowed=only):
        routed = logits(model, ids)
    expected = logits(plain_lora(family, folders / experts[number].name), ids)
    torch.testing.assert_close(routed, expected, atol=0, rtol=0)


def test_each_row_of_a_batch_follows_its_own_mask(
    family: str, folders: Path, experts: list[Adapter]
) -> None:
    model, routing = attached(family, random_gates(compose(experts, targets=targets(family))))
    ids = some_ids(rows=3)
    with routing.request(allowed=torch.eye(3, dtype=torch.bool)):
        routed = logits(model, ids)
    for row, expert in enumerate(experts):
        expected = logits(plain_lora(family, folders / expert.name), ids[row : row + 1])
        torch.testing.assert_close(routed[row : row + 1], expected, atol=1e-4, rtol=1e-4)


def test_uniform_gates_equal_the_average_of_the_adapters(
    family: str, experts: list[Adapter]
) -> None:
    """The reference is one plain LoRA made by concatenation, each part scaled by a third."""
    model, _ = attached(family, compose(experts, gate=UNIFORM, targets=targets(family)))
    average = make_base(family)
    modules = {module for expert in experts for module in expert.matrices}
    for module in modules:
        linear = average.get_submodule(module)
        for expert in experts:
            if module in expert.matrices:
                a, b = expert.matrices[module]
                linear.weight.data += b @ a * (expert.scale / 3)
    ids = some_ids()
    torch.testing.assert_close(logits(model, ids), logits(average, ids), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["linear", "vector", "arrow", "uniform"])
@pytest.mark.parametrize("removed", ["masked", "closed", "absent"])
def test_an_expert_that_is_removed_contributes_nothing(
    family: str, experts: list[Adapter], kind: Any, removed: str
) -> None:
    """Masked by the request, closed for good, or never there: the same outputs, exactly."""
    gate = GateSpec(kind=kind)
    full = compose(experts, gate=gate, targets=targets(family))
    full = full if kind in ("uniform", "arrow") else random_gates(full)
    two = compose(experts[:2], gate=gate, targets=targets(family))
    two = two.with_gates(gate, {name: full.gates[name][:2] for name in two.gates})
    ids = some_ids()
    reference = logits(attached(family, two, exact=True)[0], ids)
    if removed == "absent":
        shut = compose(experts, gate=gate, targets=targets(family), closed=["part"])
        shut = shut.with_gates(gate, full.gates)
        model, routing = attached(family, shut, exact=True)
        found = logits(model, ids)
    elif removed == "closed":
        shut = compose(experts, gate=gate, targets=targets(family), closed=["part"])
        model, routing = attached(family, shut.with_gates(gate, full.gates))
        found = logits(model, ids)
    else:
        model, routing = attached(family, full, exact=True)
        with routing.request(allowed=torch.tensor([[True, True, False]] * 2)):
            found = logits(model, ids)
    tolerance = 1e-4 if removed == "closed" else 0
    torch.testing.assert_close(found, reference, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("scope", ["projection", "layer"])
@pytest.mark.parametrize("kind", ["linear", "vector"])
@pytest.mark.parametrize(("top_k", "top_p"), [(None, None), (2, None), (None, 0.6)])
def test_all_at_once_equals_expert_by_expert(
    family: str, experts: list[Adapter], kind: Any, scope: Any, top_k: int | None, top_p: float
) -> None:
    gate = GateSpec(kind=kind, scope=scope, top_k=top_k, top_p=top_p)
    mixture = random_gates(compose(experts, gate=gate, targets=targets(family)))
    ids, prior = some_ids(), torch.tensor([[0.0, 2.0, -1.0], [3.0, 0.0, 0.0]])
    outputs = []
    for exact in (True, False):
        model, routing = attached(family, mixture, exact=exact)
        with routing.request(prior=prior):
            outputs.append(logits(model, ids))
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-4, rtol=1e-4)


def test_detaching_gives_back_the_bare_base(family: str, experts: list[Adapter]) -> None:
    model, _ = attached(family, compose(experts, targets=targets(family)))
    ids = some_ids()
    assert not torch.equal(logits(model, ids), logits(make_base(family), ids))
    detach(model)
    assert not routed_linears(model)
    assert torch.equal(logits(model, ids), logits(make_base(family), ids))


def test_weights_are_recorded_by_module_on_demand(family: str, experts: list[Adapter]) -> None:
    mixture = random_gates(compose(experts, gate=GateSpec(top_k=2), targets=targets(family)))
    model, routing = attached(family, mixture)
    with routing.recording() as recorded:
        logits(model, some_ids())
    assert set(recorded) == set(mixture.modules)
    for weights in recorded.values():
        assert weights.shape == (2, 9, 3)
        assert ((weights > 0).sum(dim=-1) == 2).all()
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 9))


def test_gates_are_shared_by_what_reads_the_same_input_when_the_scope_is_a_layer(
    tmp_path: Path,
) -> None:
    found = compose(adapters("llama", tmp_path), gate=GateSpec(scope="layer"))
    assert sorted(found.gates) == [
        f"model.layers.{layer}.self_attn.{name}" for layer in (0, 1) for name in ("o_proj", "qkv")
    ]


def test_an_adapter_is_refused_when_it_adapts_what_the_mixer_does_not_route(
    tmp_path: Path,
) -> None:
    folder = write_adapter(
        "llama", tmp_path / "mlp", seed=1, rank=2, alpha=2, targets=("q_proj", "down_proj")
    )
    adapter = read_adapter("mlp", folder)
    with pytest.raises(SetupError, match="adapts down_proj, which this mixer does not route: add"):
        compose([adapter])
    compose([adapter], targets=(*ATTENTION, "down_proj"))


def test_an_adapter_is_refused_when_it_is_for_another_base(tmp_path: Path) -> None:
    mixture = compose(adapters("llama", tmp_path))
    with pytest.raises(SetupError, match="is it for another base"):
        attach(make_base("mamba"), mixture)


def test_arrow_finds_the_direction_that_the_adapter_stretches_most() -> None:
    generator = torch.Generator().manual_seed(3)
    a, b = torch.randn(4, 20, generator=generator), torch.randn(12, 4, generator=generator)
    expected = torch.linalg.svd(b @ a).Vh[0]
    found = arrow_prototype(a, b)
    torch.testing.assert_close((found @ expected).abs(), torch.tensor(1.0), atol=1e-5, rtol=0)
    assert arrow_prototype(a, torch.zeros(12, 4)).eq(0).all()


def test_a_gate_vector_scores_by_correlation() -> None:
    """LN(x) . LN(v) / sqrt(d) is sqrt(d) times Pearson's correlation (as published)."""
    generator = torch.Generator().manual_seed(4)
    x, v = torch.randn(5, 64, generator=generator), torch.randn(3, 64, generator=generator)
    found = local_logits("vector", prepared("vector", v), x)
    torch.testing.assert_close(found, normalised(x) @ normalised(v).T / 8, atol=1e-5, rtol=1e-5)
    pearson = np.corrcoef(np.concatenate([x.numpy(), v.numpy()]))[:5, 5:]
    np.testing.assert_allclose(found.numpy(), 8 * pearson, atol=1e-3)


numbers = st.floats(-30, 30, width=32)


@given(
    rows=st.lists(st.lists(numbers, min_size=5, max_size=5), min_size=1, max_size=4),
    top_k=st.one_of(st.none(), st.integers(1, 7)),
    top_p=st.one_of(st.none(), st.floats(0.01, 1.0)),
    mask=st.lists(st.booleans(), min_size=5, max_size=5).filter(any),
)
def test_weights_sum_to_one_over_those_allowed_and_selected(
    rows: list[list[float]], top_k: int | None, top_p: float | None, mask: list[bool]
) -> None:
    allowed = torch.tensor(mask)
    weights = gate_weights(torch.tensor(rows), allowed=allowed, top_k=top_k, top_p=top_p)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(len(rows)))
    assert (weights[:, ~allowed] == 0).all()
    assert ((weights > 0).sum(dim=-1) <= (top_k or 5)).all()


def test_selected_weights_are_renormalised_probabilities() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.5, -1.0]])
    probabilities = logits.softmax(dim=-1)[0]
    expected = torch.tensor([*(probabilities[:2] / probabilities[:2].sum()), 0, 0])
    torch.testing.assert_close(gate_weights(logits, top_k=2)[0], expected)
    kept = gate_weights(logits, top_p=float(probabilities[0]) + 0.01)[0]
    torch.testing.assert_close(kept, expected)


def test_a_large_prior_leaves_the_second_expert_its_weight() -> None:
    """With probabilities in float32 the second of two would underflow and be lost."""
    weights = gate_weights(torch.zeros(3), prior=torch.tensor([1000.0, 900.0, 0.0]), top_k=2)
    torch.testing.assert_close(weights, torch.tensor([1.0, 0.0, 0.0]))
    close = gate_weights(torch.zeros(3), prior=torch.tensor([1000.0, 999.0, 0.0]), top_k=2)
    assert close[1] > 0.2


def test_the_balance_loss_is_least_when_the_load_is_even() -> None:
    even, peaked = torch.eye(4), torch.eye(4)[[0, 0, 0, 1]]
    assert balance_loss(even) == pytest.approx(1 / 4)
    assert balance_loss(peaked) > balance_loss(even)


@pytest.mark.parametrize("sign", [-1, 1])
def test_the_entropy_term_goes_the_way_its_sign_says(sign: Any) -> None:
    """As printed (-1) a step down flattens routing; as described (+1) it sharpens it."""
    scores = torch.tensor([[1.0, 0.2, 0.0]], requires_grad=True)
    loss = RoutingLoss(balance=0.0, entropy=1.0, sign=sign)
    before = entropy(scores.softmax(dim=-1))
    loss.of_module(scores.softmax(dim=-1)).backward()
    assert scores.grad is not None
    after = entropy((scores - 0.1 * scores.grad).softmax(dim=-1))
    assert (after > before) == (sign == -1)


def test_padding_carries_no_routing_loss() -> None:
    weights = torch.tensor([[[0.5, 0.5], [1.0, 0.0]]])
    tokens = torch.tensor([[True, False]])
    loss = RoutingLoss(balance=0.0, entropy=1.0)([weights], tokens)
    assert loss == pytest.approx(np.log(2))


def test_preservation_counts_the_distance_from_the_beginning() -> None:
    first = [torch.zeros(2, 2), torch.ones(3)]
    assert preservation_loss(first, first, 0.5) == 0
    assert preservation_loss([torch.ones(2, 2), torch.ones(3)], first, 0.5) == 2.0


def test_one_skill_mixed_in_parameter_space_is_itself(tmp_path: Path) -> None:
    skill = adapters("llama", tmp_path)[0]
    found = combine([skill], torch.ones(1, 2), "alone")
    for module, (a, b) in skill.matrices.items():
        assert torch.equal(found.matrices[module][0], a)
        assert torch.equal(found.matrices[module][1], b)


def test_heads_weigh_blocks_of_their_own(tmp_path: Path) -> None:
    """MHR: the first head takes the first halves from one skill, the second from the other."""
    skills = [
        read_adapter(name, write_adapter("llama", tmp_path / name, seed=seed, rank=4, alpha=4))
        for seed, name in enumerate(("one", "two"))
    ]
    found = combine(skills, torch.eye(2), "mixed")
    module = next(iter(found.matrices))
    a, half = found.matrices[module][0], found.matrices[module][0].shape[1] // 2
    assert torch.equal(a[:, :half], skills[0].matrices[module][0][:, :half])
    assert torch.equal(a[:, half:], skills[1].matrices[module][0][:, half:])
    weights = SkillWeights(tasks=3, skills=2, heads=2)
    torch.testing.assert_close(weights(1).sum(dim=0), torch.ones(2))
    assert torch.equal(weights(None), torch.full((2, 2), 0.5))


def test_skills_of_different_rank_are_not_mixed_in_parameter_space(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="rank, scale and modules must be the same"):
        combine(adapters("llama", tmp_path), torch.ones(3, 1) / 3, "mixed")


def test_the_prior_decides_when_an_instruction_matches_and_leans_when_none_does() -> None:
    instructions = np.eye(3, 4, dtype=np.float32)
    weight = GlobalSpec(gamma=100, threshold=0.8, beta=3)
    sure = global_prior(instructions, np.array([0.9, 0.1, 0, 0], np.float32), weight)
    np.testing.assert_allclose(sure, [92.7, 10.3, 0], rtol=1e-5)
    unsure = global_prior(instructions, np.array([0.5, 0.1, 0, 0], np.float32), weight)
    np.testing.assert_allclose(unsure, [1.5, 0.3, 0], rtol=1e-5)


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        ([0.0, 1.0], "has 2 values, the mixer has 3 experts"),
        ([0.0, float("nan"), 1.0], "by the mask, not by minus infinity"),
        ([0.0, float("-inf"), 1.0], "by the mask, not by minus infinity"),
    ],
)
def test_a_prior_is_refused_when_it_is_not_one_number_an_expert(
    prior: list[float], message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        check_prior(prior, 3)


def test_a_mask_is_refused_when_it_leaves_nobody() -> None:
    check_mask([0, 1, 0], 3)
    with pytest.raises(InvalidRequest, match="leave at least one"):
        check_mask([0, 0, 0], 3)
    with pytest.raises(InvalidRequest, match="each 1"):
        check_mask([0, 2, 0], 3)
