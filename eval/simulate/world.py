"""A simulated clock and simulated devices for the residency manager, which runs unchanged."""

from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np
from numpy.typing import NDArray

from eval.simulate.fleet import Fleet
from eval.simulate.traces import Trace
from experts.residency import (
    Action,
    Arrived,
    Dispatch,
    Drop,
    Ended,
    Event,
    FallBack,
    Load,
    Loaded,
    Refuse,
    ResidencyManager,
    Ticked,
    Tier,
    Unload,
    Unloaded,
)

Doubles = NDArray[np.float64]

DEADLINE_S = 60.0


@dataclass(frozen=True)
class Run:
    """What became of each request of a trace, and what was moved.

    `waited_s` is from arrival to dispatch, and up to the refusal for one that was refused.
    `before_load_s` is from arrival until its expert's load began: 0 for a hit or an expert on its
    way, infinite where that never happened.
    """

    hit: NDArray[np.bool_]
    waited_s: Doubles
    refused: NDArray[np.bool_]
    before_load_s: Doubles
    load_times: tuple[float, ...]
    cold_load_times: tuple[float, ...]
    link_busy_s: float
    """Summed over the devices, loads and unloads."""

    end: float
    """When the last answer was done."""


Observer = Callable[[float, Event, tuple[Action, ...]], None]


class World:
    """Carries out the manager's actions.

    A resident expert serves what it gets at once (continuous batching), each answer in the time the
    trace gives it. A device moves one expert at a time, in the time the expert's record says.
    """

    def __init__(
        self,
        fleet: Fleet,
        trace: Trace,
        manager: ResidencyManager,
        *,
        deadline_s: float = DEADLINE_S,
        observer: Observer | None = None,
    ) -> None:
        self._experts = {expert.id: expert for expert in fleet.experts}
        self._trace = trace
        self._manager = manager
        self._deadline_s = deadline_s
        self._observer = observer
        self._at = trace.at.tolist()
        self._service = trace.service_s.tolist()
        self._queue: list[tuple[float, int, Event]] = []
        self._sequence = 0
        self._link_free: dict[str, float] = {}
        self._wake: float | None = None
        n = len(trace)
        self._hit = np.zeros(n, dtype=bool)
        self._waited = np.zeros(n)
        self._refused = np.zeros(n, dtype=bool)
        self._before_load = np.full(n, np.inf)
        self._expecting: dict[str, list[int]] = {}
        self._loads: list[float] = []
        self._cold_loads: list[float] = []
        self._busy = 0.0

    def run(self) -> Run:
        """Play the whole trace."""
        upcoming = 0
        now = 0.0
        while upcoming < len(self._at) or self._queue:
            if upcoming < len(self._at) and (
                not self._queue or self._at[upcoming] <= self._queue[0][0]
            ):
                now = self._at[upcoming]
                expert = self._trace.experts[upcoming]
                self._expecting.setdefault(expert, []).append(upcoming)
                event: Event = Arrived(upcoming, expert, now + self._deadline_s)
                upcoming += 1
            else:
                now, _, event = heappop(self._queue)
                if isinstance(event, Ticked):
                    if now != self._wake:
                        continue
                    self._wake = None
            self._step(now, event)
        return Run(
            hit=self._hit,
            waited_s=self._waited,
            refused=self._refused,
            before_load_s=self._before_load,
            load_times=tuple(self._loads),
            cold_load_times=tuple(self._cold_loads),
            link_busy_s=self._busy,
            end=now,
        )

    def _step(self, now: float, event: Event) -> None:
        step = self._manager.step(now, event)
        if self._observer is not None:
            self._observer(now, event, step.actions)
        for action in step.actions:
            self._perform(now, action, event)
        if isinstance(event, Arrived) and self._on_its_way(event.expert):
            self._load_begins(event.expert, now)
        if step.wake_at is not None and (self._wake is None or step.wake_at < self._wake):
            self._wake = max(step.wake_at, now)
            self._push(self._wake, Ticked())

    def _perform(self, now: float, action: Action, event: Event) -> None:
        match action:
            case Dispatch(request, expert):
                self._hit[request] = isinstance(event, Arrived) and event.request == request
                self._waited[request] = now - self._at[request]
                self._load_begins(expert, now)
                self._push(now + self._service[request], Ended(request))
            case Load(expert, device, origin):
                seconds = self._experts[expert].load_time(origin)
                self._loads.append(now)
                if origin is Tier.DISK:
                    self._cold_loads.append(now)
                self._load_begins(expert, now)
                self._move(now, device, seconds, Loaded(expert))
            case Unload(expert, device, to):
                seconds = self._experts[expert].park_s if to is Tier.PARKED else 0.0
                self._move(now, device, seconds, Unloaded(expert))
            case Refuse(request) | FallBack(request):
                self._refused[request] = True
                self._waited[request] = now - self._at[request]
            case Drop():
                pass

    def _on_its_way(self, expert: str) -> bool:
        return self._manager.memory.holdings[expert].phase == "loading"

    def _load_begins(self, expert: str, now: float) -> None:
        for request in self._expecting.pop(expert, ()):
            self._before_load[request] = now - self._at[request]

    def _move(self, now: float, device: str, seconds: float, done: Event) -> None:
        """One after the other over a device's link."""
        end = max(now, self._link_free.get(device, 0.0)) + seconds
        self._link_free[device] = end
        self._busy += seconds
        self._push(end, done)

    def _push(self, at: float, event: Event) -> None:
        self._sequence += 1
        heappush(self._queue, (at, self._sequence, event))
