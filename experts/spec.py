"""`ExpertSpec`: everything that is known of an expert before it has answered anything."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Kind = Literal["model", "lora", "prompt", "remote", "null"]
Capability = Literal["tools", "json", "vision", "logprobs", "n"]
ExpertId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$")]

# What a kind must say of itself, and what has no meaning for it.
_REQUIRED: dict[Kind, tuple[str, ...]] = {
    "model": ("engine",),
    "lora": ("base", "adapter"),
    "prompt": ("base", "system_prompt"),
    "remote": ("engine",),
    "null": ("text",),
}
_ONLY_FOR: dict[str, tuple[Kind, ...]] = {
    "base": ("lora", "prompt"),
    "adapter": ("lora",),
    "system_prompt": ("prompt",),
    "text": ("null",),
    "served_name": ("remote", "prompt"),
}


class ExpertSpec(BaseModel):
    """Something that answers.

    `params_b` is in billions of parameters, prices are in USD per million tokens, `context_length`
    is in tokens. A prompt or adapter without an `engine` of its own is served by its base's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: ExpertId
    kind: Kind
    engine: str | None = None
    base: ExpertId | None = None
    params_b: float | None = Field(default=None, ge=0)
    context_length: int = Field(default=2048, ge=1)
    capabilities: frozenset[Capability] = frozenset()
    price_in: float = Field(default=0.0, ge=0)
    price_out: float = Field(default=0.0, ge=0)
    instruction: str = Field(default="", max_length=2000)
    adapter: Path | None = None
    system_prompt: str | None = Field(default=None, min_length=1, max_length=20_000)
    text: str | None = Field(default=None, min_length=1, max_length=20_000)
    served_name: str | None = Field(default=None, min_length=1, max_length=256)

    @model_validator(mode="after")
    def _fields_fit_kind(self) -> "ExpertSpec":
        for field in _REQUIRED[self.kind]:
            if getattr(self, field) is None:
                raise ValueError(f"an expert of kind '{self.kind}' needs '{field}'")
        for field, kinds in _ONLY_FOR.items():
            if getattr(self, field) is not None and self.kind not in kinds:
                raise ValueError(f"'{field}' has no meaning for an expert of kind '{self.kind}'")
        return self

    @property
    def upstream_name(self) -> str:
        """The model name under which the expert's engine serves it."""
        return self.served_name or self.id
