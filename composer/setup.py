"""What must be there before the first answer: model files, the encoder's export, a trained router.

All of it is cached, so that a second start finds it.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from composer.config import Config, resolve_experts, training_files
from experts.engine_spec import EmbeddedEngineSpec
from experts.errors import ConfigError
from experts.spec import ExpertSpec
from routers.artefact import MANIFEST

RECIPE = 1
"""Raised when training changes so that artefacts of an older recipe should be made anew."""


def needs_setup(config: Config) -> bool:
    """Whether `prepare` has anything to do, found out without loading anything heavy."""
    return not (
        all(model_folder(config, e).is_dir() for e in _embedded(config))
        and (artefact_folder(config, resolve_experts(config)) / MANIFEST).is_file()
    )


def prepare(config: Config, progress: Callable[[str], None]) -> Path:
    """Prepare everything; returns the folder of the composition's artefact.

    Raises:
        SetupError, DataError, ArtefactError, ConfigError: what is missing or wrong.
    """
    experts = resolve_experts(config)
    for engine in _embedded(config):
        if engine.model == "smollm2-135m":
            from experts.engines.embedded.weights import prepare_smollm2

            prepare_smollm2(config.cache_dir, progress)
    from routers.encoders import load_encoder, prepare_encoder

    if config.encoder.backend == "onnx":
        prepare_encoder(config.cache_dir, progress)
    folder = artefact_folder(config, experts)
    if config.composition.artefact is None and not (folder / MANIFEST).is_file():
        from composer.train import train_artefact

        encoder = load_encoder(config.encoder.backend, config.cache_dir)
        files = training_files(config)
        trained = train_artefact(files, experts, encoder, folder, config.composition.name, progress)
        for note in trained.notes:
            progress(f"note: {note}")
    return folder


def model_folder(config: Config, engine: EmbeddedEngineSpec) -> Path:
    """Where an embedded engine finds its base model."""
    if engine.model == "smollm2-135m":
        return config.cache_dir / "models" / "SmolLM2-135M-Instruct"
    return engine.model


def artefact_folder(config: Config, experts: Mapping[str, ExpertSpec]) -> Path:
    """The configured artefact, or where the one trained from the configured data belongs.

    Its name is a hash of encoder, data, experts and recipe: what has changed is trained anew.
    """
    if config.composition.artefact is not None:
        return config.composition.artefact
    digest = hashlib.sha256(encoder_identity(config)[0].encode())
    for file in training_files(config):
        try:
            digest.update(hashlib.sha256(file.read_bytes()).digest())
        except OSError as error:
            raise ConfigError(
                f"can't read the training data {file}: {error.strerror}", param="composition.data"
            ) from error
    specs = [spec.model_dump(mode="json", exclude={"adapter"}) for spec in experts.values()]
    digest.update(json.dumps([RECIPE, specs], sort_keys=True).encode())
    return config.state_dir / "artefacts" / digest.hexdigest()[:16]


def encoder_identity(config: Config) -> tuple[str, int]:
    """Id and dimension of the configured encoder, without loading it.

    Raises:
        SetupError: it is not installed.
    """
    from routers.encoders.weights import encoder_id, find_model, weights_digest

    model = find_model()
    return encoder_id(weights_digest(model, config.cache_dir)), model.dimension()


def _embedded(config: Config) -> list[EmbeddedEngineSpec]:
    return [engine for engine in config.engines if isinstance(engine, EmbeddedEngineSpec)]
