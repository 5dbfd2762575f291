"""Train the demo LoRA adapters on SmolLM2-135M-Instruct, on a CPU, in minutes each.

`python -m experts.demo.train_adapters --model DIR --data DIR --out experts/demo/adapters`

The data are the files that `experts.demo.make_data` writes. Only the answers carry loss. What keeps
the time down: batches of equal length; one pass over the system message that all share; a sampled
softmax on the answer tokens alone; eager attention, whose backward pass is the faster one on a CPU;
and a bfloat16 model whose few trained weights have float32 masters in the optimizer.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

BASE_NAME = "SmolLM2-135M-Instruct"
RANK = 8
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
MAX_TOKENS = 320
WARMUP_SHARE = 0.06


@dataclass(frozen=True)
class Recipe:
    """How one adapter is trained; `batch` counts examples, `rate` is the peak learning rate."""

    steps: int
    batch: int
    rate: float
    seed: int = 0


RECIPES: dict[str, Recipe] = {
    "maths": Recipe(steps=1000, batch=8, rate=1.5e-3),
    "extract": Recipe(steps=160, batch=8, rate=1e-3),
    "sql": Recipe(steps=480, batch=8, rate=1.5e-3),
    "triage": Recipe(steps=260, batch=16, rate=1e-3),
}


@dataclass(frozen=True)
class Encoded:
    """Token ids of one conversation; those from `start` on are the answer, which carries loss."""

    ids: tuple[int, ...]
    start: int


def read_examples(path: Path) -> list[tuple[str, str]]:
    """The (prompt, answer) pairs of a training file."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    return [(row["prompt"], row["answer"]) for row in rows]


def encode(tokenizer: AutoTokenizer, examples: list[tuple[str, str]]) -> list[Encoded]:
    """Examples in the model's own chat template; those longer than MAX_TOKENS are left out."""
    encoded = []
    for prompt, answer in examples:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        head = tokenizer(text, add_special_tokens=False)["input_ids"]
        tail = tokenizer(answer, add_special_tokens=False)["input_ids"]
        ids = (*head, *tail, tokenizer.eos_token_id)
        if len(ids) <= MAX_TOKENS:
            encoded.append(Encoded(ids=ids, start=len(head)))
    return encoded


def batches(encoded: list[Encoded], size: int, rng: random.Random) -> Iterator[list[Encoded]]:
    """Endless batches of similar length: each pass sorts with a little noise, cuts, shuffles."""
    while True:
        order = sorted(encoded, key=lambda item: len(item.ids) + rng.uniform(0, 4))
        cuts = [order[i : i + size] for i in range(0, len(order) - size + 1, size)]
        rng.shuffle(cuts)
        yield from cuts


class AnswerVocabulary:
    """Cross-entropy over the vocabulary without computing all of its logits.

    The tokens that occur in answers count in full. The others are a sum over a random sample of
    `others` of them, weighted up to their number: an unbiased estimate of their share of the
    softmax's denominator, at a tenth of its cost.
    """

    def __init__(self, encoded: list[Encoded], size: int, others: int = 2048) -> None:
        used = torch.zeros(size, dtype=torch.bool)
        used[[token for item in encoded for token in item.ids[item.start :]]] = True
        self.used = used.nonzero().flatten()
        self.unused = (~used).nonzero().flatten()
        self.others = min(others, len(self.unused))
        self.place = torch.zeros(size, dtype=torch.long)
        self.place[self.used] = torch.arange(len(self.used))

    def loss(
        self, hidden: torch.Tensor, weight: torch.Tensor, wanted: torch.Tensor
    ) -> torch.Tensor:
        """Mean loss; hidden is (n, width), weight (vocabulary, width), wanted (n,) token ids."""
        sample = self.unused[torch.randint(len(self.unused), (self.others,))]
        logits = (hidden @ weight[torch.cat((self.used, sample))].T).float()
        logits[:, len(self.used) :] += math.log(len(self.unused) / self.others)
        return torch.nn.functional.cross_entropy(logits, self.place[wanted])


def answer_loss(
    model: PeftModel, batch: list[Encoded], vocabulary: AnswerVocabulary
) -> torch.Tensor:
    """Mean cross-entropy of the answer tokens.

    What all conversations begin with (the template's system message) is run once for the batch.
    Padding stands on the right, where causal attention never looks at it: no mask is needed.
    """
    width = max(len(item.ids) for item in batch)
    ids = torch.zeros((len(batch), width), dtype=torch.long)
    answers = torch.zeros((len(batch), width), dtype=torch.bool)
    for row, item in enumerate(batch):
        ids[row, : len(item.ids)] = torch.tensor(item.ids)
        answers[row, item.start : len(item.ids)] = True
    shared = min(first_difference(ids), min(item.start for item in batch) - 1)
    causal_lm = model.get_base_model()
    cache = causal_lm.model(input_ids=ids[:1, :shared], use_cache=True).past_key_values
    cache.batch_repeat_interleave(len(batch))
    hidden = causal_lm.model(
        input_ids=ids[:, shared:-1], past_key_values=cache, use_cache=True
    ).last_hidden_state
    before_answers = hidden[answers[:, shared + 1 :]]
    return vocabulary.loss(before_answers, causal_lm.lm_head.weight, ids[answers])


def first_difference(ids: torch.Tensor) -> int:
    """The first column of `ids`, (batch, width), whose tokens are not all the same."""
    differs = (ids != ids[0]).any(dim=0).nonzero()
    return int(differs[0]) if len(differs) else ids.shape[1]


