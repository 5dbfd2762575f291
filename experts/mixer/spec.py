"""`MixerSpec`: what a mixer is, but for its tensors."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from experts.mixer.kinds import GateKind

Scope = Literal["projection", "layer"]
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")

# Projections that read the same input: with scope `layer` they share one gate.
_SAME_INPUT = (
    ("qkv", frozenset({"q_proj", "k_proj", "v_proj"})),
    ("gate_up", frozenset({"gate_proj", "up_proj"})),
)

ExpertName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$")]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class GateSpec(_Frozen):
    """How the local gate reads a token, and how many experts it keeps.

    With `top_k` and `top_p` both absent every expert counts (dense). `temperature` is Arrow's.
    """

    kind: GateKind = "linear"
    scope: Scope = "projection"
    top_k: int | None = Field(default=None, ge=1, le=256)
    top_p: float | None = Field(default=None, gt=0, le=1)
    temperature: float = Field(default=1.0, gt=0)

    @model_validator(mode="after")
    def _uniform_is_dense(self) -> "GateSpec":
        if self.kind == "uniform" and (self.top_k or self.top_p):
            raise ValueError("a uniform gate has no best experts: leave out top_k and top_p")
        return self


class GlobalSpec(_Frozen):
    """GLIDER's weight of the request's prior: `gamma` where some expert's instruction is nearer
    than `threshold` (cosine), plus `beta` always."""

    gamma: float = Field(default=100.0, ge=0, le=10_000)
    threshold: float = Field(default=0.8, ge=-1, le=1)
    beta: float = Field(default=3.0, ge=0, le=10_000)


class MemberSpec(_Frozen):
    """One expert of the mixture. A closed one keeps its place but is never chosen."""

    name: ExpertName
    rank: int = Field(ge=1)
    scale: float
    instruction: str = Field(default="", max_length=2000)
    closed: bool = False


class MixerSpec(_Frozen):
    """Members in the order of the gates' rows, and the targets: names that routed linears end in.

    `base` is the fingerprint of the base's geometry, `encoder` the id of the encoder whose
    vectors of the instructions the checkpoint holds.
    """

    members: tuple[MemberSpec, ...] = Field(min_length=1, max_length=256)
    targets: tuple[str, ...] = Field(default=ATTENTION, min_length=1)
    gate: GateSpec = GateSpec()
    prior: GlobalSpec | None = None
    encoder: str | None = None
    base: str = ""
    base_name: str = ""

    @model_validator(mode="after")
    def _members_fit(self) -> "MixerSpec":
        names = self.names
        if len(set(names)) != len(names):
            raise ValueError("two members have the same name")
        if all(member.closed for member in self.members):
            raise ValueError("every member is closed: leave one open")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(member.name for member in self.members)


def gate_name(module: str, scope: Scope) -> str:
    """The gate that a routed module uses."""
    if scope == "projection":
        return module
    parent, _, leaf = module.rpartition(".")
    for group, leaves in _SAME_INPUT:
        if leaf in leaves:
            return f"{parent}.{group}"
    return module
