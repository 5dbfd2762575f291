"""A mixer of the demo's adapters, and what transformers answers with it: what engines must say."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experts.engines.embedded.adapters import read_adapter
from experts.mixer.mixture import Mixture, compose
from experts.mixer.routed import attach
from experts.mixer.spec import GateSpec

EXPERTS = ("extract", "maths", "sql", "triage")
PRIORS: tuple[list[float] | None, ...] = (
    None,
    [100.0, 0.0, 0.0, 0.0],
    [0.0, 3.0, 0.0, 0.0],
    [0.0, 0.0, 200.0, 199.0],
    [-2.0, -2.0, 1.0, 4.0],
)
MASK = [0, 1, 1, 0]
PROMPTS = (
    "What is 47 + 385?",
    "List all customers from Berlin as SQL.",
    "I can't log in since this morning, and my invoice is wrong too.",
    "Call Anna Berg on 030 1234567 about the order of 12 May.",
    "Why is the sky blue?",
    "A farmer has 12 cows and sells 5. How many are left?",
)
GENERATED = 24
View = tuple[list[float] | None, list[int] | None]


def with_random_gates(mixture: Mixture, scale: float) -> Mixture:
    generator = torch.Generator().manual_seed(4)
    gates = {
        name: torch.randn(gate.shape, generator=generator) * scale
        for name, gate in mixture.gates.items()
    }
    return mixture.with_gates(mixture.spec.gate, gates)


def demo_mixture() -> Mixture:
    """The demo's four adapters under random gates, which tell tokens apart."""
    root = Path(__file__).parents[1] / "experts" / "demo" / "adapters"
    adapters = [read_adapter(name, root / name) for name in EXPERTS]
    return with_random_gates(compose(adapters, gate=GateSpec(top_k=2)), 0.5)


class Reference:
    """The same mixer on transformers, in float32, one request at a time."""

    def __init__(self, base: Path, mixture: Mixture) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(base)
        self.model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
        self.routing = attach(self.model, mixture)

    def prompt(self, text: str) -> list[int]:
        chat = [{"role": "user", "content": text}]
        told = self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        ids: list[int] = self.tokenizer(told, add_special_tokens=False)["input_ids"]
        return ids

    def answers(self, text: str, views: Sequence[View]) -> list[list[int]]:
        """Greedy tokens of one prompt under each of several priors and masks."""
        experts = self.routing.experts
        priors = torch.tensor([prior or [0.0] * experts for prior, _ in views])
        masks = torch.tensor([mask or [1] * experts for _, mask in views]) > 0
        ids = torch.tensor([self.prompt(text)] * len(views))
        with self.routing.request(priors, masks):
            return greedy(self.model, ids)


@torch.no_grad()
def greedy(model: Any, ids: Tensor) -> list[list[int]]:
    """The `GENERATED` most probable tokens after each of several prompts of one length."""
    found: list[Tensor] = []
    cache, step = None, ids
    for _ in range(GENERATED):
        output = model(input_ids=step, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        step = output.logits[:, -1:].argmax(dim=-1)
        found.append(step)
    tokens: list[list[int]] = torch.cat(found, dim=1).tolist()
    return tokens
