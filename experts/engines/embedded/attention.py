"""Attention of a ragged step: decoding rows and prompt chunks side by side in one flat batch.

A step runs the model once on a batch of one sequence, (1, tokens): first one token of every
decoding row, then chunks of joining prompts. Everything but attention works token by token, so
nothing is padded; attention alone has to know which tokens belong together, and learns it from a
`StepPlan` that the model hands through as a keyword argument.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ATTENTION_NAME = "composer_ragged"

# One more attention call costs about as much as reading this many cached tokens of one row.
_CALL_COST_TOKENS = 160


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """Tokens [first, first + rows) of the step decode rows in slots [slot, slot + rows).

    `length` is the longest row with its new token. `mask` (rows, 1, 1, length) is added to the
    scores; None when all rows are that long.
    """

    first: int
    rows: int
    slot: int
    length: int
    mask: Tensor | None


@dataclass(frozen=True, slots=True)
class PrefillChunk:
    """Tokens [first, first + tokens) of the step are a prompt's positions up to `end` (exclusive).

    `mask` (1, 1, tokens, end) is added to the scores; None at the start of a prompt, where the
    kernel's own causal mask is right.
    """

    first: int
    tokens: int
    slot: int
    end: int
    mask: Tensor | None


@dataclass(frozen=True, slots=True)
class StepPlan:
    """Where the keys and values of a step go, and which of them each token may see.

    `slots` and `positions` are (tokens,); `keys` and `values` are the cache's tensors by layer.
    """

    slots: Tensor
    positions: Tensor
    groups: tuple[DecodeGroup, ...]
    chunks: tuple[PrefillChunk, ...]
    keys: list[Tensor]
    values: list[Tensor]


def decode_groups(
    slots: Sequence[int], lengths: Sequence[int], dtype: torch.dtype
) -> tuple[DecodeGroup, ...]:
    """Split decoding rows (by ascending slot) into the cheapest set of attention calls.

    A call reads a contiguous range of slots, each as long as the longest of them. Many calls cost
    overhead, few calls make short rows pay for a long one: the best split is found exactly, by
    dynamic programming over the rows.
    """
    count = len(slots)
    best = [0] * (count + 1)
    start_of = [0] * (count + 1)
    for end in range(1, count + 1):
        longest = 0
        best[end] = -1
        for start in range(end - 1, -1, -1):
            if start < end - 1 and slots[start] + 1 != slots[start + 1]:
                break
            longest = max(longest, lengths[start])
            cost = best[start] + _CALL_COST_TOKENS + (end - start) * longest
            if best[end] < 0 or cost < best[end]:
                best[end] = cost
                start_of[end] = start
    groups: list[DecodeGroup] = []
    end = count
    while end:
        start = start_of[end]
        members = lengths[start:end]
        longest = max(members)
        mask = None
        if min(members) < longest:
            hidden = torch.arange(longest) >= torch.tensor(members).unsqueeze(1)
            mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, -torch.inf)
            mask = mask.view(end - start, 1, 1, longest)
        groups.append(DecodeGroup(start, end - start, slots[start], longest, mask))
        end = start
    return tuple(reversed(groups))


def prefill_chunk(
    first: int, tokens: int, slot: int, start: int, dtype: torch.dtype
) -> PrefillChunk:
    """The chunk of `tokens` prompt tokens at position `start`; it sees all before it."""
    end = start + tokens
    mask = None
    if start:
        hidden = torch.ones(tokens, end, dtype=torch.bool).triu_(start + 1)
        mask = torch.zeros(tokens, end, dtype=dtype).masked_fill_(hidden, -torch.inf)
        mask = mask.view(1, 1, tokens, end)
    return PrefillChunk(first, tokens, slot, end, mask)


def ragged_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    plan: StepPlan,
    scaling: float | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Store the step's keys and values, then attend group by group and chunk by chunk.

    `query` is (1, heads, tokens, head_dim), `key` and `value` (1, kv_heads, tokens, head_dim);
    returns (1, tokens, heads, head_dim). The signature is that of transformers' attention
    functions; `attention_mask` is always None, as no mask function is registered for this name.
    """
    if softcap is not None:
        raise ValueError("this engine has no attention with soft-capped scores")
    layer: Any = module.layer_idx
    keys, values = plan.keys[layer], plan.values[layer]
    keys[plan.slots, :, plan.positions] = key[0].transpose(0, 1)
    values[plan.slots, :, plan.positions] = value[0].transpose(0, 1)

    heads, tokens, head_dim = query.shape[1:]
    kv_heads = keys.shape[1]
    out = query.new_empty(tokens, heads, head_dim)
    by_token = query[0].transpose(0, 1)
    for g in plan.groups:
        # The query heads that share a key head stand where several query tokens would: each key is
        # read once for all of them.
        q = by_token[g.first : g.first + g.rows].reshape(
            g.rows, kv_heads, heads // kv_heads, head_dim
        )
        attended = F.scaled_dot_product_attention(
            q,
            keys[g.slot : g.slot + g.rows, :, : g.length],
            values[g.slot : g.slot + g.rows, :, : g.length],
            attn_mask=g.mask,
            scale=scaling,
        )
        out[g.first : g.first + g.rows] = attended.reshape(g.rows, heads, head_dim)
    for c in plan.chunks:
        attended = F.scaled_dot_product_attention(
            query[:, :, c.first : c.first + c.tokens],
            keys[c.slot : c.slot + 1, :, : c.end],
            values[c.slot : c.slot + 1, :, : c.end],
            attn_mask=c.mask,
            is_causal=c.mask is None,
            scale=scaling,
            enable_gqa=True,
        )
        out[c.first : c.first + c.tokens] = attended[0].transpose(0, 1)
    return out.unsqueeze(0), None


def register_attention() -> None:
    """Make `ragged_attention` known to transformers under `ATTENTION_NAME`."""
    from transformers.modeling_utils import AttentionInterface

    AttentionInterface.register(ATTENTION_NAME, ragged_attention)
