"""A second set of books, kept from the manager's actions and the host's events alone."""

from collections.abc import Iterable, Sequence

from experts.residency import (
    Action,
    Arrived,
    Device,
    Dispatch,
    Drop,
    Ended,
    Event,
    Expert,
    FallBack,
    Load,
    Loaded,
    LoadFailed,
    Lost,
    Refuse,
    Tier,
    Unload,
    Unloaded,
)


class Audit:
    """Raises when an action breaks a rule: budgets, busy and pinned experts, order of moves."""

    def __init__(self, devices: Sequence[Device], experts: Iterable[Expert], host_bytes: int):
        self.experts = {expert.id: expert for expert in experts}
        self.budgets = {device.name: device.budget_bytes for device in devices}
        self.host_bytes = host_bytes
        self.on: dict[str, set[str]] = {device.name: set() for device in devices}
        self.parked: set[str] = set()
        self.loading: dict[str, Tier] = {}
        self.unloading: dict[str, Tier] = {}
        self.resident: dict[str, float] = {}
        """Since when."""

        self.waiting: dict[int, str] = {}
        self.running: dict[int, str] = {}
        self.loads: list[tuple[float, str]] = []
        self.stays: list[tuple[str, float]] = []
        """Experts that left, and how long they had been resident."""

        self.over: list[tuple[int, str]] = []

    def saw(self, now: float, event: Event, actions: Iterable[Action]) -> None:
        self._event(now, event)
        for action in actions:
            self._action(now, action)
            self._check_budgets()

    def device_of(self, expert: str) -> str:
        return next(device for device, there in self.on.items() if expert in there)

    def _event(self, now: float, event: Event) -> None:
        match event:
            case Arrived(request, expert):
                self.waiting[request] = expert
            case Ended(request):
                del (self.running if request in self.running else self.waiting)[request]
            case Loaded(expert):
                if self.loading.pop(expert) is Tier.PARKED:
                    self.parked.remove(expert)
                self.resident[expert] = now
            case LoadFailed(expert):
                if self.loading.pop(expert) is Tier.PARKED:
                    self.parked.remove(expert)
                self.on[self.device_of(expert)].remove(expert)
            case Unloaded(expert):
                if self.unloading.pop(expert) is Tier.PARKED:
                    self.parked.add(expert)
                self.on[self.device_of(expert)].remove(expert)

            case Lost(expert):
                self.unloading.pop(expert, None)
                self.resident.pop(expert, None)
                self.parked.discard(expert)
                for there in self.on.values():
                    there.discard(expert)
                self.running = {r: e for r, e in self.running.items() if e != expert}

    def _action(self, now: float, action: Action) -> None:
        match action:
            case Dispatch(request, expert):
                assert self.waiting.pop(request) == expert
                assert expert in self.resident, "sent to an expert that is not resident"
                self.running[request] = expert
                self.over.append((request, "dispatched"))
            case Load(expert, device, origin):
                assert not any(expert in there for there in self.on.values())
                assert not self.loading_on(device), "two loads at once on a device"
                assert (origin is Tier.PARKED) == (expert in self.parked)
                assert expert in self.waiting.values() or self.experts[expert].pinned
                self.on[device].add(expert)
                self.loading[expert] = origin
                self.loads.append((now, expert))
            case Unload(expert, device, to):
                assert expert in self.on[device]
                assert expert not in self.running.values(), "a busy expert was unloaded"
                assert not self.experts[expert].pinned, "a pinned expert was unloaded"
                self.stays.append((expert, now - self.resident.pop(expert)))
                self.unloading[expert] = to
            case Drop(expert):
                assert expert not in self.loading
                self.parked.remove(expert)
            case Refuse(request) | FallBack(request):
                del self.waiting[request]
                self.over.append((request, "given up"))

    def loading_on(self, device: str) -> set[str]:
        return self.on[device] & set(self.loading)

    def _check_budgets(self) -> None:
        for device, there in self.on.items():
            used = sum(self.experts[expert].resident_bytes for expert in there)
            assert used <= self.budgets[device], f"{device} is over its budget"
        leaving = {expert for expert, to in self.unloading.items() if to is Tier.PARKED}
        used = sum(self.experts[expert].weight_bytes for expert in self.parked | leaving)
        assert used <= self.host_bytes, "host memory is over its budget"
