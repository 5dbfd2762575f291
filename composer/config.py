"""Configuration: one YAML file over the packaged defaults, then environment, then flags."""

import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

from composer.documents import Document, explain, parse_document, read_document
from experts.engine_spec import EmbeddedEngineSpec, EngineSpec
from experts.errors import ConfigError
from experts.registry import OWN_ENGINE, index_experts
from experts.spec import ExpertId, ExpertSpec

ENV_PREFIX = "COMPOSER_"
LOOPBACK_HOSTS = frozenset({"127.0.0.1", "::1", "localhost"})

Seconds = Annotated[float, Field(gt=0, le=86_400)]


def _xdg(variable: str, fallback: str) -> Path:
    return Path(os.environ.get(variable) or Path.home() / fallback) / "expert-composer"


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EncoderConfig(_Section):
    """The text encoder of the routers; `threads` is per gateway worker."""

    backend: Literal["onnx", "pytorch"] = "onnx"
    threads: int = Field(default=2, ge=1, le=64)
    max_batch: int = Field(default=32, ge=1, le=1024)
    max_waiting: int = Field(default=1024, ge=1)


class CompositionConfig(_Section):
    """The composition that is served.

    Its router is trained at the first start on `data`, and anew when the data or the experts have
    changed; or it is taken ready from the folder `artefact`.
    """

    name: ExpertId = "auto"
    data: Literal["demo"] | Annotated[tuple[Path, ...], Field(min_length=1)] = "demo"
    artefact: Path | None = None
    quality_weight: float = Field(default=1.0, ge=0, le=1)


class Limits(_Section):
    """Bounds on what a client may send."""

    max_body_bytes: int = Field(default=8 << 20, ge=1024, le=1 << 30)
    max_answer_bytes: int = Field(default=64 << 20, ge=1024, le=1 << 30)
    max_dataset_bytes: int = Field(default=256 << 20, ge=1024, le=16 << 30)
    max_archive_bytes: int = Field(default=4 << 30, ge=1024, le=1 << 40)
    max_in_flight: int = Field(default=1024, ge=1)


class CacheConfig(_Section):
    """The decision cache: entries in each worker, and those shared in Redis for each live version.

    A look-up in Redis that takes longer than `timeout_ms` counts as a miss.
    """

    local_entries: int = Field(default=10_000, ge=0)
    shared_entries: int = Field(default=50_000, ge=0, le=10_000_000)
    timeout_ms: float = Field(default=20, gt=0, le=1000)
    ttl_s: Seconds = 86_400


class AuthConfig(_Section):
    """Whether requests need a key. Unset: beyond loopback they do, on loopback they don't."""

    required: bool | None = None


class SessionConfig(_Section):
    """A session stays with its expert until it has been silent for `ttl_s`, or another expert is
    expected to score more than `switch_gain` above it (1: never)."""

    ttl_s: Seconds = 1800
    switch_gain: float = Field(default=1.0, ge=0, le=1)


class StatsConfig(_Section):
    """Statistics are committed every `flush_s`; the newest `decisions_kept` decisions are kept.

    Prompts are stored with them only if `store_prompts`, and for `prompt_retention_s`.
    """

    flush_s: float = Field(default=0.5, gt=0, le=1)
    decisions_kept: int = Field(default=20_000, ge=0, le=1_000_000)
    store_prompts: bool = False
    prompt_retention_s: float = Field(default=86_400, gt=0, le=31_536_000)


class Timeouts(_Section):
    """Deadlines in seconds. `idle_s` bounds the wait for the next bytes of an answer, so it also
    bounds a whole answer that is not streamed."""

    body_s: Seconds = 30
    connect_s: Seconds = 2
    idle_s: Seconds = 120
    request_s: Seconds = 600
    drain_s: Seconds = 10
    start_s: Seconds = 120
    training_s: Seconds = 3600


