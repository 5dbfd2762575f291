"""Choosing the next token of every row at once, each row by its own parameters."""

import random
from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

from experts.engines.embedded.requests import SamplingParams

# A nucleus is sampled without sorting the vocabulary: draw from all of it, and draw again if the
# token lies outside. After so many draws in vain (a narrow top_p) it is sorted after all.
_MAX_DRAWS = 16

# Below this temperature only ties could tell sampling from the likeliest token.
_COLDEST = 1e-5


class RowSampler:
    """One row's parameters, random numbers and counts of the tokens seen."""

    def __init__(self, params: SamplingParams, prompt: Sequence[int]) -> None:
        self.params = params
        self.greedy = params.temperature < _COLDEST or params.top_p == 0.0 or params.top_k == 1
        self.edits = bool(
            params.logit_bias
            or params.frequency_penalty
            or params.presence_penalty
            or params.repetition_penalty != 1.0
        )
        # One uniform number a token is all that is drawn, so a plain generator per row serves: the
        # same seed gives the same draws whatever else is in the batch.
        self._random = random.Random(params.seed)
        self._generated: dict[int, int] = {}
        self._seen = dict.fromkeys(prompt) if params.repetition_penalty != 1.0 else {}

    def uniform(self) -> float:
        """The next random number of this row, in [0, 1)."""
        return self._random.random()

    def record(self, token: int) -> None:
        """Count a generated token for the penalties."""
        if self.edits:
            self._generated[token] = self._generated.get(token, 0) + 1
            if self.params.repetition_penalty != 1.0:
                self._seen[token] = None

    def edit(self, logits: Tensor) -> None:
        """Apply bias and penalties to this row's logits (vocabulary,) in place."""
        p = self.params
        if p.logit_bias:
            ids = torch.tensor([token for token, _ in p.logit_bias])
            logits[ids] += torch.tensor([bias for _, bias in p.logit_bias], dtype=logits.dtype)
        if self._seen:
            ids = torch.tensor(list(self._seen))
            seen = logits[ids]
            logits[ids] = torch.where(
                seen > 0, seen / p.repetition_penalty, seen * p.repetition_penalty
            )
        if self._generated and (p.frequency_penalty or p.presence_penalty):
            ids = torch.tensor(list(self._generated))
            counts = torch.tensor(list(self._generated.values()), dtype=logits.dtype)
            logits[ids] -= counts * p.frequency_penalty + p.presence_penalty


def choose(logits: Tensor, rows: Sequence[RowSampler]) -> list[int | None]:
    """The next token of every row from `logits` (rows, vocabulary), which may be overwritten.

    None stands for a row whose logits are not finite: no token can be chosen there.
    """
    if any(row.edits or not row.greedy for row in rows):
        logits = logits.float()
    for row, row_logits in zip(rows, logits, strict=True):
        if row.edits:
            row.edit(row_logits)
    best, greedy = logits.max(dim=-1)
    tokens: list[int | None] = list(greedy.tolist())
    finite = best.isfinite().tolist()
    sampled = [i for i, row in enumerate(rows) if finite[i] and not row.greedy]
    if sampled:
        weights = _weights(logits, sampled, rows)
        drawn = _sample(weights, [rows[i] for i in sampled])
        for i, token in zip(sampled, drawn, strict=True):
            tokens[i] = token
    return [token if ok else None for token, ok in zip(tokens, finite, strict=True)]


def _weights(logits: Tensor, chosen: list[int], rows: Sequence[RowSampler]) -> Tensor:
    """Probabilities (chosen, vocabulary) at each row's temperature, zero where min_p cuts off."""
    temperatures = torch.tensor([[rows[i].params.temperature] for i in chosen])
    weights = torch.softmax(logits[chosen].div_(temperatures), dim=-1)
    if any(rows[i].params.min_p for i in chosen):
        share = torch.tensor([[rows[i].params.min_p] for i in chosen])
        weights.mul_(weights >= share * weights.amax(-1, keepdim=True))
    return weights


def _sample(weights: Tensor, rows: Sequence[RowSampler]) -> list[int]:
    tokens = [0] * len(rows)
    top_k = [i for i, row in enumerate(rows) if row.params.top_k]
    nucleus = [i for i, row in enumerate(rows) if not row.params.top_k]
    for i in top_k:
        tokens[i] = _sample_sorted(weights[i], rows[i])
    if not nucleus:
        return tokens
    cumulative = weights.cumsum(-1, dtype=torch.float64)
    for _ in range(_MAX_DRAWS):
        drawn = _draw(cumulative[nucleus], [rows[i].uniform() for i in nucleus])
        for i, token in zip(nucleus, drawn, strict=True):
            tokens[i] = token
        limited = [i for i in nucleus if rows[i].params.top_p < 1.0]
        if not limited:
            return tokens
        # A token belongs to the nucleus when the likelier ones together stay below top_p.
        chosen = torch.tensor([[tokens[i]] for i in limited])
        among = weights[limited]
        above = (among * (among > among.gather(1, chosen))).sum(-1)
        limit = torch.tensor([rows[i].params.top_p for i in limited]) * among.sum(-1)
        outside = (above >= limit).tolist()
        nucleus = [i for i, out in zip(limited, outside, strict=True) if out]
        if not nucleus:
            return tokens
    for i in nucleus:
        tokens[i] = _sample_sorted(weights[i], rows[i])
    return tokens


def _sample_sorted(weights: Tensor, row: RowSampler) -> int:
    """Draw under top_k and top_p by sorting; top_p is a share of what top_k left over."""
    values, ids = weights.topk(row.params.top_k or weights.shape[0])
    values = values.double()
    before = values.cumsum(0) - values
    values = values * (before < row.params.top_p * values.sum())
    drawn = _draw(values.cumsum(0).unsqueeze(0), [row.uniform()])[0]
    return int(ids[drawn])


def _draw(cumulative: Tensor, uniforms: list[float]) -> list[int]:
    """One index a row by inverse transform from running sums (rows, n), which may end anywhere."""
    target = torch.tensor(uniforms, dtype=torch.float64).unsqueeze(1) * cumulative[:, -1:]
    index = torch.searchsorted(cumulative, target, right=True).squeeze(1)
    return list(index.clamp_(max=cumulative.shape[1] - 1).tolist())


def eos_tokens(*sources: int | Sequence[int] | None) -> frozenset[int]:
    """All end tokens named by the model's and the tokenizer's configurations."""
    lists = ([s] if isinstance(s, int) else list(s or ()) for s in sources)
    return frozenset(chain.from_iterable(lists))
