"""The training loop: AdamW over a few named parameters, resumable to the very same result."""

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from experts.errors import ArtefactError

_REPORT_EVERY = 20
_KEEP_EVERY_S = 60.0

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a part is trained. `batch` counts examples of a micro-batch, `accumulate` micro-batches
    of a step; `rate` is the peak of a linear warm-up followed by half a cosine."""

    steps: int
    rate: float
    batch: int = 8
    accumulate: int = 1
    warmup: float = 0.06
    clip: float = 1.0
    seed: int = 0

    def rate_at(self, step: int) -> float:
        warmup = max(1, round(self.steps * self.warmup))
        if step < warmup:
            return self.rate * (step + 1) / warmup
        done = (step - warmup) / max(1, self.steps - warmup)
        return self.rate * 0.5 * (1 + math.cos(math.pi * done))


def optimise(
    parameters: Mapping[str, nn.Parameter],
    loss_of: Callable[[int], Tensor],
    recipe: Recipe,
    *,
    keep: Path | None = None,
    report: Report = lambda line: None,
) -> list[float]:
    """Minimise `loss_of(number of the micro-batch)`; returns the loss of every step.

    With `keep` the state is written to that folder about once a minute and at the end, and a run
    that finds its state there goes on from it.

    Raises:
        ArtefactError: the kept state belongs to another recipe, or is damaged.
    """
    optimiser = torch.optim.AdamW(parameters.values(), lr=recipe.rate, weight_decay=0.0)
    losses = _resume(keep, parameters, optimiser, recipe) if keep is not None else []
    started = kept_at = time.monotonic()
    for step in range(len(losses), recipe.steps):
        for group in optimiser.param_groups:
            group["lr"] = recipe.rate_at(step)
        total = 0.0
        for micro in range(recipe.accumulate):
            loss = loss_of(step * recipe.accumulate + micro) / recipe.accumulate
            torch.autograd.backward(loss)
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(list(parameters.values()), recipe.clip)
        optimiser.step()
        optimiser.zero_grad()
        losses.append(total)
        last = step + 1 == recipe.steps
        if (step + 1) % _REPORT_EVERY == 0 or last:
            recent = losses[-_REPORT_EVERY:]
            mean = sum(recent) / len(recent)
            spent = time.monotonic() - started
            report(f"step {step + 1}/{recipe.steps}  loss {mean:.4f}  {spent:.0f} s")
        if keep is not None and (last or time.monotonic() - kept_at > _KEEP_EVERY_S):
            _keep(keep, parameters, optimiser, recipe, losses)
            kept_at = time.monotonic()
    return losses


def _keep(
    folder: Path,
    parameters: Mapping[str, nn.Parameter],
    optimiser: torch.optim.Optimizer,
    recipe: Recipe,
    losses: list[float],
) -> None:
    """Write the state; the losses come last, so that what they count is there."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        tensors[f"value.{name}"] = parameter.detach().contiguous()
        for key, value in optimiser.state[parameter].items():
            tensors[f"{key}.{name}"] = value.contiguous()
    progress = {"recipe": json.dumps(asdict(recipe)), "losses": json.dumps(losses)}
    temporary = folder / "state.partial"
    save_file(tensors, temporary, metadata=progress)
    os.replace(temporary, folder / "state.safetensors")


def _resume(
    folder: Path,
    parameters: Mapping[str, nn.Parameter],
    optimiser: torch.optim.Optimizer,
    recipe: Recipe,
) -> list[float]:
    path = folder / "state.safetensors"
    if not path.exists():
        return []
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            told: dict[str, str] = file.metadata() or {}
        tensors = load_file(path)
        if json.loads(told["recipe"]) != asdict(recipe):
            raise ArtefactError(
                f"{folder} holds a training of another recipe: go on with that, or use a new folder"
            )
        for name, parameter in parameters.items():
            parameter.data.copy_(tensors[f"value.{name}"])
            optimiser.state[parameter] = {
                key: tensors[f"{key}.{name}"] for key in ("step", "exp_avg", "exp_avg_sq")
            }
        losses: list[float] = json.loads(told["losses"])
    except (SafetensorError, OSError, KeyError, ValueError, RuntimeError) as error:
        raise ArtefactError(
            f"{path} is damaged or of another training ({error}): delete it to begin anew"
        ) from error
    return losses
