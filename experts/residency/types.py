"""What the residency manager sees and says: devices, experts, events and actions."""

from dataclasses import dataclass
from enum import StrEnum


class Tier(StrEnum):
    """Where an expert's weights are, from near to far."""

    RESIDENT = "resident"
    PARKED = "parked"
    DISK = "disk"


@dataclass(frozen=True, slots=True)
class Device:
    """Memory that weights and KV caches share.

    A tensor-parallel group is one device with the sum of its members' budgets.
    """

    name: str
    budget_bytes: int

    def __post_init__(self) -> None:
        if self.budget_bytes <= 0:
            raise ValueError(f"device '{self.name}' needs a budget above zero")


@dataclass(frozen=True, slots=True)
class Expert:
    """Weights that are moved as one, and what moving them costs.

    Adapters and prompts on a base are part of it here: a request to one is a request to its base.
    Times are measured ones, or bytes over bandwidth where nothing has been measured. A `pinned`
    expert is loaded when the manager starts and never unloaded.
    """

    id: str
    weight_bytes: int
    kv_bytes: int
    load_s: float
    """From parked to resident."""

    cold_load_s: float
    """From disk to resident."""

    park_s: float = 0.0
    pinned: bool = False

    def __post_init__(self) -> None:
        if self.weight_bytes <= 0 or self.kv_bytes < 0:
            raise ValueError(f"expert '{self.id}' needs weights above zero bytes")
        if min(self.load_s, self.cold_load_s, self.park_s) < 0:
            raise ValueError(f"expert '{self.id}' can't be moved in negative time")

    @property
    def resident_bytes(self) -> int:
        """What it takes of a device."""
        return self.weight_bytes + self.kv_bytes

    def load_time(self, tier: Tier) -> float:
        """Seconds until it is resident, from a tier."""
        return self.cold_load_s if tier is Tier.DISK else self.load_s


@dataclass(frozen=True, slots=True)
class Arrived:
    """A request whose expert the router has decided. `fallback`: its ranking names another one."""

    request: int
    expert: str
    deadline: float
    fallback: bool = False


@dataclass(frozen=True, slots=True)
class Ended:
    """A dispatched request is over, however it went; or a waiting one's client has hung up."""

    request: int


@dataclass(frozen=True, slots=True)
class Loaded:
    """An expert is resident and verified."""

    expert: str


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """An expert could not be loaded; its bytes on the device are free again."""

    expert: str


@dataclass(frozen=True, slots=True)
class Unloaded:
    """An expert's bytes on its device are free."""

    expert: str


@dataclass(frozen=True, slots=True)
class Lost:
    """The process of a resident, leaving or parked expert has died. Its bytes are free, and what it
    was answering is over: no `Ended` or `Unloaded` follows."""

    expert: str


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time has passed, and nothing else happened."""


Event = Arrived | Ended | Loaded | LoadFailed | Unloaded | Lost | Ticked


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Send a request to its expert, which is resident."""

    request: int
    expert: str


@dataclass(frozen=True, slots=True)
class Load:
    """Bring an expert from where it is to a device; answer with `Loaded` or `LoadFailed`."""

    expert: str
    device: str
    origin: Tier


@dataclass(frozen=True, slots=True)
class Unload:
    """Take an idle expert off its device; answer with `Unloaded`."""

    expert: str
    device: str
    to: Tier


@dataclass(frozen=True, slots=True)
class Drop:
    """Give up a parked expert's copy in host memory."""

    expert: str


@dataclass(frozen=True, slots=True)
class FallBack:
    """The request can't be served by its expert within its deadline: ask the next one."""

    request: int
    reason: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """The request can't be served in time, and has no other expert: 503 with Retry-After."""

    request: int
    retry_after_s: float
    reason: str


Action = Dispatch | Load | Unload | Drop | FallBack | Refuse


@dataclass(frozen=True, slots=True)
class Step:
    """What to do now, in this order, and when to come back with `Ticked` at the latest."""

    actions: tuple[Action, ...]
    wake_at: float | None