class LogConfig(_Section):
    """`requests` writes a line for each request answered."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["json", "console"] = "json"
    requests: bool = True


class Config(_Section):
    """Everything that an operator can set."""

    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)
    state_dir: Path = Field(default_factory=lambda: _xdg("XDG_STATE_HOME", ".local/state"))
    cache_dir: Path = Field(default_factory=lambda: _xdg("XDG_CACHE_HOME", ".cache"))
    redis_url: SecretStr | None = None
    encoder: EncoderConfig = EncoderConfig()
    engines: tuple[EngineSpec, ...] = Field(min_length=1)
    experts: Literal["demo"] | Path | Annotated[tuple[ExpertSpec, ...], Field(min_length=1)]
    composition: CompositionConfig = CompositionConfig()
    workers: int = Field(default=1, ge=1, le=64)
    model_roots: tuple[Path, ...] = ()
    litellm_python: Path | None = None
    auth: AuthConfig = AuthConfig()
    cache: CacheConfig = CacheConfig()
    sessions: SessionConfig = SessionConfig()
    stats: StatsConfig = StatsConfig()
    limits: Limits = Limits()
    timeouts: Timeouts = Timeouts()
    log: LogConfig = LogConfig()

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the gateway."""
        return self.host in LOOPBACK_HOSTS

    @property
    def keys_required(self) -> bool:
        """Whether a request needs a key."""
        return not self.is_local if self.auth.required is None else self.auth.required

    @field_validator("state_dir", "cache_dir")
    @classmethod
    def _whole_path(cls, path: Path) -> Path:
        return path.expanduser().absolute()

    @field_validator("model_roots")
    @classmethod
    def _whole_paths(cls, paths: tuple[Path, ...]) -> tuple[Path, ...]:
        return tuple(path.expanduser().absolute() for path in paths)

    @model_validator(mode="after")
    def _engines_are_unique(self) -> "Config":
        names = [engine.name for engine in self.engines]
        own = [name for name in names if name.startswith(OWN_ENGINE)]
        if own:
            raise ValueError(f"engine '{own[0]}': names that begin with '{OWN_ENGINE}' are taken")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"engine '{twice[0]}' is defined twice")
        return self

    @model_validator(mode="after")
    def _keys_beyond_loopback(self) -> "Config":
        if self.auth.required is False and not self.is_local:
            raise ValueError(
                f"host '{self.host}' is beyond loopback, where requests need keys: "
                "leave out auth.required, or bind to 127.0.0.1"
            )
        return self


