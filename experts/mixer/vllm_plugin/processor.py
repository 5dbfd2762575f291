"""A logits processor that changes no logits: it learns which request is in which row.

Entry point of the group `vllm.logits_processors`; where no mixer is served it does nothing.
"""

from typing import Any

import torch
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

from experts.mixer.vllm_plugin import priors
from experts.mixer.vllm_plugin.settings import checked_row


class PriorProcessor(LogitsProcessor):
    """Keeps the rows of `priors.current`."""

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        checked_row(sampling_params.extra_args)

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        pass

    def is_argmax_invariant(self) -> bool:
        return True

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        return logits

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        tables = priors.current
        if batch_update is None or tables is None:
            return
        for row in batch_update.removed:
            tables.set_row(row, None, None)
        for row, params, _, _ in batch_update.added:
            tables.set_row(row, *checked_row(params.extra_args))
        for source, target, direction in batch_update.moved:
            tables.move_row(source, target, direction is MoveDirectionality.SWAP)
