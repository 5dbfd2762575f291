"""The request's view of the experts, brought to every token of a step.

Two tables: what each request in the batch asks for, by its row, and the same spread over the step's
tokens, which the routed linears read. The runner's order of rows is known to a logits processor
alone (its `update_state` runs before the forward pass), so one keeps the first table; the model's
forward fills the second. vLLM makes both objects itself and hands neither to the other: they meet
in `current`, one table in each worker process.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Priors(nn.Module):
    """The tables of one model: rows (max requests, experts) and tokens (max tokens, experts).

    A row that nobody set has prior 0 and allows every open expert.
    """

    def __init__(self, open_experts: Sequence[bool], requests: int, tokens: int) -> None:
        super().__init__()
        experts = len(open_experts)
        opened = torch.tensor(open_experts)
        self.open = opened.cpu()
        # Whether the runner itself brings the priors to the tokens, before the model is called.
        self.by_runner = False
        # Rows are changed on the host; what the linears read lies on the device.
        self.row_prior = torch.zeros(requests, experts, device="cpu")
        self.row_allowed = self.open.expand(requests, experts).clone()
        self.prior: Tensor
        self.allowed: Tensor
        self.register_buffer("prior", torch.zeros(tokens, experts), persistent=False)
        self.register_buffer("allowed", opened.expand(tokens, experts).clone(), persistent=False)

    def set_row(
        self, row: int, prior: Sequence[float] | None, mask: Sequence[float] | None
    ) -> None:
        """What the request in a row asks for; None is no opinion."""
        self.row_prior[row] = 0.0 if prior is None else torch.tensor(prior, device="cpu")
        self.row_allowed[row] = self.open
        if mask is not None:
            self.row_allowed[row] &= torch.tensor(mask, device="cpu") > 0

    def move_row(self, source: int, target: int, swap: bool) -> None:
        for table in (self.row_prior, self.row_allowed):
            moved = table[source].clone()
            if swap:
                table[source] = table[target]
            table[target] = moved

    def spread(self, starts: Tensor | None, tokens: int, rows: Tensor | None = None) -> None:
        """Fill the tokens' tables for a step, whose requests begin at `starts` (requests + 1,).

        `rows` are the requests' rows, if they are not the first ones in order. Tokens past the
        last request are padding: nothing reads what becomes of them.
        """
        if starts is None:
            self.prior[:tokens] = 0.0
            self.allowed[:tokens] = self.open.to(self.allowed.device)
            return
        lengths = starts.diff().cpu()
        used = int(lengths.sum())
        if rows is None:
            rows = torch.arange(len(lengths), device="cpu")
        of_token = rows.repeat_interleave(lengths)
        self.prior[:used].copy_(self.row_prior[of_token], non_blocking=True)
        self.allowed[:used].copy_(self.row_allowed[of_token], non_blocking=True)
        self.prior[used:tokens] = 0.0
        self.allowed[used:tokens] = self.open.to(self.allowed.device)


current: Priors | None = None


def install(priors: Priors) -> Priors:
    """Make these the tables of this process."""
    global current
    current = priors
    return priors
