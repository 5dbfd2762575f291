"""Gates: how much each expert counts for each token.

`logits = local(token) + prior(request)` whatever the method, where the prior is `alpha * global` of
GLIDER, already multiplied. Every local gate is one matrix (experts, d_in) and a way to read it:

- linear: LoRA-Mixer's router, `W x`.
- vector: gate vectors of PHATGOOSE and GLIDER, `LN(x) . LN(v) / sqrt(d)`.
- arrow: the direction that an adapter stretches most, `|v . x| / temperature` (Arrow).
- uniform: no matrix, every logit 0.

A request that is meant for one expert (hard routing by a domain id, or by an oracle) masks out all
others. A mask removes an expert; no value of the prior does.
"""

import math

import torch
from torch import Tensor

from experts.mixer.kinds import GateKind

_EPSILON = 1e-5


def normalised(vectors: Tensor) -> Tensor:
    """Rows with mean 0 and variance 1: a layer norm without parameters."""
    return torch.nn.functional.layer_norm(vectors.float(), vectors.shape[-1:], eps=_EPSILON)


def prepared(kind: GateKind, matrix: Tensor) -> Tensor:
    """The matrix that `local_logits` multiplies by, from the one that a checkpoint holds."""
    return normalised(matrix) if kind == "vector" else matrix.float()


def spread(x: Tensor) -> Tensor:
    """Standard deviation of every token's features, (..., 1), as a layer norm takes it."""
    return (x.float().var(dim=-1, keepdim=True, unbiased=False) + _EPSILON).sqrt()


def spread_of_sums(total: Tensor, squares: Tensor, width: int) -> Tensor:
    """`spread` from the sums of the features and of their squares, where ranks hold parts of x."""
    mean = total / width
    return (squares / width - mean.square() + _EPSILON).sqrt()


def read_products(
    kind: GateKind, products: Tensor, deviation: Tensor | None, width: int, temperature: float
) -> Tensor:
    """Logits from the products (..., experts) of prepared matrix and token.

    A normalised vector sums to 0, so the mean of x drops out: LN(x) . v = x . v / spread(x).
    """
    if kind == "vector":
        assert deviation is not None
        return products / (deviation * math.sqrt(width))
    if kind == "arrow":
        return products.abs() / temperature
    return products


def local_logits(kind: GateKind, matrix: Tensor, x: Tensor, temperature: float = 1.0) -> Tensor:
    """Logits (..., experts) in float32 of tokens x (..., d_in); `matrix` as `prepared` gives it."""
    products = torch.nn.functional.linear(x.float(), matrix)
    deviation = spread(x) if kind == "vector" else None
    return read_products(kind, products, deviation, x.shape[-1], temperature)


def gate_weights(
    logits: Tensor,
    *,
    prior: Tensor | None = None,
    allowed: Tensor | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Tensor:
    """Weights of the experts for each token: they sum to 1 over those that are selected.

    Args:
        logits: (..., experts) of the local gate.
        prior: added to the logits; broadcasts to them.
        allowed: False removes an expert; broadcasts to the logits. At least one must be left.
        top_k: keep the k largest.
        top_p: keep the fewest whose probabilities sum to `top_p` or more.

    The selected weights are a softmax over the selected logits. That equals renormalised
    probabilities, but does not underflow when a prior is large.
    """
    if prior is not None:
        logits = logits + prior
    if allowed is not None:
        logits = logits.masked_fill(~allowed, -torch.inf)
    experts = logits.shape[-1]
    if top_k is not None and top_k < experts:
        kept, places = logits.topk(top_k, dim=-1)
        logits = torch.full_like(logits, -torch.inf).scatter(-1, places, kept)
    if top_p is not None and top_p < 1.0:
        ordered, places = logits.softmax(dim=-1).sort(dim=-1, descending=True)
        before = ordered.cumsum(dim=-1) - ordered
        drop = torch.zeros_like(before, dtype=torch.bool).scatter(-1, places, before >= top_p)
        logits = logits.masked_fill(drop, -torch.inf)
    return logits.softmax(dim=-1)


def arrow_prototype(a: Tensor, b: Tensor) -> Tensor:
    """The unit vector (d_in,) that the adapter's B A stretches most: its top right singular vector.

    A is (rank, d_in), B (d_out, rank). Only matrices of the size of the rank are decomposed, beside
    two thin QRs. An adapter that does nothing has no direction: zeros.
    """
    q_a, r_a = torch.linalg.qr(a.float().T)
    _, r_b = torch.linalg.qr(b.float())
    _, sizes, right = torch.linalg.svd(r_b @ r_a.T)
    if sizes[0] == 0:
        return torch.zeros(a.shape[1])
    direction: Tensor = q_a @ right[0]
    return direction
