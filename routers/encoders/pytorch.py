"""The encoder's forward pass on PyTorch: the reference that the exported graph must agree with."""

from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModel

from routers.encoders.sentence import Forward


class SentenceModule(torch.nn.Module):
    """Transformer, mean over the tokens that are not padding, normalisation."""

    def __init__(self, folder: Path, attention: str = "sdpa") -> None:
        super().__init__()
        self.transformer = AutoModel.from_pretrained(
            folder, attn_implementation=attention, dtype=torch.float32, local_files_only=True
        )
        self.eval()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Ids and mask (n, length) to vectors (n, d) of length 1."""
        states = self.transformer(
            input_ids=input_ids, attention_mask=attention_mask
        ).last_hidden_state
        weights = attention_mask.unsqueeze(-1).to(states.dtype)
        mean = (states * weights).sum(dim=1) / weights.sum(dim=1)
        return torch.nn.functional.normalize(mean, dim=-1)


def pytorch_forward(folder: Path, threads: int) -> Forward:
    """The model in this folder. PyTorch has one number of threads for the process: this sets it."""
    torch.set_num_threads(threads)
    module = SentenceModule(folder)

    def forward(ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.float32]:
        with torch.inference_mode():
            vectors = module(torch.from_numpy(ids), torch.from_numpy(mask))
        return cast(NDArray[np.float32], vectors.numpy())

    return forward
