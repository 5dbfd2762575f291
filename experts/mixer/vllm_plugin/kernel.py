"""The routed term of one vLLM linear, which may hold several projections and a part of each.

vLLM fuses q, k and v into one linear, and splits linears over the ranks of a tensor-parallel group:
column-parallel ones by output, row-parallel ones by input. So the term here is made of

- `rows`: the A rows of all projections and the gates' rows, for one product with this rank's input;
- `columns` (gates * experts, ranks): from the gates' weights to the factor of every A row;
- `b` (outputs of this rank, ranks): block by block, for one product with the factored A products.

Where the input is split, the first product is summed over the ranks; it is as narrow as the ranks
of the adapters, so that little is sent.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from experts.mixer.gates import gate_weights, read_products, spread, spread_of_sums
from experts.mixer.kinds import GateKind

Reduce = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Gating:
    """How the gates are read, as the checkpoint's section says."""

    kind: GateKind
    experts: int
    top_k: int | None = None
    top_p: float | None = None
    temperature: float = 1.0


@dataclass(frozen=True, slots=True)
class Slot:
    """One projection inside a linear: its name in the base, which gate routes it (by number), how
    many A rows it has (0: no expert adapts it), and the part of its output that this rank holds."""

    name: str
    gate: int
    ranks: int
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class InputPart:
    """The part of the input that this rank holds; `split` where it is not all of it."""

    width: int
    start: int
    length: int

    @property
    def split(self) -> bool:
        return self.length != self.width


class FusedTerm(nn.Module):
    """The routed term of one linear: tokens (n, part of d_in) -> (n, outputs of this rank)."""

    def __init__(
        self, gating: Gating, slots: Sequence[Slot], part: InputPart, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.gating = gating
        self.slots = tuple(slots)
        self.part = part
        self.gates = 1 + max(slot.gate for slot in slots)
        self.ranks = sum(slot.ranks for slot in slots)
        self.rows: Tensor
        self.columns: Tensor
        self.b: Tensor
        routed = gating.kind != "uniform"
        scores = self.gates * gating.experts if routed else 0
        self._add("rows", self.ranks + scores, part.length, dtype=dtype)
        self._add("columns", self.gates * gating.experts, self.ranks, dtype=torch.float32)
        self._add("b", sum(slot.length for slot in slots), self.ranks, dtype=dtype)

    def _add(self, name: str, *shape: int, dtype: torch.dtype) -> None:
        self.register_buffer(name, torch.zeros(*shape, dtype=dtype), persistent=False)

    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the checkpoint's tensors of every slot: `{slot}.a`, `.b`, `.columns` and `.gate`."""
        part = slice(self.part.start, self.part.start + self.part.length)
        experts, rank, out = self.gating.experts, 0, 0
        for slot in self.slots:
            if slot.ranks:
                ranks = slice(rank, rank + slot.ranks)
                outputs = slice(slot.start, slot.start + slot.length)
                self.rows[ranks].copy_(tensors[f"{slot.name}.a"][:, part])
                self.b[out : out + slot.length, ranks].copy_(tensors[f"{slot.name}.b"][outputs])
                gate = slice(slot.gate * experts, (slot.gate + 1) * experts)
                self.columns[gate, ranks].copy_(tensors[f"{slot.name}.columns"])
                if self.gating.kind != "uniform":
                    first = self.ranks + slot.gate * experts
                    self.rows[first : first + experts].copy_(tensors[f"{slot.name}.gate"][:, part])
                rank += slot.ranks
            out += slot.length

    def forward(self, x: Tensor, prior: Tensor, allowed: Tensor, reduce: Reduce) -> Tensor:
        """`prior` and `allowed` are (n, experts); `reduce` sums over the ranks."""
        products = self.products(x)
        if self.part.split:
            products = reduce(products)
        return self.finish(products, x, prior, allowed)

    def products(self, x: Tensor) -> Tensor:
        """What is linear in this rank's input: products with the rows and, where a split input is
        to be normalised, its sum and sum of squares."""
        x = x.to(self.rows.dtype)
        products = torch.nn.functional.linear(x, self.rows).float()
        if self.part.split and self.gating.kind == "vector":
            wide = x.float()
            sums = [wide.sum(dim=-1, keepdim=True), wide.square().sum(dim=-1, keepdim=True)]
            products = torch.cat([products, *sums], dim=-1)
        return products

    def finish(self, products: Tensor, x: Tensor, prior: Tensor, allowed: Tensor) -> Tensor:
        gating, tokens = self.gating, products.shape[0]
        low_rank = products[:, : self.ranks]
        if gating.kind == "uniform":
            logits = products.new_zeros(tokens, self.gates, gating.experts)
        else:
            end = self.ranks + self.gates * gating.experts
            scores = products[:, self.ranks : end].view(tokens, self.gates, gating.experts)
            deviation = self._deviation(products, x)
            width = self.part.width
            logits = read_products(gating.kind, scores, deviation, width, gating.temperature)
        weights = gate_weights(
            logits,
            prior=prior.unsqueeze(1),
            allowed=allowed.unsqueeze(1),
            top_k=gating.top_k,
            top_p=gating.top_p,
        )
        factors = weights.view(tokens, self.gates * gating.experts) @ self.columns
        return torch.nn.functional.linear((low_rank * factors).to(self.b.dtype), self.b)

    def _deviation(self, products: Tensor, x: Tensor) -> Tensor | None:
        """(n, 1, 1): of all features of each token, wherever they lie."""
        if self.gating.kind != "vector":
            return None
        if not self.part.split:
            return spread(x).unsqueeze(1)
        total, squares = products[:, -2:-1], products[:, -1:]
        return spread_of_sums(total, squares, self.part.width).unsqueeze(1)
