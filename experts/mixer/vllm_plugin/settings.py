"""What a process of vLLM must know of the mixer that it serves, and the check of a request."""

import math
from typing import Any

from vllm.model_executor.models.config import VerifyAndUpdateConfig

from experts.mixer.vllm_plugin import SECTION

PRIOR = "mixer_prior"
MASK = "mixer_mask"
_MAX_ABSOLUTE = 1e6

_experts: int | None = None


class MixerConfig(VerifyAndUpdateConfig):
    """Called once the configuration is read: the API server learns how many experts there are, and
    what can't work together is refused before anything is loaded."""

    @staticmethod
    def verify_and_update_config(vllm_config: Any) -> None:
        section = getattr(vllm_config.model_config.hf_config, SECTION, None)
        if not isinstance(section, dict):
            raise ValueError(
                f"config.json has no section {SECTION!r}: write the checkpoint with "
                "`coe mixer export`"
            )
        if vllm_config.lora_config is not None:
            raise ValueError("a mixer can't be served with --enable-lora: leave that out")
        if vllm_config.speculative_config is not None:
            raise ValueError("a mixer can't be served with speculative decoding: leave that out")
        parallel = vllm_config.parallel_config
        if parallel.pipeline_parallel_size > 1 or parallel.use_ubatching:
            raise ValueError(
                "a mixer can't be served with pipeline parallelism or micro-batches: split its "
                "base by --tensor-parallel-size"
            )
        serve(len(section["open"]))
        _keep_forward_outside_graphs(vllm_config)


def serve(experts: int) -> None:
    """Have this process check priors for so many experts."""
    global _experts
    _experts = experts


def _keep_forward_outside_graphs(vllm_config: Any) -> None:
    """On a GPU's first runner a captured graph of the whole model would hold the priors of the
    capture: there, only the pieces between attentions are captured."""
    from vllm.config.compilation import CUDAGraphMode
    from vllm.platforms import current_platform

    if current_platform.is_cuda_alike() and not vllm_config.use_v2_model_runner:
        compilation = vllm_config.compilation_config
        if compilation.cudagraph_mode is not CUDAGraphMode.NONE:
            compilation.cudagraph_mode = CUDAGraphMode.PIECEWISE


def checked_row(extra: dict[str, Any] | None) -> tuple[list[float] | None, list[float] | None]:
    """The prior and mask of a request's extra arguments.

    Raises:
        ValueError: they are not one finite number, or one 0 or 1, for every expert.
    """
    extra = extra or {}
    prior, mask = extra.get(PRIOR), extra.get(MASK)
    if _experts is None:
        if prior is not None or mask is not None:
            raise ValueError(f"the model served here is no mixer: leave out {PRIOR} and {MASK}")
        return None, None
    if prior is not None:
        numbers = _numbers(PRIOR, prior)
        if not all(math.isfinite(value) and abs(value) <= _MAX_ABSOLUTE for value in numbers):
            raise ValueError(
                f"{PRIOR} takes finite numbers up to {_MAX_ABSOLUTE:g}: remove an expert by "
                f"{MASK}, not by minus infinity"
            )
        prior = numbers
    if mask is not None:
        mask = _numbers(MASK, mask)
        if any(value not in (0.0, 1.0) for value in mask):
            raise ValueError(f"{MASK} takes 1 (may answer) or 0 (removed) for every expert")
        if not any(mask):
            raise ValueError(f"{MASK} removes every expert: leave at least one")
    return prior, mask


def _numbers(name: str, values: Any) -> list[float]:
    if not isinstance(values, list) or len(values) != _experts:
        length = len(values) if isinstance(values, list) else "no list of"
        raise ValueError(
            f"{name} has {length} values, the mixer has {_experts} experts: give one for each"
        )
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        raise ValueError(f"{name} takes numbers alone")
    return [float(value) for value in values]
