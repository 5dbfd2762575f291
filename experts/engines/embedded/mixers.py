"""Mixers beside plain adapters on one base: each token of a step under its own expert."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experts.mixer.checkpoint import load_mixture
from experts.mixer.description import DESCRIPTION
from experts.mixer.mixture import Mixture
from experts.mixer.routed import Routing, attach


@dataclass(frozen=True, slots=True)
class Mixed:
    """Which mixer a request is for, and its view of the mixer's experts: None is no opinion."""

    number: int
    prior: tuple[float, ...] | None = None
    mask: tuple[bool, ...] | None = None


def is_mixer(folder: Path) -> bool:
    """Whether a folder holds a mixer rather than an adapter."""
    return (folder / DESCRIPTION).is_file()


class MixerBank:
    """The mixers of one model, by number from 0 in the order given.

    Attach it before the adapters are: a linear may carry both.
    """

    def __init__(self, model: Any, mixtures: Sequence[Mixture]) -> None:
        self._routings: list[Routing] = [attach(model, mixture) for mixture in mixtures]
        for routing in self._routings:
            routing.off = True

    def select(self, mixed_of_token: Sequence[Mixed | None]) -> None:
        """Set the routing of the next step; `mixed_of_token` is (tokens,)."""
        for number, routing in enumerate(self._routings):
            places = [
                place
                for place, mixed in enumerate(mixed_of_token)
                if mixed is not None and mixed.number == number
            ]
            routing.off = not places
            if places:
                found = [mixed_of_token[place] for place in places]
                everyone = len(places) == len(mixed_of_token)
                routing.tokens = None if everyone else torch.tensor(places)
                routing.prior = _priors(found, routing.experts)
                routing.allowed = _masks(found, routing.experts)


def load_mixers(folders: Sequence[Path], base: Path) -> list[Mixture]:
    """Raises `ArtefactError` for what is damaged or made for another base."""
    return [load_mixture(folder, base) for folder in folders]


def _priors(mixed: Sequence[Mixed | None], experts: int) -> Tensor | None:
    rows = [None if one is None else one.prior for one in mixed]
    if not any(rows):
        return None
    nothing = (0.0,) * experts
    return torch.tensor([row or nothing for row in rows])


def _masks(mixed: Sequence[Mixed | None], experts: int) -> Tensor | None:
    rows = [None if one is None else one.mask for one in mixed]
    if not any(rows):
        return None
    everyone = (True,) * experts
    return torch.tensor([row or everyone for row in rows])
