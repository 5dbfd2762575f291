"""Losses on routing, as the LoRA-Mixer paper prints or describes them.

What the evidence settles: the auxiliary loss, the two terms of the routing specialisation loss
(RSL), the preservation term. What it leaves open is a parameter here:

- the sign of the entropy term. The paper *prints* `- lambda H`, which flattens routing when it is
  minimised (sign -1); its text and plots *describe* peaks, which is `+ lambda H` (sign +1);
- the frequency f: that of the first choice (eq. 3), or of the first k choices (section 3.3);
- the coefficients, of which no value is known.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

_TINY = 1e-12


@dataclass(frozen=True, slots=True)
class RoutingLoss:
    """`balance * sum(p f) + sign * entropy * H`, averaged over the routed modules.

    `first_k` is how many choices the frequency counts. Nothing is lost where both weights are 0.
    """

    balance: float = 1e-2
    entropy: float = 1e-3
    sign: Literal[-1, 1] = 1
    first_k: int = 1

    def __call__(self, weights: Iterable[Tensor], tokens: Tensor) -> Tensor:
        """`weights`: each module's (batch, length, experts); `tokens` (batch, length) is True where
        a token counts, that is not padding."""
        losses = [self.of_module(module[tokens]) for module in weights]
        return torch.stack(losses).mean()

    def of_module(self, weights: Tensor) -> Tensor:
        """The loss of one module's weights (tokens, experts)."""
        total = self.balance * balance_loss(weights, self.first_k)
        return total + self.sign * self.entropy * entropy(weights).mean()


def balance_loss(weights: Tensor, first_k: int = 1) -> Tensor:
    """`sum_i p_i f_i`: mean weight times frequency of choice (eq. 3). No gradient flows through f,
    which a count has none of (eq. 9). At its least, 1 / experts, the load is uniform."""
    chosen = weights.detach().topk(first_k, dim=-1).indices
    counts = torch.zeros_like(weights).scatter(-1, chosen, 1.0)
    return (weights.mean(dim=0) * counts.mean(dim=0) / first_k).sum()


def entropy(weights: Tensor) -> Tensor:
    """Entropy in nats over the last dimension; its gradient is finite where an expert is shut."""
    return -(weights * weights.clamp_min(_TINY).log()).sum(dim=-1)


def preservation_loss(now: Sequence[Tensor], first: Sequence[Tensor], beta: float) -> Tensor:
    """`beta * sum ||theta - theta_0||^2` (eq. 11): keeps experts near what they were."""
    moved = [(a - b.to(a.dtype)).square().sum() for a, b in zip(now, first, strict=True)]
    return torch.stack(moved).sum() * beta
