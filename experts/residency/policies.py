"""What to load next, where, and at whose cost: the forecast, and least recently used."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import pow
from typing import Protocol

from experts.residency.demand import Demand
from experts.residency.memory import Holding, Memory, Phase


@dataclass(frozen=True, slots=True)
class Switch:
    """Load an expert to a device once its victims have left; or none: they leave to make room."""

    expert: str | None
    device: str
    victims: tuple[str, ...]


class Policy(Protocol):
    """Chooses; the manager carries out. `candidates` are experts with waiting requests, none of
    which is resident, being moved, or backing off; `idle` are devices that move nothing."""

    def saw(self, expert: str, now: float) -> None:
        """A request for an expert has arrived."""

    def served(self, expert: str, seconds: float) -> None:
        """An answer of an expert has taken so long."""

    def next_switch(
        self, memory: Memory, candidates: Sequence[Holding], idle: Sequence[str], now: float
    ) -> Switch | None:
        """The next thing to do on an idle device, if anything is worth it now."""

    def make_room(self, memory: Memory, idle: Sequence[str], now: float) -> Switch | None:
        """Who should leave an idle device although nobody waits for its room yet."""

    def drops_for(self, memory: Memory, leaving: Holding, now: float) -> list[str] | None:
        """Parked experts to drop so that one that leaves its device can be parked; None if it is
        not worth that, and goes to disk."""


@dataclass(frozen=True, slots=True)
class ForecastSettings:
    """Of the forecasting policy; the defaults were tuned on simulated traces of seeds 1 to 3."""

    fast_s: float = 60.0
    slow_s: float = 900.0
    fast_weight: float = 0.2
    horizon_s: float = 40.0
    """An expert's absence is counted as a loss for so long."""

    dwell_loads: float = 0.5
    """Having been loaded, an expert stays for so many times its load time at least."""

    turn_loads: float = 4.0
    """The same for an expert in demand, which would be asked for again before it could be back;
    unless somebody else's deadline is near."""

    urgent_loads: float = 2.0
    """A deadline is near when so many load times are left."""

    aging_s: float = 10.0
    """After so long a wait a request counts double in the order of loads."""

    service_s: float = 2.0
    """How long an answer takes, as long as nothing is known of an expert's answers."""

    tail: float = 2.0
    """Exponent of a load time in what it costs to wait for it: above 1, long waits count more."""

    most_ready: int = 4
    """Devices that are kept ready for any expert at most."""


_Losses = list[tuple[float, Holding]]
"""Those that may leave a device, and the waiting each one's absence would cause a second."""

SERVICE_LEARNING = 0.1
"""Weight of the last answer's time against those before."""

CONSIDERED = 8
"""Waiting groups that are looked at in one choice, so that it takes bounded time."""


