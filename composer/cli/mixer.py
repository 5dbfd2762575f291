"""`coe mixer`: train a mixture of LoRA adapters, and show what is in one."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from composer.cli.options import announce, load

if TYPE_CHECKING:
    from experts.mixer.training.job import Embedder

_BARS = " .:-=+*#%@"


@click.group("mixer")
def command() -> None:
    """Train and show mixers: LoRA adapters on one base, mixed token by token.

    \b
    Example:
      coe mixer train --base models/base --data tasks.jsonl --out my-mixer
      coe mixer show my-mixer
    """


@command.command("train")
@click.option("--base", required=True, type=click.Path(path_type=Path), help="Folder of the base.")
@click.option(
    "--data",
    "files",
    required=True,
    multiple=True,
    type=click.Path(path_type=Path),
    help="JSONL of prompt, answer and category; may be given many times.",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The mixer's folder.")
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    metavar="NAME=DIR",
    help="An adapter to take as it is; without any, one is trained for every category.",
)
@click.option(
    "--instruction",
    "instructions",
    multiple=True,
    metavar="NAME=TEXT",
    help="What an expert is good at, in a sentence.",
)
@click.option(
    "--targets",
    default="q_proj,k_proj,v_proj,o_proj",
    show_default=True,
    help="Names that the routed linears end in.",
)
@click.option(
    "--gate",
    "kind",
    type=click.Choice(("linear", "vector", "arrow", "uniform")),
    default="linear",
    show_default=True,
    help="LoRA-Mixer's router, GLIDER's gate vectors, Arrow, or none.",
)
@click.option(
    "--scope",
    type=click.Choice(("projection", "layer")),
    default="projection",
    show_default=True,
    help="A gate for every projection, or one for those that read the same input.",
)
@click.option("--top-k", type=click.IntRange(1, 256), default=2, show_default=True)
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), help="Instead of --top-k.")
@click.option("--rank", type=click.IntRange(1, 1024), default=8, show_default=True)
@click.option("--expert-steps", type=click.IntRange(1), default=300, show_default=True)
@click.option("--expert-rate", type=float, default=1e-3, show_default=True)
@click.option("--router-steps", type=click.IntRange(1), default=250, show_default=True)
@click.option("--router-rate", type=float, default=2e-3, show_default=True)
@click.option("--router-examples", type=click.IntRange(2), default=2000, show_default=True)
@click.option("--batch", type=click.IntRange(1, 1024), default=8, show_default=True)
@click.option("--accumulate", type=click.IntRange(1, 1024), default=1, show_default=True)
@click.option("--balance", type=float, default=1e-2, show_default=True, help="Weight of the load.")
@click.option(
    "--entropy", type=float, default=1e-3, show_default=True, help="Weight of the entropy term."
)
@click.option(
    "--entropy-sign",
    type=click.Choice(("described", "printed")),
    default="described",
    show_default=True,
    help="The paper describes sharper routing, but prints the sign that flattens it.",
)
@click.option("--joint", type=float, metavar="BETA", help="Train the experts too, held by BETA.")
@click.option(
    "--prior", is_flag=True, help="Also a view of each request, by the experts' instructions."
)
@click.option("--gamma", type=float, default=100.0, show_default=True, help="Its weight when sure.")
@click.option("--threshold", type=float, default=0.8, show_default=True, help="When it is sure.")
@click.option("--beta", type=float, default=3.0, show_default=True, help="Its weight always.")
@click.option("--max-tokens", type=click.IntRange(16, 32768), default=512, show_default=True)
@click.option(
    "--dtype", type=click.Choice(("bfloat16", "float32")), default="bfloat16", show_default=True
)
@click.option("--threads", type=click.IntRange(1, 256), help="Processor threads to use.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def train(
    base: Path,
    files: tuple[Path, ...],
    out: Path,
    adapters: tuple[str, ...],
    instructions: tuple[str, ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Train a mixer. A run that was cut off goes on where it was, if it is started again alike.

    Stage 1 trains one adapter for every category, unless adapters are given; stage 2 trains the
    gates on a balanced sample of all categories, with the adapters frozen.

    \b
    Example:
      coe mixer train --base models/base --data tasks.jsonl --out my-mixer \\
        --adapter maths=adapters/maths --adapter sql=adapters/sql --router-steps 200
    """
    from experts.mixer.losses import RoutingLoss
    from experts.mixer.spec import GateSpec, GlobalSpec
    from experts.mixer.training.job import MixerJob, train_mixer
    from experts.mixer.training.loop import Recipe

    chosen = _gate(options["kind"], options["top_k"], options["top_p"])
    shared = {key: options[key] for key in ("batch", "accumulate", "seed")}
    job = MixerJob(
        base=base,
        data=files,
        out=out,
        adapters={name: Path(value) for name, value in _pairs("--adapter", adapters).items()},
        instructions=_pairs("--instruction", instructions),
        targets=tuple(name.strip() for name in options["targets"].split(",") if name.strip()),
        gate=GateSpec(kind=options["kind"], scope=options["scope"], **chosen),
        experts=Recipe(steps=options["expert_steps"], rate=options["expert_rate"], **shared),
        router=Recipe(steps=options["router_steps"], rate=options["router_rate"], **shared),
        routing=RoutingLoss(
            balance=options["balance"],
            entropy=options["entropy"],
            sign=1 if options["entropy_sign"] == "described" else -1,
        ),
        preserve=options["joint"],
        prior=GlobalSpec(**{key: options[key] for key in ("gamma", "threshold", "beta")})
        if options["prior"]
        else None,
        router_examples=options["router_examples"],
        rank=options["rank"],
        alpha=2.0 * options["rank"],
        max_tokens=options["max_tokens"],
        dtype=options["dtype"],
        threads=options["threads"],
    )
    embedder = _embedder() if job.prior is not None else None
    trained = train_mixer(job, lambda line: click.echo(line, err=True), embedder)
    for note in trained.notes:
        click.echo(f"left out {note}", err=True)
    if as_json:
        told = {"folder": str(trained.folder), "version": trained.version, **trained.findings}
        announce(json.dumps(told, indent=2))
    else:
        announce(f"mixer {trained.version} in {trained.folder}")
        _print(out)


