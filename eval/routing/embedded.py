"""Embeddings of data sets, made once and kept in the cache folder."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from experts.errors import DataError
from routers.dataset import TaskData
from routers.encoders.base import Encoder
from routers.wording import normalise

Floats = NDArray[np.float32]
BATCH = 256
FOLDER = "eval-embeddings"


def with_embeddings(
    data: TaskData, encoder: Encoder, cache_dir: Path, progress: Callable[[str], None]
) -> tuple[TaskData, Floats]:
    """The data with its texts as they are routed on, and their embeddings."""
    data = replace(data, texts=tuple(normalise(text) for text in data.texts))
    return data, embed(data.texts, encoder, cache_dir, progress)


def embed(
    texts: Sequence[str], encoder: Encoder, cache_dir: Path, progress: Callable[[str], None]
) -> Floats:
    """Embeddings (n, d), from the cache if these very texts were embedded before.

    Raises:
        DataError: the cache folder can't be written.
    """
    digest = hashlib.sha256(encoder.id.encode())
    for text in texts:
        digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
    file = cache_dir / FOLDER / f"{digest.hexdigest()[:32]}.npy"
    if file.exists():
        known: Floats = np.load(file, allow_pickle=False)
        if known.shape == (len(texts), encoder.dimension):
            return known
    found = np.zeros((len(texts), encoder.dimension), dtype=np.float32)
    for start in range(0, len(texts), BATCH):
        found[start : start + BATCH] = encoder.encode(texts[start : start + BATCH])
        progress(f"embedding {min(start + BATCH, len(texts))} of {len(texts)} prompts")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        staging = file.with_suffix(".part.npy")
        np.save(staging, found)
        staging.replace(file)
    except OSError as error:
        raise DataError(f"can't write {file}: {error.strerror}") from error
    return found
