"""The same priors on vLLM's second model runner (the default on GPUs), which runs no logits
processors and tells its model of requests by a model state instead.

Written against vLLM 0.32 and not run here: this machine has no GPU. The tables that the linears
read are filled before the model is called, outside of captured CUDA graphs, and stay at their
addresses, so that a replayed graph reads the current step's values.
"""

from typing import Any

import torch
from vllm.v1.worker.gpu.model_states.default import DefaultModelState

from experts.mixer.vllm_plugin.settings import checked_row


class MixerModelState(DefaultModelState):
    """Keeps every request's prior in its slot, and spreads them over the step's tokens."""

    def __init__(self, vllm_config: Any, model: Any, *more: Any) -> None:
        super().__init__(vllm_config, model, *more)
        model.priors.by_runner = True

    def add_request(self, req_index: int, new_req_data: Any) -> None:
        super().add_request(req_index, new_req_data)
        params = new_req_data.sampling_params
        self.model.priors.set_row(
            req_index, *checked_row(None if params is None else params.extra_args)
        )

    def prepare_inputs(self, input_batch: Any, req_states: Any) -> dict[str, Any]:
        rows = input_batch.idx_mapping[: input_batch.num_reqs].cpu()
        starts = torch.from_numpy(input_batch.query_start_loc_np[: input_batch.num_reqs + 1])
        tokens = input_batch.num_tokens_after_padding
        self.model.priors.spread(starts, tokens, rows=rows)
        inputs: dict[str, Any] = super().prepare_inputs(input_batch, req_states)
        return inputs
