"""What must hold of an expert on this machine before it is registered.

Every refusal names the field that is wrong and says what to do.
"""

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path

from composer.config import ENV_PREFIX, Config, demo_experts_file
from composer.lifecycle.plan import base_url
from composer.lifecycle.remote import why_unreachable
from composer.setup import model_folder
from experts.engine_spec import EmbeddedEngineSpec
from experts.engines.embedded.adapter_files import check_adapter
from experts.errors import ArtefactError, InvalidRequest, SetupError
from experts.mixer.description import check_mixer
from experts.spec import ExpertSpec

REACH_S = 2.0
MAX_CONFIG_BYTES = 1 << 20


async def admit(
    spec: ExpertSpec,
    resolved: ExpertSpec,
    known: Mapping[str, ExpertSpec],
    config: Config,
    environ: Mapping[str, str],
) -> None:
    """Check `spec`; `resolved` is the same with what its base among `known` hands down.

    Raises:
        InvalidRequest: with the field in `param`.
    """
    _check_engine(spec, config)
    if spec.api_key_env is not None and spec.api_key_env.startswith(ENV_PREFIX):
        raise InvalidRequest(
            f"'api_key_env': variables that begin with {ENV_PREFIX} are settings of Composer and "
            "are sent to nobody",
            param="api_key_env",
        )
    if spec.api_key_env is not None and not environ.get(spec.api_key_env):
        raise InvalidRequest(
            f"'api_key_env': {spec.api_key_env} is not set where Composer runs: set it there and "
            "start again",
            param="api_key_env",
        )
    if spec.adapter is not None:
        folder = _allowed("adapter", spec.adapter, config)
        base = _base_folder(resolved, known, config)
        check = _check_mixer if spec.kind == "mixer" else _check_adapter
        await asyncio.to_thread(check, spec.id, folder, base)
    if spec.path is not None:
        await asyncio.to_thread(_check_model, _allowed("path", spec.path, config))
    if spec.url is not None and (reason := await why_unreachable(base_url(str(spec.url)), REACH_S)):
        raise InvalidRequest(f"'url': {spec.url}: {reason}", param="url")


def _check_engine(spec: ExpertSpec, config: Config) -> None:
    if spec.engine is None:
        return
    engines = {engine.name: engine for engine in config.engines}
    if spec.engine not in engines:
        raise InvalidRequest(
            f"'engine': there is no engine '{spec.engine}', known are: "
            + ", ".join(sorted(engines)),
            param="engine",
        )
    if spec.kind == "remote" and isinstance(engines[spec.engine], EmbeddedEngineSpec):
        raise InvalidRequest(
            f"'engine': '{spec.engine}' is a process of ours, a remote expert needs a remote one",
            param="engine",
        )


def allowed_roots(config: Config) -> tuple[Path, ...]:
    """Folders under which weights may be registered: others could be read by registering them."""
    own = (config.state_dir / "models", demo_experts_file().parent / "adapters")
    return tuple(root.resolve() for root in (*config.model_roots, *own))


def _allowed(field: str, folder: Path, config: Config) -> Path:
    if not folder.is_absolute():
        raise InvalidRequest(f"'{field}': {folder} is not an absolute path", param=field)
    roots = allowed_roots(config)
    resolved = folder.resolve()
    if not any(resolved.is_relative_to(root) for root in roots):
        listed = ", ".join(str(root) for root in roots)
        raise InvalidRequest(
            f"'{field}': {folder} is not under an allowed folder ({listed}): put it there, or add "
            "its parent to `model_roots` in the configuration and start again",
            param=field,
        )
    if not resolved.is_dir():
        raise InvalidRequest(f"'{field}': there is no folder {folder}", param=field)
    return resolved


def _base_folder(
    resolved: ExpertSpec, known: Mapping[str, ExpertSpec], config: Config
) -> Path | None:
    """Where the weights are that an adapter is put on; None if a server of others has them."""
    for engine in config.engines:
        if engine.name == resolved.engine:
            return model_folder(config, engine) if isinstance(engine, EmbeddedEngineSpec) else None
    base = known.get(resolved.base or "")
    return base.path if base is not None else None


def _check_adapter(expert: str, folder: Path, base: Path | None) -> None:
    try:
        check_adapter(expert, folder, base)
    except SetupError as error:
        raise InvalidRequest(f"'adapter': {error.message}", param="adapter") from error


def _check_mixer(expert: str, folder: Path, base: Path | None) -> None:
    try:
        check_mixer(folder, base)
    except (ArtefactError, SetupError) as error:
        raise InvalidRequest(f"'adapter': {error.message}", param="adapter") from error


def _check_model(folder: Path) -> None:
    try:
        file = folder / "config.json"
        if file.stat().st_size > MAX_CONFIG_BYTES:
            raise InvalidRequest(f"'path': {file} is too large", param="path")
        named = json.loads(file.read_bytes()).get("architectures")
    except (OSError, ValueError, AttributeError) as error:
        raise InvalidRequest(
            f"'path': {folder} holds no model: its config.json can't be read", param="path"
        ) from error
    if not named:
        raise InvalidRequest(
            f"'path': the config.json in {folder} names no architecture", param="path"
        )
    if not any(folder.glob("*.safetensors")):
        raise InvalidRequest(
            f"'path': {folder} holds no safetensors (pickled weights are not loaded: they could "
            "run code)",
            param="path",
        )
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        raise InvalidRequest(f"'path': {folder} holds no tokenizer", param="path")
