"""The encoder as an ONNX graph, made once from the safetensors and kept in the cache.

The export runs in a process of its own (`python -m routers.encoders.export`), so that a gateway
that finds no export yet still never imports torch.
"""

import argparse
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

import routers
from experts.errors import SetupError
from routers.encoders.sentence import padded
from routers.encoders.weights import (
    EncoderModel,
    model_cache,
    read_record,
    weights_digest,
    write_record,
)

INPUTS = ("input_ids", "attention_mask")

_DEADLINE_S = 600.0
_TOLERANCE = 1e-4


def ensure_export(model: EncoderModel, cache_dir: Path, progress: Callable[[str], None]) -> Path:
    """The ONNX file of these weights, exported first if need be.

    Processes that start together wait for the one that exports. Raises `SetupError` if the export
    fails or takes more than ten minutes.
    """
    digest = weights_digest(model, cache_dir)
    folder = model_cache(cache_dir)
    path = folder / "model.onnx"
    if _is_current(path, digest):
        return path
    with _lock(folder / "export.lock"):
        if not _is_current(path, digest):
            progress("Exporting the encoder to ONNX (once, about 15 s)")
            partial = folder / f"model.{os.getpid()}.part"
            try:
                _export_in_child(model, partial)
                os.replace(partial, path)
            finally:
                partial.unlink(missing_ok=True)
            write_record(_record(path), {"weights": digest, "size": path.stat().st_size})
    return path


def _record(path: Path) -> Path:
    return path.with_suffix(".json")


def _is_current(path: Path, digest: str) -> bool:
    return path.is_file() and read_record(_record(path)) == {
        "weights": digest,
        "size": path.stat().st_size,
    }


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold the file's lock; the kernel frees it should this process die."""
    deadline = time.monotonic() + _DEADLINE_S
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise SetupError(
                        f"Another process has held {path} for ten minutes; stop it and try again"
                    ) from None
                time.sleep(0.1)
        yield


def _export_in_child(model: EncoderModel, path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "routers.encoders.export",
        str(model.folder),
        str(path.absolute()),
    ]
    try:
        subprocess.run(
            command,
            cwd=Path(next(iter(routers.__path__))).parent,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_DEADLINE_S,
            check=True,
        )
    except subprocess.TimeoutExpired:
        raise SetupError("The export of the encoder to ONNX took more than ten minutes") from None
    except subprocess.CalledProcessError as error:
        raise SetupError(
            "The encoder could not be exported to ONNX (it needs torch, transformers, onnx and "
            f"onnxscript):\n{error.stderr[-2000:]}"
        ) from None


def export(model: EncoderModel, path: Path) -> None:
    """Write the graph: ids and mask (n, length), any n and length, to `sentence_vector` (n, d).

    Mean pooling and normalisation are inside. Raises `SetupError` if the graph's vectors differ
    from PyTorch's.
    """
    import torch

    from routers.encoders.onnx import onnx_forward
    from routers.encoders.pytorch import SentenceModule

    # Fused attention would export to the same products with more operators around them.
    module = SentenceModule(model.folder, attention="eager")
    ids, mask = padded([list(range(2000, 2012)), list(range(3000, 3007))])
    arguments = (torch.from_numpy(ids), torch.from_numpy(mask))
    axes = {0: torch.export.Dim("n"), 1: torch.export.Dim("length", max=512)}
    torch.onnx.export(
        module,
        arguments,
        path,
        input_names=INPUTS,
        output_names=["sentence_vector"],
        dynamic_shapes=(axes, axes),
        external_data=False,
        dynamo=True,
        verbose=False,
    )
    with torch.inference_mode():
        expected = module(*arguments).numpy()
    difference = float(np.abs(onnx_forward(path, threads=1)(ids, mask) - expected).max())
    if not difference < _TOLERANCE:
        raise SetupError(f"The exported encoder is off by {difference:.1e} from PyTorch's vectors")


def main() -> None:
    """Export the model of one folder to one file."""
    parser = argparse.ArgumentParser(prog="python -m routers.encoders.export")
    parser.add_argument("folder", type=Path, help="folder with the safetensors")
    parser.add_argument("file", type=Path, help="ONNX file to write")
    arguments = parser.parse_args()
    export(EncoderModel(arguments.folder), arguments.file)


if __name__ == "__main__":
    main()
