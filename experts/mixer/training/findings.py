"""What the routing turned out to do: load, entropy and specialisation, as the papers plot them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from experts.mixer.losses import entropy
from experts.mixer.mixture import Mixture
from experts.mixer.training.data import Encoded
from experts.mixer.training.tasks import Attached, Base, pad

_BATCH = 8


@dataclass(frozen=True, slots=True)
class Findings:
    """Shares of routing weight. `load` is each expert's of all tokens; `by_domain` each expert's
    of a domain's tokens; `by_module` each expert's in every routed linear (the heat map); `entropy`
    the mean over tokens and linears in nats, of the dense weights. `load_ratio` is the largest load
    over the least."""

    experts: tuple[str, ...]
    load: tuple[float, ...]
    load_ratio: float
    entropy: float
    by_domain: dict[str, tuple[float, ...]]
    by_module: dict[str, tuple[float, ...]]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@torch.no_grad()
def observe(
    base: Base, mixture: Mixture, domains: Mapping[str, Sequence[Encoded]], each: int = 32
) -> Findings:
    """Route up to `each` examples of every domain, without running on into an answer."""
    shares: dict[str, Tensor] = {}
    modules: dict[str, Tensor] = {}
    uncertainty: list[float] = []
    with Attached(base, mixture) as attached:
        for domain, encoded in domains.items():
            total = torch.zeros(len(mixture.adapters))
            count = 0
            for start in range(0, min(each, len(encoded)), _BATCH):
                batch = pad(encoded[start : min(start + _BATCH, each)], base.model.device)
                with attached.routing.recording() as recorded:
                    base.model.base_model(input_ids=batch.ids, use_cache=False)
                for module, weights in recorded.items():
                    of_tokens = weights[batch.tokens].float().cpu()
                    total += of_tokens.mean(dim=0)
                    count += 1
                    modules[module] = modules.get(module, torch.zeros(1)) + of_tokens.mean(dim=0)
                    uncertainty.append(float(entropy(of_tokens).mean()))
            shares[domain] = total / count
    load = torch.stack(list(shares.values())).mean(dim=0)
    return Findings(
        experts=mixture.spec.names,
        load=_rounded(load),
        load_ratio=round(float(load.max() / load.min().clamp_min(1e-9)), 3),
        entropy=round(sum(uncertainty) / len(uncertainty), 4),
        by_domain={domain: _rounded(share) for domain, share in shares.items()},
        by_module={module: _rounded(total / total.sum()) for module, total in modules.items()},
    )


def _rounded(values: Tensor) -> tuple[float, ...]:
    return tuple(round(float(value), 4) for value in values)
