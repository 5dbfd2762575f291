"""What is where: the tiers' books, in which no budget can be overdrawn."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from experts.residency.types import Device, Expert, Tier

LEARNING = 0.3
"""Weight of the last time that a move took against what was known of it."""


class Phase(StrEnum):
    """Where an expert is, or between which tiers."""

    DISK = "disk"
    PARKED = "parked"
    LOADING = "loading"
    RESIDENT = "resident"
    CLOSING = "closing"
    """Resident; finishes what runs, takes nothing new, and is then unloaded."""

    UNLOADING = "unloading"


@dataclass(frozen=True, slots=True)
class Waiting:
    """A request whose expert isn't resident."""

    arrived: float
    deadline: float
    fallback: bool


@dataclass(slots=True, eq=False)
class Holding:
    """One expert as of now."""

    expert: Expert
    phase: Phase = Phase.DISK
    device: str | None = None
    origin: Tier = Tier.DISK
    """Where its last or present load comes from."""

    to: Tier = Tier.DISK
    """Where its present unload leads."""

    resident_since: float = 0.0
    move_began: float = 0.0
    last_used: float = float("-inf")
    running: dict[int, float] = field(default_factory=dict)
    """Requests that it answers, and since when."""

    waiting: dict[int, Waiting] = field(default_factory=dict)
    arrivals_sum: float = 0.0
    """Of the waiting requests' times of arrival."""

    failures: int = 0
    retry_at: float = 0.0

    @property
    def id(self) -> str:
        return self.expert.id

    @property
    def tier(self) -> Tier:
        """The nearest tier that has its whole weights, or will once it is unloaded."""
        if self.phase in (Phase.RESIDENT, Phase.CLOSING):
            return Tier.RESIDENT
        if self.phase is Phase.LOADING:
            return self.origin
        if self.phase is Phase.UNLOADING:
            return self.to
        return Tier.PARKED if self.phase is Phase.PARKED else Tier.DISK

    def waited(self, now: float) -> float:
        """Seconds that its waiting requests have waited, summed up."""
        return len(self.waiting) * now - self.arrivals_sum

    def oldest(self) -> float:
        """When the first of its waiting requests came."""
        return next(iter(self.waiting.values())).arrived