@command.command("show")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--map", "heat_map", is_flag=True, help="Also each linear's use of the experts.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def show(folder: Path, heat_map: bool, as_json: bool) -> None:
    """Explain a mixer: its experts, its gates, and what the routing does.

    \b
    Example:
      coe mixer show my-mixer --map
    """
    from experts.mixer.description import mixer_version, read_spec

    spec, training = read_spec(folder)
    if as_json:
        told = {"version": mixer_version(folder), **spec.model_dump(mode="json")}
        announce(json.dumps({**told, "training": training}, indent=2))
        return
    _print(folder)
    if heat_map:
        _print_map(training)


@command.command("export")
@click.argument("mixer", type=click.Path(path_type=Path))
@click.option("--base", required=True, type=click.Path(path_type=Path), help="Folder of its base.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="A new folder.")
@click.option("--copy", is_flag=True, help="Copy the base's files instead of linking to them.")
def export(mixer: Path, base: Path, out: Path, copy: bool) -> None:
    """Write a mixer as a checkpoint that vLLM serves with Composer's plug-in.

    \b
    Example:
      coe mixer export my-mixer --base models/base --out served
      python -m vllm.entrypoints.openai.api_server --model served --served-model-name my-mixer
    """
    from experts.mixer.vllm_plugin.checkpoint import write_vllm_checkpoint

    version = write_vllm_checkpoint(mixer, base, out, copy=copy)
    announce(f"mixer {version} in {out}")


def _embedder() -> "Embedder":
    """The encoder that the gateway uses too, so that both speak of the same vectors."""
    from experts.mixer.training.job import Embedder
    from routers.encoders import load_encoder

    config = load(None)
    encoder = load_encoder(config.encoder.backend, config.cache_dir)
    return Embedder(encoder.id, lambda texts: encoder.encode(list(texts)))


def _gate(kind: str, top_k: int, top_p: float | None) -> dict[str, Any]:
    if kind == "uniform":
        return {}
    return {"top_p": top_p} if top_p is not None else {"top_k": top_k}


def _pairs(option: str, values: tuple[str, ...]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for value in values:
        name, equals, rest = value.partition("=")
        if not equals or not name or not rest or name in pairs:
            raise click.BadParameter(f"{value}: a new NAME=... is needed", param_hint=option)
        pairs[name] = rest
    return pairs


def _print(folder: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from experts.mixer.description import mixer_version, read_spec

    spec, training = read_spec(folder)
    gate = spec.gate
    kept = f"top {gate.top_k}" if gate.top_k else f"top-p {gate.top_p}" if gate.top_p else "all"
    announce(f"version  {mixer_version(folder)}, on {spec.base_name}")
    announce(f"gate     {gate.kind}, one for every {gate.scope}; {kept} experts of a token")
    announce(f"routed   {', '.join(spec.targets)}")
    if training:
        announce(f"entropy  {training['entropy']:.3f} nats; load {training['load_ratio']:.2f} to 1")
    table = Table()
    for heading in ("expert", "rank", "scale", "load", *training.get("by_domain", {})):
        table.add_column(heading, justify="left" if heading == "expert" else "right")
    for number, member in enumerate(spec.members):
        shares = [training["load"][number]] if training else []
        shares += [share[number] for share in training.get("by_domain", {}).values()]
        cells = [f"{share:.1%}" for share in shares] or ["-"]
        name = f"{member.name} (closed)" if member.closed else member.name
        table.add_row(name, str(member.rank), f"{member.scale:g}", *cells)
    Console().print(table)
    for member in spec.members:
        if member.instruction:
            announce(f"{member.name}: {member.instruction}")


def _print_map(training: dict[str, Any]) -> None:
    """A line for every routed linear, a mark for every expert: the darker, the more weight."""
    for module, shares in training.get("by_module", {}).items():
        marks = "".join(_BARS[min(9, int(share * 10))] for share in shares)
        announce(f"|{marks}| {module}")
