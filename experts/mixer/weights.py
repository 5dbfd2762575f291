"""The stacked matrices of one routed projection, and the term that they add to its output.

All experts' matrices lie side by side: A (ranks, d_in), B (d_out, ranks), with as many columns as
their ranks sum to. `columns` (experts, ranks) holds an expert's alpha/r in its own columns and 0
elsewhere, so that `weights @ columns` weighs every column by its expert. The routed term is then
`((x A^T) * (weights @ columns)) B^T`: two matrix products for any number of experts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Part:
    """One expert's matrices for one projection: A (rank, d_in), B (d_out, rank), and its scale."""

    a: Tensor
    b: Tensor
    scale: float


@dataclass(frozen=True, slots=True)
class Stack:
    """What `stack` makes of the parts of all experts."""

    a: Tensor
    b: Tensor
    columns: Tensor


def stack(parts: Sequence[Part | None]) -> Stack:
    """Lay the experts' parts side by side; None is an expert that leaves this projection alone."""
    present = [part for part in parts if part is not None]
    columns = torch.zeros(len(parts), sum(part.a.shape[0] for part in present))
    start = 0
    for expert, part in enumerate(parts):
        if part is not None:
            rank = part.a.shape[0]
            columns[expert, start : start + rank] = part.scale
            start += rank
    a = torch.cat([part.a.float() for part in present])
    b = torch.cat([part.b.float() for part in present], dim=1)
    return Stack(a, b, columns)


def routed_term(x: Tensor, weights: Tensor, a: Tensor, b: Tensor, columns: Tensor) -> Tensor:
    """The weighted sum of the experts' terms: x (..., d_in), weights (..., experts)."""
    low_rank = torch.nn.functional.linear(x, a) * (weights @ columns).to(a.dtype)
    return torch.nn.functional.linear(low_rank, b)


def separate_term(x: Tensor, weights: Tensor, parts: Sequence[Part | None]) -> Tensor:
    """The same sum, expert by expert and rounding as plain LoRA does: B(A x) * scale, then the
    weight. For tests and comparisons; it costs two products an expert."""
    total: Tensor | None = None
    for expert, part in enumerate(parts):
        if part is None:
            continue
        term = torch.nn.functional.linear(torch.nn.functional.linear(x, part.a), part.b)
        term = term * part.scale * weights[..., expert, None]
        total = term if total is None else total + term
    assert total is not None
    return total
