"""Many LoRA adapters in one forward pass, each token under its own.

All adapters' matrices of a module are stacked by rank, A to (sum of ranks, d_in) and B to (d_out,
sum of ranks). A gate (tokens, sum of ranks) holds alpha/r where a column belongs to the token's
adapter and 0 elsewhere, and the module adds ((x A^T) * gate) B^T: two matrix products for any
mixture of adapters. Columns outside the span of the adapters present in the step are left out.

All of it is float32, whatever the base is: products this small cost 2 us by MKL in float32 and
16 us by oneDNN in bfloat16, most of it overhead of the call.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from experts.engines.embedded.adapters import Adapter
from experts.errors import SetupError

# The output head sees only the tokens that are sampled, which a gate by token does not fit.
_OUTPUT_HEAD = "lm_head"


@dataclass(slots=True)
class _Layout:
    """How a set of adapters lies in the stacked columns; shared by all modules that have this set.

    `scales` (adapters + 1, sum of ranks): the gate of each adapter, zeros in the base's row 0.
    `gate` (tokens, hi - lo) is the current step's; None when it needs none of these adapters.
    """

    spans: dict[int, tuple[int, int]]
    scales: Tensor
    gate: Tensor | None = None
    lo: int = 0
    hi: int = 0


class LoraLinear(nn.Module):
    """A base Linear plus the adapters' terms that the layout's gate asks for."""

    def __init__(self, base: nn.Module, layout: _Layout, a: Tensor, b: Tensor) -> None:
        super().__init__()
        self.base = base
        self.layout = layout
        self.a = a
        self.b_transposed = b.t().contiguous()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x)
        gate = self.layout.gate
        if gate is None:
            return out
        lo, hi = self.layout.lo, self.layout.hi
        flat = x.reshape(-1, x.shape[-1]).float()
        low_rank = torch.mm(flat, self.a[lo:hi].t()).mul_(gate)
        out.view(-1, out.shape[-1]).add_(torch.mm(low_rank, self.b_transposed[lo:hi]))
        return out


class LoraBank:
    """The adapters of one model, by number: 0 is the bare base, then in the order given."""

    def __init__(self, model: nn.Module, adapters: Sequence[Adapter]) -> None:
        """Wrap the targeted Linears of `model` in place; raises `SetupError` for what fits not."""
        self._layouts: dict[tuple[int, ...], _Layout] = {}
        self._adapters = tuple(adapters)
        users: dict[str, list[int]] = {}
        for number, adapter in enumerate(adapters, start=1):
            for module in adapter.matrices:
                users.setdefault(module, []).append(number)
        for module, numbers in users.items():
            self._wrap(model, module, tuple(numbers))

    def select(self, adapter_of_token: Sequence[int]) -> None:
        """Set the gates of the next step; `adapter_of_token` is (tokens,)."""
        present = set(adapter_of_token) - {0}
        index = torch.tensor(adapter_of_token) if present else None
        for layout in self._layouts.values():
            spans = [span for number, span in layout.spans.items() if number in present]
            if index is None or not spans:
                layout.gate = None
                continue
            layout.lo = min(lo for lo, _ in spans)
            layout.hi = max(hi for _, hi in spans)
            layout.gate = layout.scales[index, layout.lo : layout.hi]

    def _wrap(self, model: nn.Module, module: str, numbers: tuple[int, ...]) -> None:
        users = [self._adapters[number - 1] for number in numbers]
        linear = _target(model, module, users)
        layout = self._layouts.get(numbers)
        if layout is None:
            layout = self._layouts[numbers] = self._lay_out(numbers)
        a = torch.cat([adapter.matrices[module][0] for adapter in users])
        b = torch.cat([adapter.matrices[module][1] for adapter in users], dim=1)
        parent, _, leaf = module.rpartition(".")
        setattr(model.get_submodule(parent), leaf, LoraLinear(linear, layout, a, b))

    def _lay_out(self, numbers: tuple[int, ...]) -> _Layout:
        spans: dict[int, tuple[int, int]] = {}
        width = 0
        for number in numbers:
            rank = self._adapters[number - 1].rank
            spans[number] = (width, width + rank)
            width += rank
        scales = torch.zeros(len(self._adapters) + 1, width)
        for number, (lo, hi) in spans.items():
            scales[number, lo:hi] = self._adapters[number - 1].scale
        return _Layout(spans, scales)


def _target(model: nn.Module, module: str, users: Sequence[Adapter]) -> nn.Module:
    name = users[0].name
    try:
        linear = model.get_submodule(module)
    except AttributeError as error:
        raise SetupError(
            f"adapter {name}: the base has no module {module}; is it for another base?"
        ) from error
    if module == _OUTPUT_HEAD or not hasattr(linear, "in_features"):
        raise SetupError(f"adapter {name}: {module} is not a layer that can carry an adapter here")
    expected: tuple[Any, Any] = (linear.in_features, linear.out_features)
    for adapter in users:
        a, b = adapter.matrices[module]
        if (a.shape[1], b.shape[0]) != expected:
            raise SetupError(
                f"adapter {adapter.name}: {module} is made for {a.shape[1]} -> {b.shape[0]} "
                f"features, the base has {expected[0]} -> {expected[1]}; is it for another base?"
            )
    return linear
