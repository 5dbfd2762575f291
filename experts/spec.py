"""`ExpertSpec`: everything that is known of an expert before it has answered anything."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    AnyHttpUrl,
    BaseModel,
    ConfigDict,
    Field,
    model_validator,
)
from pydantic_core import PydanticCustomError

Kind = Literal["model", "lora", "mixer", "prompt", "remote", "null"]
Capability = Literal["tools", "json", "vision", "logprobs", "n"]
ExpertId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/@+-]{0,127}$")]

# What a kind must say of itself (one field of each group), and what has no meaning for it.
_REQUIRED: dict[Kind, tuple[tuple[str, ...], ...]] = {
    "model": (("engine", "path"),),
    "lora": (("base",), ("adapter",)),
    "mixer": (("base", "url", "engine"), ("adapter",)),
    "prompt": (("base",), ("system_prompt",)),
    "remote": (("engine", "url", "provider"),),
    "null": (("text",),),
}
_ONLY_FOR: dict[str, tuple[Kind, ...]] = {
    "base": ("lora", "mixer", "prompt"),
    "adapter": ("lora", "mixer"),
    "system_prompt": ("prompt",),
    "text": ("null",),
    "served_name": ("remote", "prompt", "mixer"),
    "path": ("model",),
    "url": ("remote", "mixer"),
    "provider": ("remote",),
    "api_key_env": ("remote", "mixer"),
}
# An engine of its own and a configured one exclude each other.
_OWN_ENGINE = ("path", "url", "provider", "api_key_env")


def bare_address(url: AnyHttpUrl) -> AnyHttpUrl:
    """Refuse an address that carries more than where the server is: it may be a secret."""
    if url.username or url.password:
        raise ValueError("no credentials in the address: name their variable in 'api_key_env'")
    if url.query or url.fragment:
        raise ValueError("the address alone, without '?' or '#'")
    return url


def _wrong(field: str, message: str) -> PydanticCustomError:
    """A rule between fields is broken; `param` names the one to look at."""
    return PydanticCustomError("expert_field", "{message}", {"message": message, "param": field})


class ExpertSpec(BaseModel):
    """Something that answers.

    `params_b` is in billions of parameters, prices are in USD per million tokens, `context_length`
    is in tokens. A prompt or adapter without an `engine` of its own is served by its base's.

    Instead of naming a configured `engine`, a model may name the folder of its weights (`path`,
    served by an embedded engine of its own), and a remote expert the `url` of an OpenAI-compatible
    server, or a `provider` that LiteLLM knows (with `url` as its address where it needs one).
    `api_key_env` names the environment variable that holds the key: the key itself is never stored.
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
    path: Path | None = None
    url: Annotated[AnyHttpUrl, AfterValidator(bare_address)] | None = None
    provider: str | None = Field(default=None, pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")
    api_key_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,255}$")

    @model_validator(mode="after")
    def _fields_fit_kind(self) -> "ExpertSpec":
        for fields in _REQUIRED[self.kind]:
            if all(getattr(self, field) is None for field in fields):
                wanted = " or ".join(f"'{field}'" for field in fields)
                raise _wrong(fields[0], f"an expert of kind '{self.kind}' needs {wanted}")
        for field, kinds in _ONLY_FOR.items():
            if getattr(self, field) is not None and self.kind not in kinds:
                kind = self.kind
                raise _wrong(field, f"'{field}' has no meaning for an expert of kind '{kind}'")
        if self.kind == "mixer" and self.base is not None and self.url is not None:
            raise _wrong("url", "give either 'base', to be served by its engine, or 'url'")
        for field in _OWN_ENGINE:
            if self.engine is not None and getattr(self, field) is not None:
                raise _wrong(field, f"give either 'engine' or '{field}'")
        return self

    @property
    def upstream_name(self) -> str:
        """The model name under which the expert's engine serves it."""
        name = self.served_name or self.id
        return name if self.provider is None else f"{self.provider}/{name}"
