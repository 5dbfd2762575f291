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
    """Of the forecasting policy; the defaults were tuned on simulated traces."""

    fast_s: float = 60.0
    slow_s: float = 600.0
    fast_weight: float = 0.3
    horizon_s: float = 10.0
    """An expert's absence is counted as a loss for so long."""

    patience: float = 0.1
    """A group waits until it has waited this share of the loss that its load would cause."""

    dwell_loads: float = 1.0
    """Having been loaded, an expert stays for so many times its load time at least."""

    aging_s: float = 10.0
    """After so long a wait a request counts double in the order of loads."""

    service_s: float = 2.0
    """Guess of how long a busy expert takes to finish once nothing new is sent to it."""

    tail: float = 1.5
    """Exponent of a load time in what it costs to wait for it: above 1, long waits count more."""

    most_ready: int = 4
    """Devices that are kept ready for any expert at most."""


CONSIDERED = 8
"""Waiting groups that are looked at in one choice, so that it takes bounded time."""


class Forecast:
    """Expected waiting decides.

    The loss of unloading an expert is the waiting that it is expected to cause within the horizon:
    its forecast rate times its load time. Victims are those that free the bytes at the least loss
    each. A waiting group is loaded in the order of requests per second of loading (Smith's rule,
    which is optimal for the mean) with a weight that grows with the longest wait (for the rest),
    where loss and further waiting are least, and not before it has waited a share of the loss: so
    a burst of cold experts can't push out the hot ones, and nothing starves. What was just loaded
    stays for its dwell time, come what may, so that loads are bounded and two experts that want
    the same memory take turns instead of thrashing.
    """

    def __init__(self, experts: Iterable[str], settings: ForecastSettings | None = None) -> None:
        self.settings = settings or ForecastSettings()
        self._demand = Demand(
            experts,
            fast_s=self.settings.fast_s,
            slow_s=self.settings.slow_s,
            fast_weight=self.settings.fast_weight,
        )

    def saw(self, expert: str, now: float) -> None:
        self._demand.saw(expert, now)

    def dwell(self, holding: Holding) -> float:
        """Seconds that an expert stays at least, from when it became resident."""
        return self.settings.dwell_loads * holding.expert.load_time(holding.origin)

    def next_switch(
        self, memory: Memory, candidates: Sequence[Holding], idle: Sequence[str], now: float
    ) -> Switch | None:
        ranked = sorted(candidates, key=lambda h: (-self._priority(h, now), h.id))
        losses: dict[str, list[tuple[float, Holding]]] = {}
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
            losses = {h: loss for loss, h in self._losses(memory, device, now) if not h.running}
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
        losses: dict[str, list[tuple[float, Holding]]],
        now: float,
    ) -> Switch | None:
        """The best place for an expert; None if that is not free yet, or not worth it yet."""
        best: tuple[float, str, float, tuple[str, ...]] | None = None
        for device in idle:
            if holding.expert.resident_bytes > memory.room(device):
                continue
            if device not in losses:
                losses[device] = self._losses(memory, device, now)
            found = self._victims(memory, holding, device, losses[device], now)
            if found is None:
                continue
            loss, delay, victims = found
            cost = loss + delay * len(holding.waiting)
            if best is None or cost < best[0]:
                best = cost, device, loss, victims
        if best is None:
            return None
        _, device, loss, victims = best
        if holding.waited(now) < self.settings.patience * loss:
            return None
        return Switch(holding.id, device, victims)

    def _losses(self, memory: Memory, device: str, now: float) -> list[tuple[float, Holding]]:
        """Loss of each expert that may leave a device: the waiting, in seconds per second, that
        its absence is expected to cause."""
        return [
            (self._loss(h, now), h)
            for h in memory.open(device)
            if now - h.resident_since >= self.dwell(h)
        ]

    def _loss(self, holding: Holding, now: float) -> float:
        return self._demand.rate(holding.id, now) * holding.expert.load_s

    def _victims(
        self,
        memory: Memory,
        holding: Holding,
        device: str,
        losses: Sequence[tuple[float, Holding]],
        now: float,
    ) -> tuple[float, float, tuple[str, ...]] | None:
        """Loss, delay and names of those that make room; None if there are not enough."""
        needed = holding.expert.resident_bytes - memory.free[device]
        n = len(holding.waiting)

        def cost(entry: tuple[float, Holding]) -> float:
            loss, victim = entry
            return loss * self.settings.horizon_s + n * self._delay(victim)

        ordered = sorted(losses, key=lambda e: (cost(e) / e[1].expert.resident_bytes, e[1].id))
        chosen = _enough([victim for _, victim in ordered], needed)
        if chosen is None:
            return None
        delay = max((self._delay(victim) for victim in chosen), default=0.0)
        names = tuple(victim.id for victim in chosen)
        loss = sum(loss for loss, victim in losses if victim.id in names)
        return loss * self.settings.horizon_s, delay, names

    def _delay(self, victim: Holding) -> float:
        return victim.expert.park_s + (self.settings.service_s if victim.running else 0.0)


class LeastRecentlyUsed:
    """First come, first served, and the least recently used make room: idle ones if there are
    enough, on the device where they have been idle longest. With pinned experts chosen
    beforehand it is static placement, which exchanges the others in the room that is left."""

    def saw(self, expert: str, now: float) -> None:
        """Recency is all it knows, and the manager keeps that."""

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