def load_config(
    path: Path | None = None,
    *,
    flags: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Config:
    """Load the configuration.

    Args:
        path: the file; without one, `composer.yaml` of the working folder if there is one.
        flags: values that override all others; None values are ignored.
        environ: the environment; `COMPOSER_PORT=9000`, `COMPOSER_LOG__LEVEL=debug`.

    Raises:
        ConfigError: with file and line where they are known.
    """
    if path is None and Path("composer.yaml").is_file():
        path = Path("composer.yaml")
    defaults = parse_document(
        "default.yaml", resources.files("composer").joinpath("default.yaml").read_text()
    )
    user = read_document(path) if path is not None else Document("", {}, {})
    data = defaults.data | _resolve_paths(user.data, path)
    overrides = _from_environment(data, os.environ if environ is None else environ)
    overrides |= {key: value for key, value in (flags or {}).items() if value is not None}
    data |= overrides
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        raise ConfigError(explain(error, user, overridden=frozenset(overrides))) from error


def configured_specs(config: Config) -> tuple[ExpertSpec, ...]:
    """The configured experts as they were written.

    Raises:
        ConfigError: their file can't be read.
    """
    if isinstance(config.experts, tuple):
        return config.experts
    return read_experts(demo_experts_file() if config.experts == "demo" else config.experts)


def resolve_experts(config: Config) -> Mapping[str, ExpertSpec]:
    """The configured experts by id, checked against each other and against the engines.

    Raises:
        ConfigError: a rule of the registry is broken, or an engine is unknown.
    """
    experts = index_experts(configured_specs(config))
    engines = {engine.name for engine in config.engines}
    for spec in experts.values():
        if spec.engine is not None and not (
            spec.engine in engines or spec.engine.startswith(OWN_ENGINE)
        ):
            raise ConfigError(
                f"expert '{spec.id}' names engine '{spec.engine}', known are: "
                + ", ".join(sorted(engines)),
                param="engine",
            )
    idle = sorted(
        engine.name
        for engine in config.engines
        if isinstance(engine, EmbeddedEngineSpec)
        and all(spec.engine != engine.name for spec in experts.values())
    )
    if idle:
        raise ConfigError(f"no expert stands on engine '{idle[0]}'", param="engines")
    return experts


def find_missing(config: Config, environ: Mapping[str, str]) -> list[str]:
    """What the configuration names and this machine lacks: files, folders, keys. A line each."""
    missing = []
    for spec in resolve_experts(config).values():
        if spec.adapter is not None and not spec.adapter.is_dir():
            missing.append(f"expert '{spec.id}': there is no adapter folder {spec.adapter}")
        if spec.path is not None and not spec.path.is_dir():
            missing.append(f"expert '{spec.id}': there is no model folder {spec.path}")
        if spec.api_key_env is not None and not environ.get(spec.api_key_env):
            missing.append(f"expert '{spec.id}': {spec.api_key_env} is not set")
    for engine in config.engines:
        if isinstance(engine, EmbeddedEngineSpec):
            if isinstance(engine.model, Path) and not engine.model.is_dir():
                missing.append(f"engine '{engine.name}': there is no model folder {engine.model}")
        elif engine.api_key_env is not None and not environ.get(engine.api_key_env):
            missing.append(f"engine '{engine.name}': {engine.api_key_env} is not set")
    artefact = config.composition.artefact
    if artefact is not None and not (artefact / "artefact.json").is_file():
        missing.append(f"composition: there is no artefact in {artefact}")
    if artefact is None:
        missing += [
            f"composition: there is no file {file}"
            for file in training_files(config)
            if not file.is_file()
        ]
    return missing


def read_experts(path: Path) -> tuple[ExpertSpec, ...]:
    """Read a YAML or JSON list of experts; folders in it are relative to the file.

    Raises:
        ConfigError: with file and line where they are known.
    """
    document = read_document(path, key="experts")
    try:
        specs = _ExpertList.model_validate(document.data).experts
    except ValidationError as error:
        raise ConfigError(explain(error, document)) from error
    return tuple(
        spec.model_copy(
            update={
                key: (path.parent / folder).resolve()
                for key in ("adapter", "path")
                if (folder := getattr(spec, key)) is not None
            }
        )
        for spec in specs
    )


class _ExpertList(_Section):
    experts: tuple[ExpertSpec, ...] = Field(min_length=1)


def demo_experts_file() -> Path:
    """The specifications of the experts that come with Composer."""
    return _package_folder("experts") / "demo" / "experts.yaml"


def demo_data_files() -> tuple[Path, ...]:
    """The prompts that come with Composer, and the graded outcomes of its experts on them."""
    folder = _package_folder("routers") / "demo"
    prompts = sorted(p for p in (folder / "prompts").glob("*.jsonl") if not p.name.startswith("_"))
    return (*prompts, folder / "outcomes.jsonl")


def training_files(config: Config) -> tuple[Path, ...]:
    """The files that the configured composition is trained on."""
    data = config.composition.data
    return demo_data_files() if data == "demo" else data


def _package_folder(package: str) -> Path:
    return Path(str(resources.files(package)))


def _resolve_paths(data: dict[str, Any], path: Path | None) -> dict[str, Any]:
    """Make the file's relative paths relative to its folder."""
    if path is None:
        return data
    folder = path.resolve().parent

    def absolute(value: Any) -> Any:
        return str(folder / Path(value).expanduser()) if isinstance(value, str) else value

    data = dict(data)
    for key in ("state_dir", "cache_dir", "litellm_python"):
        if key in data:
            data[key] = absolute(data[key])
    if isinstance(data.get("model_roots"), list):
        data["model_roots"] = [absolute(root) for root in data["model_roots"]]
    experts = data.get("experts")
    if isinstance(experts, str) and experts != "demo":
        data["experts"] = absolute(experts)
    elif isinstance(experts, list):
        data["experts"] = [
            {**e, **{key: absolute(e[key]) for key in ("adapter", "path") if key in e}}
            if isinstance(e, dict)
            else e
            for e in experts
        ]
    composition = data.get("composition")
    if isinstance(composition, dict):
        composition = dict(composition)
        if isinstance(composition.get("data"), list):
            composition["data"] = [absolute(item) for item in composition["data"]]
        if "artefact" in composition:
            composition["artefact"] = absolute(composition["artefact"])
        data["composition"] = composition
    engines = data.get("engines")
    if isinstance(engines, list):
        data["engines"] = [
            {**e, "model": absolute(e["model"])}
            if isinstance(e, dict) and e.get("model", "smollm2-135m") != "smollm2-135m"
            else e
            for e in engines
        ]
    return data


def _from_environment(data: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    """Settings from `COMPOSER_<KEY>` and `COMPOSER_<SECTION>__<KEY>`; other names are not ours."""
    found: dict[str, Any] = {}
    for name, raw in sorted(environ.items()):
        if not name.startswith(ENV_PREFIX):
            continue
        key, *rest = name.removeprefix(ENV_PREFIX).lower().split("__")
        if key not in Config.model_fields:
            continue
        try:
            value = yaml.safe_load(raw)
        except yaml.YAMLError as error:
            raise ConfigError(f"environment variable {name} can't be read as YAML") from error
        if not rest:
            found[key] = value
        else:
            section = dict(found.get(key) or data.get(key) or {})
            section["__".join(rest)] = value
            found[key] = section
    return found
