"""Stage 1: one LoRA expert a domain, by hard routing.

Hard routing sends every token of an example to the expert of its domain, so no expert ever sees
another's gradient: it equals training each adapter alone, which is what is done here. An expert is
saved as a plain LoRA adapter in peft's format, and is skipped when it is there already.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file

from experts.engines.embedded.adapters import Adapter, read_adapter
from experts.errors import SetupError
from experts.mixer.mixture import Mixture, compose
from experts.mixer.routed import routed_linears
from experts.mixer.spec import ATTENTION, GateSpec
from experts.mixer.training.data import Batches, Encoded
from experts.mixer.training.loop import Recipe, Report, optimise
from experts.mixer.training.tasks import Attached, Base, answer_loss, pad


def train_experts(
    base: Base,
    domains: Mapping[str, Sequence[Encoded]],
    recipe: Recipe,
    out: Path,
    *,
    rank: int = 8,
    alpha: float = 16.0,
    targets: Sequence[str] = ATTENTION,
    report: Report = lambda line: None,
) -> dict[str, Path]:
    """Train the expert of every domain that has none in `out` yet; returns their folders."""
    folders = {}
    for domain, encoded in domains.items():
        folder = folders[domain] = out / folder_name(domain)
        if (folder / "adapter_config.json").exists():
            report(f"{domain}: found in {folder}")
            continue
        torch.manual_seed(recipe.seed)
        fresh = fresh_adapter(base, domain, rank, alpha, targets, recipe.seed)
        adapter, losses = train_expert(
            base,
            fresh,
            encoded,
            recipe,
            keep=out / ".state" / folder.name,
            report=lambda line, domain=domain: report(f"{domain}: {line}"),  # type: ignore[misc]
        )
        tail = losses[-max(1, len(losses) // 10) :]
        told = {"recipe": asdict(recipe), "loss": sum(tail) / len(tail), "examples": len(encoded)}
        write_adapter(adapter, folder, alpha, base.folder.name, targets, told)
    return folders


def train_expert(
    base: Base,
    adapter: Adapter,
    encoded: Sequence[Encoded],
    recipe: Recipe,
    *,
    keep: Path | None = None,
    report: Report = lambda line: None,
) -> tuple[Adapter, list[float]]:
    """One adapter trained further on its own, and the losses of the steps."""
    targets = sorted({module.rpartition(".")[2] for module in adapter.matrices})
    mixture = compose([adapter], gate=GateSpec(kind="uniform"), targets=targets)
    batches = Batches(encoded, recipe.batch, recipe.seed)
    with Attached(base, mixture) as attached:
        parameters = attached.unfreeze_experts()
        losses = optimise(
            parameters,
            lambda number: answer_loss(base.model, pad(batches[number], base.model.device)),
            recipe,
            keep=keep,
            report=report,
        )
        return experts_of(attached.mixture, base)[0], losses


def experts_of(mixture: Mixture, base: Base) -> list[Adapter]:
    """The adapters as they are in the attached model now."""
    linears = routed_linears(base.model)
    found: list[Adapter] = []
    starts = dict.fromkeys(linears, 0)
    for adapter in mixture.adapters:
        matrices = {}
        for module in adapter.matrices:
            start = starts[module]
            starts[module] = end = start + adapter.rank
            a, b = linears[module].a[start:end], linears[module].b[:, start:end]
            matrices[module] = (a.detach().cpu().clone(), b.detach().cpu().clone())
        found.append(Adapter(adapter.name, adapter.rank, adapter.scale, matrices))
    return found


def fresh_adapter(
    base: Base, name: str, rank: int, alpha: float, targets: Sequence[str], seed: int
) -> Adapter:
    """An adapter that does nothing yet, on every linear whose name ends in a target.

    Raises:
        SetupError: the base has no such linear.
    """
    generator = torch.Generator().manual_seed(seed)
    matrices = {}
    for module, linear in base.model.named_modules():
        if module.rpartition(".")[2] in targets and hasattr(linear, "in_features"):
            bound = linear.in_features**-0.5
            a = (torch.rand(rank, linear.in_features, generator=generator) * 2 - 1) * bound
            matrices[module] = (a, torch.zeros(linear.out_features, rank))
    if not matrices:
        raise SetupError(f"the base has no linear named {' or '.join(targets)}")
    return Adapter(name, rank, alpha / rank, matrices)


def write_adapter(
    adapter: Adapter,
    folder: Path,
    alpha: float,
    base_name: str,
    targets: Sequence[str],
    told: Mapping[str, object],
) -> None:
    """A plain LoRA adapter in peft's format. Its configuration, by which it counts as complete, is
    written last."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for module, (a, b) in adapter.matrices.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = a.to(torch.bfloat16)
        tensors[f"base_model.model.{module}.lora_B.weight"] = b.to(torch.bfloat16)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "training.json").write_text(json.dumps(told, indent=2) + "\n")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": adapter.rank,
        "lora_alpha": alpha,
        "target_modules": sorted(targets),
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")


def folder_name(domain: str) -> str:
    """A domain's name as that of a folder."""
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in domain).strip(".") or "domain"


def read_experts(folders: Mapping[str, Path]) -> list[Adapter]:
    """The adapters in these folders, by name."""
    return [read_adapter(name, folder) for name, folder in folders.items()]
