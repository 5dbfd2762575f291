"""A model being trained: its batches, the loss on answers, and the parts that may be unfrozen."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from experts.errors import SetupError
from experts.mixer.mixture import Mixture
from experts.mixer.routed import Routing, attach, detach, routed_linears
from experts.mixer.spec import gate_name
from experts.mixer.training.data import Encoded


@dataclass(frozen=True, slots=True)
class Base:
    """The frozen base, loaded once for every part that is trained on it."""

    model: Any
    tokenizer: Any
    folder: Path


def load_base(folder: Path, dtype: str = "bfloat16", device: str = "cpu") -> Base:
    """
    Raises:
        SetupError: the folder holds no causal language model that can be loaded.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            local_files_only=True,
            use_safetensors=True,
            # On a CPU the backward pass of eager attention is the faster one.
            attn_implementation="eager" if device == "cpu" else "sdpa",
        )
    except (OSError, ValueError) as error:
        raise SetupError(f"can't load the base in {folder}: {error}") from error
    return Base(model.to(device).eval().requires_grad_(False), tokenizer, folder)


@dataclass(frozen=True, slots=True)
class Padded:
    """A batch: ids (batch, length), where the answers are, and where tokens are (not padding)."""

    ids: Tensor
    answers: Tensor
    tokens: Tensor


def pad(batch: Sequence[Encoded], device: Any = "cpu") -> Padded:
    """Padding stands on the right, where causal attention never looks at it: no mask is needed."""
    width = max(len(item.ids) for item in batch)
    ids = torch.zeros((len(batch), width), dtype=torch.long)
    answers = torch.zeros((len(batch), width), dtype=torch.bool)
    tokens = torch.zeros((len(batch), width), dtype=torch.bool)
    for row, item in enumerate(batch):
        ids[row, : len(item.ids)] = torch.tensor(item.ids)
        answers[row, item.start : len(item.ids)] = True
        tokens[row, : len(item.ids)] = True
    return Padded(ids.to(device), answers.to(device), tokens.to(device))


def answer_loss(model: Any, batch: Padded) -> Tensor:
    """Mean cross-entropy of the answers' tokens. Logits are computed where there is an answer
    alone: over the whole sequence they would cost more than the rest of the model."""
    hidden = model.base_model(input_ids=batch.ids[:, :-1], use_cache=False).last_hidden_state
    before_answers = hidden[batch.answers[:, 1:]]
    logits = model.get_output_embeddings()(before_answers).float()
    cap = getattr(model.config, "final_logit_softcapping", None)
    if cap is not None:
        logits = torch.tanh(logits / cap) * cap
    return torch.nn.functional.cross_entropy(logits, batch.ids[batch.answers])


class Attached:
    """A mixture attached to the base for the length of a `with` block."""

    def __init__(self, base: Base, mixture: Mixture) -> None:
        self.base = base
        self.mixture = mixture
        self.routing: Routing

    def __enter__(self) -> "Attached":
        self.routing = attach(self.base.model, self.mixture)
        return self

    def __exit__(self, *_: object) -> None:
        detach(self.base.model)

    def unfreeze_gates(self) -> dict[str, nn.Parameter]:
        """The gates by name, each once however many linears share it."""
        scope = self.mixture.spec.gate.scope
        gates = {
            gate_name(name, scope): linear.gate
            for name, linear in routed_linears(self.base.model).items()
            if linear.gate is not None
        }
        for gate in gates.values():
            gate.requires_grad_(True)
        return {f"gate.{name}": gate for name, gate in gates.items()}

    def unfreeze_experts(self) -> dict[str, nn.Parameter]:
        """The stacked matrices of all experts."""
        found: dict[str, nn.Parameter] = {}
        for name, linear in routed_linears(self.base.model).items():
            found[f"a.{name}"], found[f"b.{name}"] = linear.a, linear.b
        for matrix in found.values():
            matrix.requires_grad_(True)
        return found
