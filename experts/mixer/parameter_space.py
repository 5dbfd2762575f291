"""Mixing in parameter space: Polytropon and MHR (multi-head routing).

Skills are adapters of one rank. A task's weights combine their matrices before anything is
multiplied, `A = sum w_s A_s`, `B = sum w_s B_s`, so that cross terms between skills appear: the
other mixers sum outputs instead. With `heads` above 1, A is cut along d_in and B along d_out, and
every block has weights of its own. The result for a task is a plain LoRA adapter again, which every
engine serves.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from experts.engines.embedded.adapters import Adapter
from experts.errors import SetupError

_EPSILON = 1e-12


class SkillWeights(nn.Module):
    """Logits Z (tasks, skills, heads) of all modules; a task that is unknown weighs them alike."""

    def __init__(self, tasks: int, skills: int, heads: int = 1) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.empty(tasks, skills, heads).uniform_(-1e-3, 1e-3))

    def forward(self, task: int | None) -> Tensor:
        """Weights (skills, heads): `sigmoid(Z) / sum sigmoid(Z)`."""
        _, skills, heads = self.logits.shape
        raw = torch.zeros(skills, heads) if task is None else self.logits[task]
        chosen = raw.sigmoid()
        return chosen / (chosen.sum(dim=0, keepdim=True) + _EPSILON)


def combine(skills: Sequence[Adapter], weights: Tensor, name: str) -> Adapter:
    """The adapter of a task, whose weights are (skills, heads).

    Raises:
        SetupError: the skills differ in rank, scale or modules, or a width has no such many heads.
    """
    first = skills[0]
    for skill in skills[1:]:
        same = (skill.rank, skill.scale, skill.matrices.keys())
        if same != (first.rank, first.scale, first.matrices.keys()):
            raise SetupError(
                f"adapters {first.name} and {skill.name} can't be mixed in parameter space: their "
                "rank, scale and modules must be the same; use a routed mixer instead"
            )
    matrices = {}
    for module in first.matrices:
        a = torch.stack([skill.matrices[module][0] for skill in skills])
        b = torch.stack([skill.matrices[module][1] for skill in skills])
        matrices[module] = (
            _mixed(module, a, weights, along=2),
            _mixed(module, b, weights, along=1),
        )
    return Adapter(name, first.rank, first.scale, matrices)


def _mixed(module: str, stacked: Tensor, weights: Tensor, along: int) -> Tensor:
    """The weighted sum of `stacked` (skills, m, n), block by block along one dimension."""
    heads = weights.shape[1]
    if stacked.shape[along] % heads:
        raise SetupError(
            f"{module} has {stacked.shape[along]} features, which {heads} heads don't divide"
        )
    shape = [len(stacked), 1, 1]
    shape[along] = stacked.shape[along]
    factors = weights.repeat_interleave(stacked.shape[along] // heads, dim=1).reshape(shape)
    return (stacked * factors).sum(dim=0)
