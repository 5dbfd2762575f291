"""What placement is given and what it answers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Slot = tuple[str, ...]
"""The devices that one replica is on: one, or a tensor-parallel group."""


@dataclass(frozen=True, slots=True)
class Device:
    """`capacity` is the load that it can serve: 1 is one device busy all the time."""

    name: str
    budget_bytes: int
    capacity: float = 1.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """An expert that should be somewhere.

    `bytes` are those of one replica, weights and KV cache, over all its devices; an adapter's are
    its own weights, and it goes where its `base` is. `load` is what is asked of it: requests per
    second times the seconds of a device that each takes, which is a number of busy devices.
    """

    id: str
    bytes: int
    load: float
    base: str | None = None
    tensor_parallel: int = 1
    min_replicas: int = 1
    max_replicas: int = 1


@dataclass(frozen=True, slots=True)
class Weights:
    """What a share of the whole load is worth against the rest.

    Each is what is given up for it, as a share of the load: of `balance`, for a busiest device at
    its capacity rather than idle; of `stability`, for starting or stopping replicas of as many
    bytes as all devices have; of `thrift`, the same for keeping them at all.
    """

    balance: float = 0.02
    stability: float = 0.05
    thrift: float = 0.001


@dataclass(frozen=True, slots=True)
class Placed:
    """One replica, the load that it is to serve, and the reason in words."""

    expert: str
    slot: Slot
    load: float
    why: str


@dataclass(frozen=True, slots=True)
class Change:
    kind: Literal["start", "stop"]
    expert: str
    slot: Slot


@dataclass(frozen=True)
class Plan:
    """A placement, explained, and how it differs from the present one; nothing is applied.

    `gap` bounds how far it is from the best one, as a share of that one's value.
    """

    placed: tuple[Placed, ...]
    unplaced: Mapping[str, str]
    """Expert -> why it is nowhere."""

    short: Mapping[str, str]
    """Expert -> why not all of its load is served."""

    changes: tuple[Change, ...]
    """Stops first, so that there is room for the starts."""

    served_share: float
    busiest: float
    """Load over capacity of the busiest device."""

    used_bytes: Mapping[str, int] = field(default_factory=dict)
    optimal: bool = True
    gap: float = 0.0
