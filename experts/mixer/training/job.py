"""From adapters or labelled data to the folder of a mixer, in one resumable run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from experts.errors import DataError
from experts.mixer.checkpoint import save_mixture
from experts.mixer.instructions import write_instructions
from experts.mixer.losses import RoutingLoss
from experts.mixer.mixture import Mixture, compose
from experts.mixer.spec import ATTENTION, GateSpec, GlobalSpec
from experts.mixer.training.data import (
    Example,
    balanced_sample,
    by_domain,
    check_learnable,
    check_mixed,
    encode,
    prompt_ids,
    read_examples,
)
from experts.mixer.training.experts import read_experts, train_experts
from experts.mixer.training.findings import observe
from experts.mixer.training.loop import Recipe, Report
from experts.mixer.training.router import RouterTraining, train_router, train_vectors
from experts.mixer.training.tasks import Base, load_base

_SHOWN_PROBLEMS = 5
_PROMPT_TOKENS = 1500
_ANSWER_TOKENS = 60


@dataclass(frozen=True, slots=True)
class MixerJob:
    """What to train. With `adapters` (name -> folder) stage 1 is left out and they are taken as
    they are; else an expert of `rank` is trained for every category of the data."""

    base: Path
    data: tuple[Path, ...]
    out: Path
    adapters: Mapping[str, Path] = field(default_factory=dict)
    instructions: Mapping[str, str] = field(default_factory=dict)
    targets: tuple[str, ...] = ATTENTION
    gate: GateSpec = field(default_factory=lambda: GateSpec(top_k=2))
    prior: GlobalSpec | None = None
    experts: Recipe = field(default_factory=lambda: Recipe(steps=300, rate=1e-3))
    router: Recipe = field(default_factory=lambda: Recipe(steps=250, rate=2e-3))
    routing: RoutingLoss | None = field(default_factory=RoutingLoss)
    preserve: float | None = None
    router_examples: int = 2000
    rank: int = 8
    alpha: float = 16.0
    max_tokens: int = 512
    dtype: str = "bfloat16"
    threads: int | None = None


@dataclass(frozen=True, slots=True)
class Trained:
    """The mixer's folder, its version, and what its routing turned out to do."""

    folder: Path
    version: str
    findings: dict[str, object]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Embedder:
    """An encoder handed in from above: its id, and texts to unit vectors (texts, width)."""

    id: str
    encode: Callable[[Sequence[str]], NDArray[np.float32]]


def train_mixer(
    job: MixerJob, report: Report = lambda line: None, embedder: Embedder | None = None
) -> Trained:
    """Run the stages that are not done yet; state and experts are kept in the folder `job.out`.

    With a prior, experts without an instruction get one that the base writes from three examples,
    and `embedder` embeds them all.

    Raises:
        DataError: the data can't teach what is asked for.
        SetupError: a base or an adapter is unfit.
    """
    examples, problems = read_examples(job.data)
    domains = by_domain(examples)
    if not job.adapters:
        check_learnable(domains)
    if job.gate.kind in ("linear", "vector"):
        check_mixed(examples, list(job.adapters or domains))
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    base = load_base(job.base, job.dtype)
    encoded = {name: encode(base.tokenizer, rows, job.max_tokens) for name, rows in domains.items()}
    folders = dict(job.adapters) or train_experts(
        base,
        encoded,
        job.experts,
        job.out / "experts",
        rank=job.rank,
        alpha=job.alpha,
        targets=job.targets,
        report=report,
    )
    instructions = job.instructions
    if job.prior is not None:
        of_experts = {name: domains[name] for name in folders if name in domains}
        instructions = write_instructions(_asking(base), of_experts, job.instructions)
    mixture = compose(
        read_experts(folders),
        gate=job.gate,
        targets=job.targets,
        instructions=instructions,
        prior=job.prior,
    )
    if job.prior is not None and embedder is not None:
        mixture = _with_embedded(mixture, embedder)
    mixture = _with_trained_gates(job, base, mixture, domains, report)
    findings = observe(base, mixture, encoded).as_json()
    version = save_mixture(mixture, job.out, job.base, findings)
    return Trained(job.out, version, findings, tuple(problems[:_SHOWN_PROBLEMS]))


def _asking(base: Base) -> Callable[[str], str]:
    """Has the bare base answer a prompt."""

    def ask(prompt: str) -> str:
        ids = torch.tensor([prompt_ids(base.tokenizer, prompt)[-_PROMPT_TOKENS:]])
        out = base.model.generate(
            input_ids=ids.to(base.model.device),
            max_new_tokens=_ANSWER_TOKENS,
            do_sample=False,
            pad_token_id=base.tokenizer.eos_token_id,
        )
        text: str = base.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        return text

    return ask


def _with_embedded(mixture: Mixture, embedder: Embedder) -> Mixture:
    texts = [member.instruction or member.name for member in mixture.spec.members]
    vectors = torch.from_numpy(np.asarray(embedder.encode(texts), np.float32))
    spec = mixture.spec.model_copy(update={"encoder": embedder.id})
    return replace(mixture, spec=spec, instructions=vectors)


def _with_trained_gates(
    job: MixerJob,
    base: Base,
    mixture: Mixture,
    domains: Mapping[str, Sequence[Example]],
    report: Report,
) -> Mixture:
    state = job.out / ".state" / f"{job.gate.kind}-{job.gate.scope}"
    if job.gate.kind == "linear":
        sample = balanced_sample(domains, job.router_examples, job.router.seed)
        training = RouterTraining(job.router, job.routing, job.preserve)
        mixture, _ = train_router(
            base,
            mixture,
            encode(base.tokenizer, sample, job.max_tokens),
            training,
            keep=state,
            report=lambda line: report(f"router: {line}"),
        )
    elif job.gate.kind == "vector":
        missing = sorted(set(mixture.spec.names) - set(domains))
        if missing:
            raise DataError(
                f"gate vectors are trained on each expert's own data, and there is no category "
                f"{', '.join(missing)}: name the adapters as the categories, or use another gate"
            )
        encoded = {
            name: encode(base.tokenizer, domains[name], job.max_tokens)
            for name in mixture.spec.names
        }
        mixture = train_vectors(base, mixture, encoded, job.router, keep=state, report=report)
    return mixture