class Memory:
    """Experts on devices and in host memory.

    The times of moves in the experts' records are corrected by those that are observed. Bytes are
    booked when a move begins and given back when it has ended, so that a load from host memory
    counts in both tiers, and a budget holds at every moment.
    """

    def __init__(
        self,
        devices: Iterable[Device],
        experts: Iterable[Expert],
        host_bytes: int,
        homes: Mapping[str, str],
    ) -> None:
        """`homes`: devices of pinned experts that must not be chosen here.

        Raises:
            ValueError: the pinned experts don't fit.
        """
        self.devices = {device.name: device for device in devices}
        self.holdings = {expert.id: Holding(expert) for expert in experts}
        self.free = {name: device.budget_bytes for name, device in self.devices.items()}
        self.host_free = host_bytes
        self.on: dict[str, dict[str, Holding]] = {name: {} for name in self.devices}
        self.parked: dict[str, Holding] = {}
        self.waiting: dict[str, Holding] = {}
        """Experts with waiting requests, the longest waiting group first."""

        self.pinned_to = self._reserve(homes)
        self._room = dict(self.free)

    def _reserve(self, homes: Mapping[str, str]) -> dict[str, str]:
        """Take the bytes of pinned experts for good, the largest first where most is free."""
        pinned = [h.expert for h in self.holdings.values() if h.expert.pinned]
        chosen: dict[str, str] = {}
        for expert in sorted(pinned, key=lambda e: (e.id not in homes, -e.resident_bytes, e.id)):
            emptiest = max(sorted(self.free), key=lambda name: self.free[name])
            device = chosen[expert.id] = homes.get(expert.id, emptiest)
            self.free[device] -= expert.resident_bytes
            if self.free[device] < 0:
                raise ValueError(f"the pinned expert '{expert.id}' does not fit on {device}")
        return chosen

    def open(self, device: str) -> Iterator[Holding]:
        """Experts that could leave the device at once or once they have finished."""
        return (
            h for h in self.on[device].values() if h.phase is Phase.RESIDENT and not h.expert.pinned
        )

    def away(self) -> Iterator[Holding]:
        """Experts that are on no device, nor on their way to one."""
        return (h for h in self.holdings.values() if h.device is None)

    def largest_room(self) -> int:
        """Bytes that one expert can have at most, beside the pinned ones."""
        return max(self._room.values())

    def room(self, device: str) -> int:
        """Bytes of a device that pinned experts don't hold."""
        return self._room[device]

    def place(self, expert: str, device: str) -> None:
        """It is resident already: adopted, or loaded before the clock started."""
        holding = self.holdings[expert]
        known = holding.expert
        self.begin_load(expert, device, 0.0)
        self.end_load(expert, 0.0)
        holding.expert = known

    def park(self, expert: str) -> None:
        """It is parked already."""
        holding = self.holdings[expert]
        self._take_host(holding)
        holding.phase = Phase.PARKED
        self.parked[expert] = holding

    def begin_load(self, expert: str, device: str, now: float) -> Tier:
        holding = self.holdings[expert]
        self._expect(holding, Phase.DISK, Phase.PARKED)
        if not holding.expert.pinned:
            if holding.expert.resident_bytes > self.free[device]:
                raise RuntimeError(f"'{expert}' does not fit into what is free on {device}")
            self.free[device] -= holding.expert.resident_bytes
        holding.origin = holding.tier
        holding.phase, holding.device, holding.move_began = Phase.LOADING, device, now
        self.on[device][expert] = holding
        return holding.origin

    def end_load(self, expert: str, now: float) -> None:
        holding = self.holdings[expert]
        self._expect(holding, Phase.LOADING)
        took = now - holding.move_began
        if holding.origin is Tier.PARKED:
            self._give_host(holding)
            load_s = _learnt(holding.expert.load_s, took)
            holding.expert = replace(holding.expert, load_s=load_s)
        else:
            cold_load_s = _learnt(holding.expert.cold_load_s, took)
            holding.expert = replace(holding.expert, cold_load_s=cold_load_s)
        holding.phase, holding.resident_since, holding.failures = Phase.RESIDENT, now, 0
        holding.last_used = now

    def fail_load(self, expert: str, retry_at: float) -> None:
        holding = self.holdings[expert]
        self._expect(holding, Phase.LOADING)
        if holding.origin is Tier.PARKED:
            # What could not be woken is not trusted again.
            self._give_host(holding)
        self._leave_device(holding)
        holding.phase = Phase.DISK
        holding.failures += 1
        holding.retry_at = retry_at

    def close(self, expert: str) -> None:
        holding = self.holdings[expert]
        self._expect(holding, Phase.RESIDENT)
        if holding.expert.pinned:
            raise RuntimeError(f"'{expert}' is pinned")
        holding.phase = Phase.CLOSING

    def reopen(self, expert: str) -> None:
        holding = self.holdings[expert]
        self._expect(holding, Phase.CLOSING)
        holding.phase = Phase.RESIDENT

    def begin_unload(self, expert: str, to: Tier, now: float) -> str:
        holding = self.holdings[expert]
        self._expect(holding, Phase.CLOSING)
        if holding.running or holding.device is None:
            raise RuntimeError(f"'{expert}' still works")
        if to is Tier.PARKED:
            self._take_host(holding)
        holding.phase, holding.to, holding.move_began = Phase.UNLOADING, to, now
        return holding.device

    def end_unload(self, expert: str, now: float) -> None:
        holding = self.holdings[expert]
        self._expect(holding, Phase.UNLOADING)
        self._leave_device(holding)
        if holding.to is Tier.PARKED:
            park_s = _learnt(holding.expert.park_s, now - holding.move_began)
            holding.expert = replace(holding.expert, park_s=park_s)
            holding.phase = Phase.PARKED
            self.parked[expert] = holding
        else:
            holding.phase = Phase.DISK

    def drop(self, expert: str) -> None:
        holding = self.holdings[expert]
        self._expect(holding, Phase.PARKED)
        self._give_host(holding)
        holding.phase = Phase.DISK

    def lose(self, expert: str, retry_at: float) -> None:
        """Its process has died, wherever it was."""
        holding = self.holdings[expert]
        self._expect(holding, Phase.RESIDENT, Phase.CLOSING, Phase.UNLOADING, Phase.PARKED)
        if holding.phase is Phase.PARKED:
            self._give_host(holding)
        else:
            if holding.phase is Phase.UNLOADING and holding.to is Tier.PARKED:
                self.host_free += holding.expert.weight_bytes
            self._leave_device(holding)
        holding.running.clear()
        holding.phase = Phase.DISK
        holding.failures += 1
        holding.retry_at = retry_at

    def tiers(self) -> Mapping[str, Tier]:
        """The tier of every expert."""
        return {expert: holding.tier for expert, holding in self.holdings.items()}

    def _leave_device(self, holding: Holding) -> None:
        assert holding.device is not None
        if not holding.expert.pinned:
            self.free[holding.device] += holding.expert.resident_bytes
        del self.on[holding.device][holding.id]
        holding.device = None

    def _take_host(self, holding: Holding) -> None:
        if holding.expert.weight_bytes > self.host_free:
            raise RuntimeError(f"'{holding.id}' does not fit into what is free of host memory")
        self.host_free -= holding.expert.weight_bytes

    def _give_host(self, holding: Holding) -> None:
        self.host_free += holding.expert.weight_bytes
        del self.parked[holding.id]

    @staticmethod
    def _expect(holding: Holding, *phases: Phase) -> None:
        if holding.phase not in phases:
            raise RuntimeError(f"'{holding.id}' is {holding.phase}, not {' or '.join(phases)}")


def _learnt(known: float, measured: float) -> float:
    return known + LEARNING * (measured - known)