class Forecast:
    """Expected waiting decides.

    The loss of unloading an expert is the waiting that its absence is expected to cause: its
    forecast rate times its load time. Victims are those that free the bytes at the least loss each,
    on the device where that and the time until they have left cost least. Waiting groups are loaded
    in the order of requests per second of loading (Smith's rule, which is optimal for the mean)
    with a weight that grows with the longest wait (for the rest, so that nobody starves).

    What was just loaded stays for its dwell time, come what may, so that loads are bounded; and an
    expert that would be asked for again before it could be back keeps its turn, so that two that
    want the same memory work one after the other instead of thrashing. Memory on some devices is
    emptied ahead of need, as long as a miss is likelier than the return of who would leave. Host
    memory goes to those whose load from disk would be the worst to wait for.
    """

    def __init__(self, experts: Iterable[str], settings: ForecastSettings | None = None) -> None:
        self.settings = settings or ForecastSettings()
        self._demand = Demand(
            experts,
            fast_s=self.settings.fast_s,
            slow_s=self.settings.slow_s,
            fast_weight=self.settings.fast_weight,
        )
        self._service_s: dict[str, float] = {}

    def saw(self, expert: str, now: float) -> None:
        self._demand.saw(expert, now)

    def served(self, expert: str, seconds: float) -> None:
        known = self._service_s.get(expert, self.settings.service_s)
        self._service_s[expert] = known + SERVICE_LEARNING * (seconds - known)

    def dwell(self, holding: Holding) -> float:
        """Seconds that an expert stays at least, from when it became resident."""
        return self.settings.dwell_loads * holding.expert.load_time(holding.origin)

    def _turn(self, holding: Holding, now: float) -> float:
        """Seconds that it stays if nobody's deadline is near."""
        loads = holding.expert.load_time(holding.origin)
        in_demand = self._demand.rate(holding.id, now) * loads >= 1.0
        return self.settings.turn_loads * loads if in_demand else self.dwell(holding)

    def _is_urgent(self, holding: Holding, now: float) -> bool:
        """The first of the waiting requests must be served soon."""
        deadline = next(iter(holding.waiting.values())).deadline
        loads = self.settings.urgent_loads * holding.expert.load_time(holding.tier)
        return now + self.settings.service_s + loads >= deadline

    def next_switch(
        self, memory: Memory, candidates: Sequence[Holding], idle: Sequence[str], now: float
    ) -> Switch | None:
        ranked = sorted(candidates, key=lambda h: (-self._priority(h, now), h.id))
        losses: dict[tuple[str, bool], _Losses] = {}
        for holding in ranked[:CONSIDERED]:
            switch = self._switch(memory, holding, idle, losses, now)
            if switch is not None:
                return switch
        return None

    def make_room(self, memory: Memory, idle: Sequence[str], now: float) -> Switch | None:
        largest = max((h.expert.resident_bytes for h in memory.away()), default=0)
        needed = {
            device: min(largest, memory.room(device)) - memory.free[device]
            for device in memory.devices
        }
        ready = sum(1 for missing in needed.values() if missing <= 0)
        if ready == len(needed) or ready >= self.settings.most_ready:
            return None
        misses = self._misses(memory, now)
        best: tuple[float, Switch] | None = None
        for device in idle:
            if needed[device] <= 0:
                continue
            losses = {
                h: loss
                for loss, h in self._losses(memory, device, now, urgent=False)
                if not h.running
            }
            ordered = sorted(losses, key=lambda h: (losses[h] / h.expert.resident_bytes, h.id))
            chosen = _enough(ordered, needed[device])
            if chosen is None:
                continue
            loss = sum(losses[victim] for victim in chosen)
            gain = misses * max(victim.expert.park_s for victim in chosen) / (ready + 1)
            if gain > loss and (best is None or loss < best[0]):
                best = loss, Switch(None, device, tuple(victim.id for victim in chosen))
        return best[1] if best else None

    def drops_for(self, memory: Memory, leaving: Holding, now: float) -> list[str] | None:
        needed = leaving.expert.weight_bytes - memory.host_free
        saved = self._saved_by_parking(leaving, now)
        ranked = sorted(
            (self._saved_by_parking(h, now) / h.expert.weight_bytes, h.id, h)
            for h in memory.parked.values()
            if h.phase is Phase.PARKED
        )
        drops: list[str] = []
        for density, expert, holding in ranked:
            if needed <= 0:
                break
            saved -= density * holding.expert.weight_bytes
            needed -= holding.expert.weight_bytes
            drops.append(expert)
        return drops if needed <= 0 and saved >= 0 else None

    def _priority(self, holding: Holding, now: float) -> float:
        age = now - holding.oldest()
        weight = 1.0 + age / self.settings.aging_s
        return len(holding.waiting) * weight / max(holding.expert.load_time(holding.tier), 1e-3)

    def _saved_by_parking(self, holding: Holding, now: float) -> float:
        expert = holding.expert
        tail = self.settings.tail
        saved = pow(expert.cold_load_s, tail) - pow(expert.load_s, tail)
        return self._demand.rate(holding.id, now) * saved

    def _misses(self, memory: Memory, now: float) -> float:
        """Expected requests per second for experts that are on no device."""
        there = (holding.id for holdings in memory.on.values() for holding in holdings.values())
        return self._demand.total(now) - sum(self._demand.rate(expert, now) for expert in there)

    def _switch(
        self,
        memory: Memory,
        holding: Holding,
        idle: Sequence[str],
        losses: dict[tuple[str, bool], _Losses],
        now: float,
    ) -> Switch | None:
        """The best place for an expert; None if nobody may leave for it yet."""
        urgent = self._is_urgent(holding, now)
        best: tuple[float, Switch] | None = None
        for device in idle:
            if holding.expert.resident_bytes > memory.room(device):
                continue
            if (device, urgent) not in losses:
                losses[device, urgent] = self._losses(memory, device, now, urgent=urgent)
            found = self._victims(memory, holding, device, losses[device, urgent])
            if found is None:
                continue
            cost, victims = found
            if best is None or cost < best[0]:
                best = cost, Switch(holding.id, device, victims)
        return best[1] if best else None

    def _losses(self, memory: Memory, device: str, now: float, *, urgent: bool) -> _Losses:
        """Loss of each expert that may leave a device: the waiting, in seconds per second, that
        its absence is expected to cause."""
        return [
            (self._loss(h, now), h)
            for h in memory.open(device)
            if now - h.resident_since >= (self.dwell(h) if urgent else self._turn(h, now))
        ]

    def _loss(self, holding: Holding, now: float) -> float:
        return self._demand.rate(holding.id, now) * holding.expert.load_s

    def _victims(
        self, memory: Memory, holding: Holding, device: str, losses: _Losses
    ) -> tuple[float, tuple[str, ...]] | None:
        """What making room costs in waiting, and who leaves; None if there are not enough."""
        n = len(holding.waiting)
        horizon = self.settings.horizon_s
        costs = {h: loss * horizon + n * self._delay(h) for loss, h in losses}
        ordered = sorted(costs, key=lambda h: (costs[h] / h.expert.resident_bytes, h.id))
        chosen = _enough(ordered, holding.expert.resident_bytes - memory.free[device])
        if chosen is None:
            return None
        # They leave at the same time, as far as they must finish first.
        delay = max((self._delay(victim) for victim in chosen), default=0.0)
        loss = sum(loss for loss, h in losses if h in chosen)
        return loss * horizon + n * delay, tuple(victim.id for victim in chosen)

    def _delay(self, victim: Holding) -> float:
        """Guess of how long it takes to leave: what runs now is taken for a whole answer, which is
        exact for times without memory and allows for the last of several otherwise."""
        seconds = self._service_s.get(victim.id, self.settings.service_s)
        return victim.expert.park_s + (seconds if victim.running else 0.0)


