"""Stage 2: gates over experts that are there.

- `train_router`: the gates (LoRA-Mixer's linear router) from the task's loss on mixed data plus the
  routing loss; experts frozen, or trained jointly with the preservation term.
- `train_vectors`: a gate vector for every expert, each from its own domain alone (PHATGOOSE,
  GLIDER): the frozen adapter's term is weighed by sigmoid(v . x), and v is all that is trained.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from experts.engines.embedded.adapters import Adapter
from experts.mixer.losses import RoutingLoss, preservation_loss
from experts.mixer.mixture import Mixture, compose, first_gates
from experts.mixer.spec import GateSpec
from experts.mixer.training.data import Batches, Encoded
from experts.mixer.training.experts import experts_of
from experts.mixer.training.loop import Recipe, Report, optimise
from experts.mixer.training.tasks import Attached, Base, answer_loss, pad


@dataclass(frozen=True, slots=True)
class RouterTraining:
    """What stage 2 minimises: the task's loss, plus `routing` if given. With `preserve` the experts
    are trained too, held near what they were by that weight."""

    recipe: Recipe
    routing: RoutingLoss | None = field(default_factory=RoutingLoss)
    preserve: float | None = None


def train_router(
    base: Base,
    mixture: Mixture,
    encoded: Sequence[Encoded],
    training: RouterTraining,
    *,
    keep: Path | None = None,
    report: Report = lambda line: None,
) -> tuple[Mixture, list[float]]:
    """The mixture with trained gates, and the losses of the steps. Routing is dense meanwhile."""
    recipe = training.recipe
    mixture = mixture.with_gates(mixture.spec.gate, _begun(mixture, recipe.seed))
    batches = Batches(encoded, recipe.batch, recipe.seed)
    with Attached(base, mixture) as attached:
        routing = attached.routing
        routing.dense = True
        parameters = attached.unfreeze_gates()
        experts = {} if training.preserve is None else attached.unfreeze_experts()
        first = [matrix.detach().clone() for matrix in experts.values()]

        def loss_of(number: int) -> Tensor:
            batch = pad(batches[number], base.model.device)
            with routing.recording() as weights:
                loss = answer_loss(base.model, batch)
            if training.routing is not None:
                loss = loss + training.routing(weights.values(), batch.tokens[:, :-1])
            if training.preserve is not None:
                loss = loss + preservation_loss(list(experts.values()), first, training.preserve)
            return loss

        losses = optimise({**parameters, **experts}, loss_of, recipe, keep=keep, report=report)
        gates = {
            name.removeprefix("gate."): gate.detach().cpu().clone()
            for name, gate in parameters.items()
        }
        # Frozen experts are kept as the very tensors they were read as.
        adapters = tuple(experts_of(mixture, base)) if experts else mixture.adapters
    trained = replace(mixture, adapters=adapters)
    return trained.with_gates(mixture.spec.gate, gates), losses


def train_vectors(
    base: Base,
    mixture: Mixture,
    domains: Mapping[str, Sequence[Encoded]],
    recipe: Recipe,
    *,
    keep: Path | None = None,
    report: Report = lambda line: None,
) -> Mixture:
    """The mixture with a gate vector for every expert, trained on the domain of its name."""
    gate = mixture.spec.gate.model_copy(update={"kind": "vector", "scope": "projection"})
    gates = first_gates(mixture, gate)
    for number, adapter in enumerate(mixture.adapters):
        vectors = train_vector(
            base,
            adapter,
            domains[adapter.name],
            recipe,
            keep=None if keep is None else keep / str(number),
            report=lambda line, name=adapter.name: report(f"{name}: {line}"),  # type: ignore[misc]
        )
        for module, vector in vectors.items():
            gates[module][number] = vector
    return mixture.with_gates(gate, gates)


def train_vector(
    base: Base,
    adapter: Adapter,
    encoded: Sequence[Encoded],
    recipe: Recipe,
    *,
    keep: Path | None = None,
    report: Report = lambda line: None,
) -> dict[str, Tensor]:
    """The gate vectors (d_in,) of one expert by module. They begin at zero: a gate half open."""
    targets = sorted({module.rpartition(".")[2] for module in adapter.matrices})
    alone = compose([adapter], gate=GateSpec(kind="vector"), targets=targets)
    batches = Batches(encoded, recipe.batch, recipe.seed)
    with Attached(base, alone) as attached:
        attached.routing.sigmoid = True
        parameters = attached.unfreeze_gates()
        optimise(
            parameters,
            lambda number: answer_loss(base.model, pad(batches[number], base.model.device)),
            recipe,
            keep=keep,
            report=report,
        )
        return {
            name.removeprefix("gate."): gate.detach().cpu()[0].clone()
            for name, gate in parameters.items()
        }


def _begun(mixture: Mixture, seed: int) -> dict[str, Tensor]:
    """The gates there are; where one is all zeros, small numbers instead, so that seeds differ."""
    generator = torch.Generator().manual_seed(seed)
    begun = {}
    for name, gate in mixture.gates.items():
        noise = torch.randn(gate.shape, generator=generator) * 0.02
        begun[name] = gate if gate.any() else noise
    return begun
