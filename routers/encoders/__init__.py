"""Encoders: text to vectors, behind one interface, on ONNX (the default) or PyTorch."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from routers.encoders.base import Encoder

__all__ = ["Backend", "Encoder", "load_encoder", "prepare_encoder"]

Backend = Literal["onnx", "pytorch"]


def _silent(message: str) -> None:
    """Drop a progress message."""


def prepare_encoder(cache_dir: Path, progress: Callable[[str], None] = _silent) -> None:
    """Do now what `load_encoder` would else do at its first start: hash and export the weights.

    Raises `SetupError` when the model is not installed or can't be exported.
    """
    from routers.encoders.export import ensure_export
    from routers.encoders.weights import find_model

    ensure_export(find_model(), cache_dir, progress)


def load_encoder(
    backend: Backend,
    cache_dir: Path,
    threads: int = 2,
    progress: Callable[[str], None] = _silent,
) -> Encoder:
    """all-MiniLM-L6-v2 on the chosen backend; id and vectors are the same on both (to 1e-4).

    The ONNX backend never imports torch into this process. Raises `SetupError` when the model is
    not installed or can't be exported.
    """
    from routers.encoders.policy import HeadTailTokenizer
    from routers.encoders.sentence import Forward, SentenceEncoder
    from routers.encoders.weights import encoder_id, find_model, weights_digest

    model = find_model()
    forward: Forward
    if backend == "onnx":
        from routers.encoders.export import ensure_export
        from routers.encoders.onnx import onnx_forward

        forward = onnx_forward(ensure_export(model, cache_dir, progress), threads)
    else:
        from routers.encoders.pytorch import pytorch_forward

        forward = pytorch_forward(model.folder, threads)
    return SentenceEncoder(
        id=encoder_id(weights_digest(model, cache_dir)),
        dimension=model.dimension(),
        tokenizer=HeadTailTokenizer(model.tokenizer),
        forward=forward,
    )