class LeastRecentlyUsed:
    """First come, first served, and the least recently used make room: idle ones if there are
    enough, on the device where they have been idle longest. With pinned experts chosen
    beforehand it is static placement, which exchanges the others in the room that is left."""

    def saw(self, expert: str, now: float) -> None:
        """Recency is all it knows, and the manager keeps that."""

    def served(self, expert: str, seconds: float) -> None:
        """Nor does it matter to it how long answers take."""

    def next_switch(
        self, memory: Memory, candidates: Sequence[Holding], idle: Sequence[str], now: float
    ) -> Switch | None:
        for holding in sorted(candidates, key=lambda h: (h.oldest(), h.id)):
            options = [
                (*found, device)
                for device in idle
                if (found := self._victims(memory, holding, device)) is not None
            ]
            if options:
                _, _, victims, device = min(options)
                return Switch(holding.id, device, victims)
        return None

    def make_room(self, memory: Memory, idle: Sequence[str], now: float) -> Switch | None:
        return None

    def drops_for(self, memory: Memory, leaving: Holding, now: float) -> list[str] | None:
        needed = leaving.expert.weight_bytes - memory.host_free
        drops: list[str] = []
        for holding in sorted(memory.parked.values(), key=lambda h: (h.last_used, h.id)):
            if needed <= 0:
                break
            if holding.phase is Phase.PARKED:
                drops.append(holding.id)
                needed -= holding.expert.weight_bytes
        return drops if needed <= 0 else None

    def _victims(
        self, memory: Memory, holding: Holding, device: str
    ) -> tuple[bool, float, tuple[str, ...]] | None:
        """Whether one must finish first, when the latest was used, and who; None if too few."""
        needed = holding.expert.resident_bytes - memory.free[device]
        ordered = sorted(memory.open(device), key=lambda h: (bool(h.running), h.last_used, h.id))
        chosen = _enough(ordered, needed)
        if chosen is None:
            return None
        busy = any(victim.running for victim in chosen)
        latest = max((victim.last_used for victim in chosen), default=float("-inf"))
        return busy, latest, tuple(victim.id for victim in chosen)


def _enough(ordered: Sequence[Holding], needed: int) -> list[Holding] | None:
    """Holdings in the order of leaving until the bytes are free, less those that the later ones
    have made needless; None if all together are too small."""
    chosen: list[Holding] = []
    for holding in ordered:
        if needed <= 0:
            break
        chosen.append(holding)
        needed -= holding.expert.resident_bytes
    if needed > 0:
        return None
    for holding in reversed(chosen[:-1]):
        if needed + holding.expert.resident_bytes <= 0:
            chosen.remove(holding)
            needed += holding.expert.resident_bytes
    return chosen
