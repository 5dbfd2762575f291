"""`ResidencyManager`: a step function from what happened to what to do.

It does no I/O and reads no clock. Whoever runs real engines, or simulated ones, tells it each event
with the time, carries out the actions, and reports back.
"""

from collections.abc import Iterable, Mapping

from experts.residency.memory import Holding, Memory, Phase, Waiting
from experts.residency.policies import Policy, Switch
from experts.residency.types import (
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
    Step,
    Ticked,
    Tier,
    Unload,
    Unloaded,
)

RECONSIDER_S = 0.25
"""While requests wait for no move that has begun, the choice is made anew so often."""

FIRST_RETRY_S = 1.0
LAST_RETRY_S = 60.0


class ResidencyManager:
    """Keeps the books, holds requests whose expert isn't resident, and carries out switches.

    A device moves one switch at a time: victims finish what runs and leave, then the expert is
    loaded, and all that waits for it is sent at once; meanwhile the device's other experts work.
    `resident` and `parked` say what is already there: adopted, or placed beforehand.
    """

    def __init__(
        self,
        devices: Iterable[Device],
        experts: Iterable[Expert],
        policy: Policy,
        *,
        host_bytes: int,
        resident: Mapping[str, str] | None = None,
        parked: Iterable[str] = (),
    ) -> None:
        self.memory = Memory(devices, experts, host_bytes, resident or {})
        self._policy = policy
        for expert, device in (resident or {}).items():
            self.memory.place(expert, device)
        for expert in parked:
            self.memory.park(expert)
        self._expert_of: dict[int, str] = {}
        self._switches: dict[str, Switch] = {}
        """By device."""

        self._pinned = [
            h.id for h in self.memory.holdings.values() if h.expert.pinned and h.device is None
        ]
        self._actions: list[Action] = []
        self._now = float("-inf")
        self._expires = float("inf")
        """When the first waiting request may be beyond hope."""

    def step(self, now: float, event: Event) -> Step:
        """
        Raises:
            ValueError: the clock went back, or the event can't follow from what went before.
        """
        if now < self._now:
            raise ValueError(f"the clock went back from {self._now} to {now}")
        self._now = now
        self._actions = []
        self._apply(event)
        if now >= self._expires:
            self._expire()
        self._advance()
        return Step(tuple(self._actions), self._wake_at())

    def _apply(self, event: Event) -> None:
        match event:
            case Arrived():
                self._arrived(event)
            case Ended(request):
                self._ended(request)
            case Loaded(expert):
                self._loaded(expert)
            case LoadFailed(expert):
                self._load_failed(expert)
            case Unloaded(expert):
                self._on_a_move(expert, Phase.UNLOADING)
                self.memory.end_unload(expert, self._now)
            case Lost(expert):
                self._lost(expert)
            case Ticked():
                pass

    def _arrived(self, event: Arrived) -> None:
        holding = self.memory.holdings.get(event.expert)
        if holding is None or event.request in self._expert_of:
            raise ValueError(f"request {event.request} for '{event.expert}' can't arrive")
        self._policy.saw(event.expert, self._now)
        self._expert_of[event.request] = event.expert
        if holding.phase is Phase.RESIDENT:
            self._dispatch(holding, event.request)
            return
        waiting = Waiting(self._now, event.deadline, event.fallback)
        if not holding.expert.pinned and (
            holding.expert.resident_bytes > self.memory.largest_room()
        ):
            self._give_up(holding, event.request, waiting, "it fits on no device")
            return
        holding.waiting[event.request] = waiting
        holding.arrivals_sum += self._now
        self.memory.waiting[holding.id] = holding
        self._expires = min(self._expires, self._hopeless_from(holding, waiting))

    def _ended(self, request: int) -> None:
        expert = self._expert_of.pop(request, None)
        if expert is None:
            raise ValueError(f"request {request} is not known, or over already")
        holding = self.memory.holdings[expert]
        if request in holding.running:
            self._policy.served(expert, self._now - holding.running.pop(request))
            holding.last_used = self._now
        else:
            self._forget(holding, request)

    def _loaded(self, expert: str) -> None:
        holding = self._on_a_move(expert, Phase.LOADING)
        self.memory.end_load(expert, self._now)
        self._done_on(holding)
        self._dispatch_waiting(holding)

    def _load_failed(self, expert: str) -> None:
        holding = self._on_a_move(expert, Phase.LOADING)
        self._done_on(holding)
        self.memory.fail_load(expert, self._retry_at(holding))
        if holding.expert.pinned:
            self._pinned.append(expert)

    def _lost(self, expert: str) -> None:
        holding = self.memory.holdings.get(expert)
        if holding is None or holding.phase in (Phase.DISK, Phase.LOADING):
            raise ValueError(f"'{expert}' has no process that could be lost")
        for request in holding.running:
            del self._expert_of[request]
        self.memory.lose(expert, self._retry_at(holding))
        if holding.expert.pinned:
            self._pinned.append(expert)

    def _retry_at(self, holding: Holding) -> float:
        pause = FIRST_RETRY_S * 2.0 ** min(holding.failures, 10)
        return self._now + min(pause, LAST_RETRY_S)

    def _on_a_move(self, expert: str, phase: Phase) -> Holding:
        holding = self.memory.holdings.get(expert)
        if holding is None or holding.phase is not phase:
            raise ValueError(f"'{expert}' is not {phase}")
        return holding

    def _done_on(self, holding: Holding) -> None:
        assert holding.device is not None
        del self._switches[holding.device]

    def _dispatch(self, holding: Holding, request: int) -> None:
        holding.running[request] = self._now
        holding.last_used = self._now
        self._actions.append(Dispatch(request, holding.id))

    def _dispatch_waiting(self, holding: Holding) -> None:
        requests = list(holding.waiting)
        for request in requests:
            self._forget(holding, request)
            self._dispatch(holding, request)

    def _forget(self, holding: Holding, request: int) -> None:
        holding.arrivals_sum -= holding.waiting.pop(request).arrived
        if not holding.waiting:
            holding.arrivals_sum = 0.0
            del self.memory.waiting[holding.id]

    def _hopeless_from(self, holding: Holding, waiting: Waiting) -> float:
        """From then on the request can't be dispatched by its deadline."""
        if holding.phase in (Phase.LOADING, Phase.CLOSING):
            return waiting.deadline
        return waiting.deadline - holding.expert.load_time(holding.tier)

    def _expire(self) -> None:
        self._expires = float("inf")
        for holding in list(self.memory.waiting.values()):
            for request, waiting in list(holding.waiting.items()):
                hopeless_from = self._hopeless_from(holding, waiting)
                if self._now < hopeless_from:
                    self._expires = min(self._expires, hopeless_from)
                    continue
                self._forget(holding, request)
                self._give_up(holding, request, waiting, "it can't be loaded in time")

    def _give_up(self, holding: Holding, request: int, waiting: Waiting, why: str) -> None:
        del self._expert_of[request]
        reason = f"'{holding.id}' is not in memory, and {why}"
        if waiting.fallback:
            self._actions.append(FallBack(request, reason))
            return
        rounds = 1 + len(self.memory.waiting) // len(self.memory.devices)
        seconds = max(1.0, rounds * holding.expert.load_time(holding.tier))
        self._actions.append(Refuse(request, seconds, reason))

    def _advance(self) -> None:
        for device in list(self._switches):
            self._continue(device)
        self._load_pinned()
        while True:
            candidates = [h for h in self.memory.waiting.values() if self._can_load(h)]
            idle = [name for name in self.memory.devices if name not in self._switches]
            if not idle:
                return
            switch = None
            if candidates:
                switch = self._policy.next_switch(self.memory, candidates, idle, self._now)
            elif not self._switches:
                switch = self._policy.make_room(self.memory, idle, self._now)
            if switch is None:
                return
            self._begin(switch)

    def _can_load(self, holding: Holding) -> bool:
        return (
            holding.phase in (Phase.DISK, Phase.PARKED)
            and self._now >= holding.retry_at
            and not any(switch.expert == holding.id for switch in self._switches.values())
        )

    def _load_pinned(self) -> None:
        for expert in list(self._pinned):
            device = self.memory.pinned_to[expert]
            if device not in self._switches and self._can_load(self.memory.holdings[expert]):
                self._pinned.remove(expert)
                self._begin(Switch(expert, device, ()))

    def _begin(self, switch: Switch) -> None:
        self._switches[switch.device] = switch
        for victim in switch.victims:
            self.memory.close(victim)
        self._continue(switch.device)

    def _continue(self, device: str) -> None:
        """Do what can be done of a switch now."""
        switch = self._switches[device]
        holding = None if switch.expert is None else self.memory.holdings[switch.expert]
        if holding is not None and holding.phase is Phase.LOADING:
            return
        victims = [self.memory.holdings[victim] for victim in switch.victims]
        # One that has left may be on another device by now.
        there = [victim for victim in victims if victim.device == device]
        if holding is not None and not holding.waiting and not holding.expert.pinned:
            self._call_off(switch, there)
            return
        for victim in there:
            if victim.phase is Phase.CLOSING and not victim.running:
                self._unload(victim)
        if there:
            return
        if holding is not None and (
            holding.expert.pinned or holding.expert.resident_bytes <= self.memory.free[device]
        ):
            origin = self.memory.begin_load(holding.id, device, self._now)
            self._actions.append(Load(holding.id, device, origin))
        else:
            del self._switches[device]

    def _call_off(self, switch: Switch, there: list[Holding]) -> None:
        """Nobody waits for it any more: whoever has not begun to leave stays."""
        leaving = tuple(v.id for v in there if v.phase is Phase.UNLOADING)
        for victim in there:
            if victim.phase is Phase.CLOSING:
                self.memory.reopen(victim.id)
                self._dispatch_waiting(victim)
        if leaving:
            self._switches[switch.device] = Switch(switch.expert, switch.device, leaving)
        else:
            del self._switches[switch.device]

    def _unload(self, victim: Holding) -> None:
        to = Tier.PARKED
        if victim.expert.weight_bytes > self.memory.host_free:
            drops = self._policy.drops_for(self.memory, victim, self._now)
            for expert in drops or ():
                self.memory.drop(expert)
                self._actions.append(Drop(expert))
            to = Tier.DISK if drops is None else Tier.PARKED
        device = self.memory.begin_unload(victim.id, to, self._now)
        self._actions.append(Unload(victim.id, device, to))

    def _wake_at(self) -> float | None:
        """Next reconsideration, or the first deadline; nothing waits for a move on its way."""
        times = []
        if self._expires < float("inf"):
            times.append(self._expires)
        if self._pinned or any(
            holding.phase in (Phase.DISK, Phase.PARKED) for holding in self.memory.waiting.values()
        ):
            times.append(self._now + RECONSIDER_S)
        return min(times, default=None)
