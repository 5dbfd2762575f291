"""Routed linears: a mixture attached to a Hugging Face causal language model."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from experts.errors import SetupError
from experts.mixer.gates import gate_weights, local_logits, prepared
from experts.mixer.kinds import GateKind
from experts.mixer.mixture import Mixture
from experts.mixer.spec import GateSpec, gate_name
from experts.mixer.weights import Part, routed_term, separate_term, stack


class Routing:
    """What all routed linears of a model share in one forward pass.

    `prior` and `allowed` broadcast to the weights, (..., experts): (batch, 1, experts) for a batch
    of requests, (tokens, experts) for ragged steps. `dense` turns top-k and top-p off, as training
    does; `sigmoid` weighs each expert by `sigmoid(v . x)`, as a gate vector is trained. With
    `record` on, every linear leaves its weights in `recorded`. In ragged steps `tokens` are the
    places of those that are routed, if not all of them are; the others get the base alone.
    """

    def __init__(self, gate: GateSpec, open_experts: Tensor) -> None:
        self.gate = gate
        self.open = open_experts
        self._all_open = bool(open_experts.all())
        self.dense = False
        self.sigmoid = False
        self.record = False
        self.off = False
        self.tokens: Tensor | None = None
        self.prior: Tensor | None = None
        self.allowed: Tensor | None = None
        self.recorded: dict[str, Tensor] = {}

    @property
    def experts(self) -> int:
        return len(self.open)

    def weights(self, module: str, logits: Tensor) -> Tensor:
        """The experts' weights from local logits, both (..., experts)."""
        if self.sigmoid:
            return logits.sigmoid()
        allowed = self.allowed
        if not self._all_open:
            allowed = self.open if allowed is None else allowed & self.open
        weights = gate_weights(
            logits,
            prior=self.prior,
            allowed=allowed,
            top_k=None if self.dense else self.gate.top_k,
            top_p=None if self.dense else self.gate.top_p,
        )
        if self.record:
            self.recorded[module] = weights
        return weights

    @contextmanager
    def request(self, prior: Tensor | None = None, allowed: Tensor | None = None) -> Iterator[None]:
        """Route by this prior and mask, (requests, experts), for a batch of padded rows."""
        self.prior = None if prior is None else prior.unsqueeze(-2)
        self.allowed = None if allowed is None else allowed.unsqueeze(-2)
        try:
            yield
        finally:
            self.prior = self.allowed = None

    @contextmanager
    def recording(self) -> Iterator[dict[str, Tensor]]:
        """Collect every module's weights of the forward passes inside; the last one is kept."""
        self.record = True
        self.recorded = {}
        try:
            yield self.recorded
        finally:
            self.record = False


class RoutedLinear(nn.Module):
    """A base linear plus the experts' routed sum.

    `exact` computes expert by expert, with the very roundings of plain LoRA; else all at once.
    """

    def __init__(
        self,
        name: str,
        base: nn.Module,
        routing: Routing,
        parts: Sequence[Part | None],
        gate: nn.Parameter | None,
        *,
        exact: bool = False,
    ) -> None:
        super().__init__()
        self.name = name
        self.base = base
        self.routing = routing
        self.gate = gate
        self.kind: GateKind = routing.gate.kind
        self._prepared: Tensor | None = None
        self.exact_parts = list(parts) if exact else None
        stacked = stack(parts)
        self.a = nn.Parameter(stacked.a, requires_grad=False)
        self.b = nn.Parameter(stacked.b, requires_grad=False)
        self.columns: Tensor
        self.register_buffer("columns", stacked.columns, persistent=False)
        self.in_features = self.a.shape[1]
        self.out_features = self.b.shape[0]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x)
        if self.routing.off:
            return out
        tokens = self.routing.tokens
        if tokens is not None:
            return out.index_add(-2, tokens, self._term(x[..., tokens, :]).to(out.dtype))
        return out + self._term(x).to(out.dtype)

    def _term(self, x: Tensor) -> Tensor:
        weights = self.routing.weights(self.name, self._logits(x))
        if self.exact_parts is not None:
            return separate_term(x.float(), weights, self.exact_parts)
        return routed_term(x.to(self.a.dtype), weights, self.a, self.b, self.columns)

    def _logits(self, x: Tensor) -> Tensor:
        if self.gate is None:
            return x.new_zeros((*x.shape[:-1], self.routing.experts), dtype=torch.float32)
        if self.routing.sigmoid:
            return local_logits("linear", self.gate, x)
        return local_logits(self.kind, self._matrix(), x, self.routing.gate.temperature)

    def _matrix(self) -> Tensor:
        """The gate as it is multiplied by: made once, unless it is being trained."""
        assert self.gate is not None
        if self.gate.requires_grad:
            return prepared(self.kind, self.gate)
        if self._prepared is None:
            self._prepared = prepared(self.kind, self.gate.detach())
        return self._prepared


def attach(model: Any, mixture: Mixture, *, exact: bool = False) -> Routing:
    """Wrap the mixture's linears of `model` in place; they then follow the routing returned.

    The base is frozen, and so is the mixture: who trains a part of it unfreezes that part.

    Raises:
        SetupError: an adapter, or a gate, does not fit the model.
    """
    model.requires_grad_(False)
    device = next(model.parameters()).device
    routing = Routing(mixture.spec.gate, mixture.open.to(device))
    gates = {name: nn.Parameter(gate, requires_grad=False) for name, gate in mixture.gates.items()}
    for module in mixture.modules:
        parts = mixture.parts(module)
        linear = _target(model, module, mixture, parts)
        name = gate_name(module, mixture.spec.gate.scope)
        gate = gates.get(name)
        if gate is None and mixture.spec.gate.kind != "uniform":
            raise SetupError(f"the mixer has no gate for {module}: train or make it again")
        parent, _, leaf = module.rpartition(".")
        routed = RoutedLinear(module, linear, routing, parts, gate, exact=exact)
        setattr(model.get_submodule(parent), leaf, routed.to(device))
    return routing


def detach(model: Any) -> None:
    """Put the bare linears back."""
    for name, routed in list(routed_linears(model).items()):
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, routed.base)


def routed_linears(model: Any) -> dict[str, RoutedLinear]:
    """The routed linears of a model by module name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, RoutedLinear)}


def _target(model: Any, module: str, mixture: Mixture, parts: Sequence[Part | None]) -> nn.Module:
    users = [a.name for a, part in zip(mixture.adapters, parts, strict=True) if part is not None]
    try:
        linear: nn.Module = model.get_submodule(module)
    except AttributeError as error:
        raise SetupError(
            f"adapter {users[0]}: the base has no module {module}; is it for another base?"
        ) from error
    features = getattr(linear, "in_features", None), getattr(linear, "out_features", None)
    for name, part in zip(users, (p for p in parts if p is not None), strict=True):
        if features != (part.a.shape[1], part.b.shape[0]):
            raise SetupError(
                f"adapter {name}: {module} is made for {part.a.shape[1]} -> {part.b.shape[0]} "
                f"features, the base has {features[0]} -> {features[1]}; is it for another base?"
            )
    return linear
