"""`EngineSpec`: where an expert's answers come from."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, AnyHttpUrl, BaseModel, ConfigDict, Field

from experts.spec import bare_address

EngineName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]


class EmbeddedEngineSpec(BaseModel):
    """A child process of ours that serves one base, bare and under adapters, on transformers.

    Without `threads` the machine's cores are shared among its embedded engines.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["embedded"]
    name: EngineName
    model: Literal["smollm2-135m"] | Path = "smollm2-135m"
    threads: int | None = Field(default=None, ge=1, le=256)
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    max_running: int = Field(default=16, ge=1, le=256)
    max_waiting: int = Field(default=64, ge=0, le=10_000)
    max_context: int = Field(default=2048, ge=128)


class RemoteEngineSpec(BaseModel):
    """An OpenAI-compatible server that somebody else runs, taken as it is.

    `api_key_env` names the environment variable that holds the key: the key itself is never stored.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["remote"]
    name: EngineName
    url: Annotated[AnyHttpUrl, AfterValidator(bare_address)]
    api_key_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")


EngineSpec = Annotated[EmbeddedEngineSpec | RemoteEngineSpec, Field(discriminator="kind")]
