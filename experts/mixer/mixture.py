"""`Mixture`: a mixer in memory, made of adapters and gates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from experts.engines.embedded.adapters import Adapter
from experts.errors import SetupError
from experts.mixer.gates import arrow_prototype
from experts.mixer.spec import ATTENTION, GateSpec, GlobalSpec, MemberSpec, MixerSpec, gate_name
from experts.mixer.weights import Part


@dataclass(frozen=True, slots=True)
class Mixture:
    """`gates` holds a matrix (experts, d_in) for every gate name; a uniform gate has none.

    `instructions` (experts, width) are unit vectors of the members' instructions, if they have any.
    """

    spec: MixerSpec
    adapters: tuple[Adapter, ...]
    gates: dict[str, Tensor] = field(default_factory=dict)
    instructions: Tensor | None = None

    @property
    def modules(self) -> tuple[str, ...]:
        """Every linear that at least one expert adapts, in a fixed order."""
        return tuple(sorted({module for a in self.adapters for module in a.matrices}))

    @property
    def open(self) -> Tensor:
        """(experts,) False where a member is closed."""
        return torch.tensor([not member.closed for member in self.spec.members])

    def parts(self, module: str) -> list[Part | None]:
        """Each expert's matrices for a module; None where it has none."""
        return [
            Part(*adapter.matrices[module], adapter.scale) if module in adapter.matrices else None
            for adapter in self.adapters
        ]

    def gate_widths(self) -> dict[str, int]:
        """Width of the input of every gate."""
        widths: dict[str, int] = {}
        for adapter in self.adapters:
            for module, (a, _) in adapter.matrices.items():
                widths[gate_name(module, self.spec.gate.scope)] = a.shape[1]
        return dict(sorted(widths.items()))

    def with_gates(self, gate: GateSpec, gates: Mapping[str, Tensor]) -> "Mixture":
        return replace(self, spec=self.spec.model_copy(update={"gate": gate}), gates=dict(gates))


def compose(
    adapters: Sequence[Adapter],
    *,
    gate: GateSpec | None = None,
    targets: Sequence[str] = ATTENTION,
    instructions: Mapping[str, str] | None = None,
    prior: GlobalSpec | None = None,
    closed: Sequence[str] = (),
    base_name: str = "",
) -> Mixture:
    """A mixture of adapters: Arrow's gates come from their weights, others begin at zero.

    A gate of zeros is uniform among the experts until it is trained.

    Raises:
        SetupError: an adapter adapts a module that is not among the targets, or none of them.
    """
    gate = gate or GateSpec()
    for adapter in adapters:
        _check_targets(adapter, targets)
    told = instructions or {}
    members = tuple(
        MemberSpec(
            name=adapter.name,
            rank=adapter.rank,
            scale=adapter.scale,
            instruction=told.get(adapter.name, ""),
            closed=adapter.name in closed,
        )
        for adapter in adapters
    )
    spec = MixerSpec(
        members=members, targets=tuple(targets), gate=gate, prior=prior, base_name=base_name
    )
    mixture = Mixture(spec, tuple(adapters))
    return mixture.with_gates(gate, first_gates(mixture, gate))


def first_gates(mixture: Mixture, gate: GateSpec) -> dict[str, Tensor]:
    """What a gate is before it is trained.

    Raises:
        SetupError: Arrow is asked for with one gate a layer; its directions are a projection's.
    """
    mixture = mixture.with_gates(gate, {})
    if gate.kind == "uniform":
        return {}
    if gate.kind != "arrow":
        experts = len(mixture.adapters)
        return {name: torch.zeros(experts, width) for name, width in mixture.gate_widths().items()}
    if gate.scope != "projection":
        raise SetupError("an Arrow gate is made for each projection: use scope 'projection'")
    gates = {}
    for module, width in mixture.gate_widths().items():
        rows = [
            torch.zeros(width) if part is None else arrow_prototype(part.a, part.b)
            for part in mixture.parts(module)
        ]
        gates[module] = torch.stack(rows)
    return gates


def _check_targets(adapter: Adapter, targets: Sequence[str]) -> None:
    leaves = {module.rpartition(".")[2] for module in adapter.matrices}
    strange = sorted(leaves - set(targets))
    if strange:
        raise SetupError(
            f"adapter {adapter.name} adapts {', '.join(strange)}, which this mixer does not route: "
            f"add {'them' if len(strange) > 1 else 'it'} to the mixer's targets "
            f"({', '.join(targets)}), or leave the adapter out"
        )
