"""Greedy answers of an attached model, and whether they are right."""

import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch

from experts.mixer.mixture import Mixture
from experts.mixer.training.data import Example, prompt_ids
from experts.mixer.training.tasks import Attached, Base

_BATCH = 16
Prior = Callable[[Example], Sequence[float]]


def grade(
    base: Base,
    mixture: Mixture | None,
    tests: Sequence[Example],
    *,
    only: Callable[[Example], int] | None = None,
    prior: Prior | None = None,
    most_tokens: int = 24,
) -> list[int]:
    """1 or 0 for every test, in order: whether the greedy answer equals the reference.

    `only` names the one expert that may answer an example (hard routing, an oracle); `prior` is the
    request's view. Without a mixture the bare base answers.
    """
    if mixture is None:
        return _grade(base, None, tests, only, prior, most_tokens)
    with Attached(base, mixture) as attached:
        return _grade(base, attached, tests, only, prior, most_tokens)


def normal(text: str) -> str:
    """An answer as it is compared: its first line, without case, quotes, spaces, final point."""
    lines = text.strip().splitlines()
    line = lines[0] if lines else ""
    return re.sub(r"\s+", " ", line).strip(" \"'.").lower()


@torch.no_grad()
def _grade(
    base: Base,
    attached: Attached | None,
    tests: Sequence[Example],
    only: Callable[[Example], int] | None,
    prior: Prior | None,
    most_tokens: int,
) -> list[int]:
    order = sorted(range(len(tests)), key=lambda number: len(tests[number].prompt))
    right = [0] * len(tests)
    for start in range(0, len(order), _BATCH):
        numbers = order[start : start + _BATCH]
        batch = [tests[number] for number in numbers]
        view = nullcontext() if attached is None else _request(attached, batch, only, prior)
        with view:
            said = _generate(base, [example.prompt for example in batch], most_tokens)
        for number, example, text in zip(numbers, batch, said, strict=True):
            right[number] = int(normal(text) == normal(example.answer))
    return right


def _request(
    attached: Attached,
    batch: Sequence[Example],
    only: Callable[[Example], int] | None,
    prior: Prior | None,
) -> Any:
    experts = attached.routing.experts
    mask = None
    if only is not None:
        mask = torch.zeros(len(batch), experts, dtype=torch.bool)
        for row, example in enumerate(batch):
            mask[row, only(example)] = True
    rows = None if prior is None else torch.tensor([list(prior(example)) for example in batch])
    return attached.routing.request(rows, mask)


def _generate(base: Base, prompts: Sequence[str], most_tokens: int) -> list[str]:
    """Padding stands on the left and is masked."""
    tokenizer = base.tokenizer
    encoded = [prompt_ids(tokenizer, prompt) for prompt in prompts]
    width = max(map(len, encoded))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in encoded])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in encoded])
    out = base.model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=most_tokens,
        do_sample=False,
        pad_token_id=pad,
        eos_token_id=tokenizer.eos_token_id,
    )
    texts: list[str] = tokenizer.batch_decode(out[:, width:], skip_special_tokens=True)
    return texts
