"""GLIDER's global router: how near each expert's instruction is to what a request asks for."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from experts.errors import InvalidRequest
from experts.mixer.spec import GlobalSpec

Vector = NDArray[np.float32]
MAX_ABSOLUTE = 1e6
"""What a prior may say of an expert; far beyond what decides between experts."""


def global_prior(instructions: NDArray[np.float32], query: Vector, weight: GlobalSpec) -> Vector:
    """`alpha * cosine` for every expert, (experts,), of unit vectors (experts, width) and (width,).

    `alpha = gamma * [max cosine > threshold] + beta`: near certainty about one expert the request's
    view decides, else it only leans.
    """
    cosines = instructions @ query
    alpha = weight.gamma * float(cosines.max() > weight.threshold) + weight.beta
    prior: Vector = (alpha * cosines).astype(np.float32)
    return prior


def check_prior(prior: Sequence[float], experts: int) -> None:
    """
    Raises:
        InvalidRequest: the prior has the wrong length, or a value that is not a finite number.
    """
    if len(prior) != experts:
        raise InvalidRequest(
            f"the prior has {len(prior)} values, the mixer has {experts} experts: "
            "give one number for each",
            param="mixer_prior",
        )
    if not all(math.isfinite(value) and abs(value) <= MAX_ABSOLUTE for value in prior):
        raise InvalidRequest(
            f"the prior takes finite numbers up to {MAX_ABSOLUTE:g}: remove an expert by the mask, "
            "not by minus infinity",
            param="mixer_prior",
        )


def check_mask(mask: Sequence[float], experts: int) -> None:
    """
    Raises:
        InvalidRequest: the mask has the wrong length or values, or leaves no expert.
    """
    if len(mask) != experts or any(value not in (0, 1) for value in mask):
        raise InvalidRequest(
            f"the mask takes {experts} values, each 1 (may answer) or 0 (removed)",
            param="mixer_mask",
        )
    if not any(mask):
        raise InvalidRequest("the mask removes all experts: leave at least one", param="mixer_mask")