class MasterWeights:
    """Float32 copies of bfloat16 weights, which small updates would otherwise round away."""

    def __init__(self, weights: list[torch.nn.Parameter]) -> None:
        self.weights = weights
        self.masters = [torch.nn.Parameter(w.detach().float().clone()) for w in weights]

    def take_gradients(self) -> None:
        for weight, master in zip(self.weights, self.masters, strict=True):
            if weight.grad is not None:
                master.grad = weight.grad.float()
                weight.grad = None

    @torch.no_grad()
    def give_back(self) -> None:
        for weight, master in zip(self.weights, self.masters, strict=True):
            weight.copy_(master)


def learning_rate(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then half a cosine down to zero."""
    warmup = max(1, round(recipe.steps * WARMUP_SHARE))
    if step < warmup:
        return recipe.rate * (step + 1) / warmup
    return recipe.rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (recipe.steps - warmup)))


def train(
    model_dir: Path, data: Path, recipe: Recipe, report: Callable[[str], None]
) -> tuple[PeftModel, float, int]:
    """The trained adapter on its base, the mean loss of the last tenth, the number of examples."""
    torch.manual_seed(recipe.seed)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    base = AutoModelForCausalLM.from_pretrained(
        model_dir, dtype=torch.bfloat16, attn_implementation="eager"
    )
    lora = LoraConfig(
        r=RANK, lora_alpha=2 * RANK, target_modules=list(TARGETS), task_type="CAUSAL_LM"
    )
    model = get_peft_model(base, lora, autocast_adapter_dtype=False)
    model.train()
    masters = MasterWeights([w for w in model.parameters() if w.requires_grad])
    optimizer = torch.optim.AdamW(masters.masters, lr=recipe.rate, weight_decay=0.0)
    encoded = encode(tokenizer, read_examples(data))
    vocabulary = AnswerVocabulary(encoded, len(tokenizer))
    stream = batches(encoded, recipe.batch, random.Random(recipe.seed))
    losses: list[float] = []
    started = time.perf_counter()
    for step in range(recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, recipe)
        loss = answer_loss(model, next(stream), vocabulary)
        torch.autograd.backward(loss)
        masters.take_gradients()
        torch.nn.utils.clip_grad_norm_(masters.masters, 1.0)
        optimizer.step()
        masters.give_back()
        losses.append(loss.item())
        if (step + 1) % 20 == 0 or step + 1 == recipe.steps:
            recent = sum(losses[-20:]) / len(losses[-20:])
            spent = time.perf_counter() - started
            report(f"step {step + 1}/{recipe.steps}  loss {recent:.4f}  {spent:.0f} s")
    tail = losses[-max(1, recipe.steps // 10) :]
    return model, sum(tail) / len(tail), len(encoded)


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Write the adapter in bfloat16, with a config that names the base and no local path."""
    model.save_pretrained(folder)
    weights = folder / "adapter_model.safetensors"
    tensors = {name: value.to(torch.bfloat16) for name, value in load_file(weights).items()}
    save_file(tensors, weights, metadata={"format": "pt"})
    config_path = folder / "adapter_config.json"
    config = json.loads(config_path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = BASE_NAME
    config["target_modules"] = sorted(config["target_modules"])
    config_path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_card(
    folder: Path, name: str, recipe: Recipe, loss: float, examples: int, seconds: float
) -> None:
    """A short README beside the adapter, in place of the template that peft writes."""
    (folder / "README.md").write_text(
        f"""# Adapter `{name}` on {BASE_NAME}

LoRA of rank {RANK} (alpha {2 * RANK}) on {", ".join(TARGETS)}, stored in bfloat16.

Recipe:

```
python -m experts.demo.make_data --out DATA --seed 0 --without routers/demo/prompts
python -m experts.demo.train_adapters --model BASE --data DATA --out experts/demo/adapters \\
    --only {name}
```

- Data: {examples} examples that `experts/demo/make_data.py` writes from its own templates.
- Training: {recipe.steps} steps of {recipe.batch} examples, AdamW, peak learning rate
  {recipe.rate:g}, cosine, seed {recipe.seed}; loss on the answers only; the model's own chat
  template with its default system message.
- Time: {seconds / 60:.1f} minutes of CPU time on one thread. Final training loss {loss:.3f}.
""",
        encoding="utf-8",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the demo LoRA adapters.")
    parser.add_argument("--model", type=Path, required=True, help="folder of the base model")
    parser.add_argument("--data", type=Path, required=True, help="folder make_data wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder for the adapters")
    parser.add_argument("--only", choices=sorted(RECIPES), help="train this one alone")
    parser.add_argument("--steps", type=int, help="instead of the recipe's number of steps")
    parser.add_argument("--rate", type=float, help="instead of the recipe's learning rate")
    parser.add_argument("--batch", type=int, help="instead of the recipe's batch size")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for name in [args.only] if args.only else sorted(RECIPES):
        asked = RECIPES[name]
        recipe = Recipe(
            steps=args.steps or asked.steps,
            batch=args.batch or asked.batch,
            rate=args.rate or asked.rate,
            seed=asked.seed,
        )
        started = time.process_time()
        model, loss, examples = train(
            args.model,
            args.data / f"{name}.train.jsonl",
            recipe,
            partial(print, f"{name}:", flush=True),
        )
        folder = args.out / name
        save_adapter(model, folder)
        write_card(folder, name, recipe, loss, examples, time.process_time() - started)


if __name__ == "__main__":
    main()
