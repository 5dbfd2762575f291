"""`plan_placement`: which experts, replicas and adapters go on which devices, and why."""

from collections.abc import Iterable, Mapping, Sequence

from experts.errors import InvalidRequest
from experts.placement.program import Program, Solution
from experts.placement.types import Change, Device, Placed, Plan, Slot, Wanted, Weights

TIME_LIMIT_S = 10.0
GAP = 0.001
"""A placement this close to the best, as a share of its value, is good enough."""

_NEARLY = 1e-6
GB = 10**9


def plan_placement(
    devices: Sequence[Device],
    wanted: Sequence[Wanted],
    *,
    groups: Iterable[Slot] = (),
    present: Iterable[tuple[str, Slot]] = (),
    weights: Weights | None = None,
    time_limit_s: float = TIME_LIMIT_S,
    gap: float = GAP,
) -> Plan:
    """The best placement found in time. `groups` are devices that can share a model
    (tensor-parallel); `present` are the replicas that there are.

    Raises:
        InvalidRequest: devices, groups and experts contradict each other.
        DeadlineExceeded: nothing was found in time.
    """
    slots = _slots(devices, groups)
    _check(wanted, slots)
    asked = {expert.id for expert in wanted}
    replicas = frozenset(present)
    kept = frozenset(replica for replica in replicas if replica[0] in asked)
    program = Program(devices, slots, wanted, kept, weights or Weights())
    solution = program.solve(time_limit_s, gap)
    return _explained(devices, slots, wanted, replicas, solution)


def expected_loads(
    category_shares: Mapping[str, float],
    experts_of: Mapping[str, Mapping[str, float]],
    *,
    rate: float,
    device_s: Mapping[str, float],
) -> dict[str, float]:
    """Load of each expert, from what a composition's router foresees.

    `category_shares` are the categories' shares of all requests, `experts_of` the shares of each
    category's requests that go to each expert, `rate` all requests per second, and `device_s` the
    seconds of a device that an answer of each expert takes.
    """
    loads = dict.fromkeys(device_s, 0.0)
    for category, share in category_shares.items():
        for expert, part in experts_of.get(category, {}).items():
            loads[expert] += share * part * rate * device_s[expert]
    return loads


def _slots(devices: Sequence[Device], groups: Iterable[Slot]) -> dict[int, list[Slot]]:
    names = {device.name for device in devices}
    if not names or len(names) < len(devices):
        raise InvalidRequest("devices need names of their own, and there must be one", param="name")
    slots: dict[int, list[Slot]] = {1: [(device.name,) for device in devices]}
    for group in dict.fromkeys(groups):
        if len(set(group)) < max(len(group), 2) or not names >= set(group):
            raise InvalidRequest(
                f"a group must name two or more of the devices, each once: {', '.join(group)}",
                param="groups",
            )
        slots.setdefault(len(group), []).append(group)
    return slots


def _check(wanted: Sequence[Wanted], slots: Mapping[int, Sequence[Slot]]) -> None:
    by_id = {expert.id: expert for expert in wanted}
    if len(by_id) < len(wanted):
        raise InvalidRequest("an expert is wanted twice", param="id")
    for expert in wanted:
        if expert.bytes <= 0 or expert.load < 0:
            raise InvalidRequest(f"'{expert.id}' needs bytes above zero, and a load", param="bytes")
        if not 1 <= expert.min_replicas <= expert.max_replicas:
            raise InvalidRequest(
                f"'{expert.id}' needs 1 <= min_replicas <= max_replicas", param="min_replicas"
            )
        base = None if expert.base is None else by_id.get(expert.base)
        if expert.base is not None and (base is None or base.base is not None):
            raise InvalidRequest(
                f"'{expert.id}' stands on '{expert.base}', which is no model here", param="base"
            )
        if base is None and expert.tensor_parallel not in slots:
            raise InvalidRequest(
                f"'{expert.id}' wants {expert.tensor_parallel} devices, and there is no such group",
                param="tensor_parallel",
            )


def _explained(
    devices: Sequence[Device],
    slots: Mapping[int, Sequence[Slot]],
    wanted: Sequence[Wanted],
    present: frozenset[tuple[str, Slot]],
    solution: Solution,
) -> Plan:
    by_id = {expert.id: expert for expert in wanted}
    used = {device.name: 0.0 for device in devices}
    load = dict.fromkeys(used, 0.0)
    counts: dict[str, int] = {}
    served: dict[str, float] = {}
    for (name, slot), part in solution.loads.items():
        counts[name] = counts.get(name, 0) + 1
        served[name] = served.get(name, 0.0) + part
        for device in slot:
            used[device] += by_id[name].bytes / len(slot)
            load[device] += part / len(slot)
    free = {device.name: device.budget_bytes - used[device.name] for device in devices}
    total = sum(expert.load for expert in wanted)
    placed = tuple(
        Placed(name, slot, part, _why(by_id[name], slot, part, counts[name], present))
        for (name, slot), part in sorted(solution.loads.items())
    )
    now = frozenset(solution.loads)
    stops = [Change("stop", *replica) for replica in sorted(present - now)]
    starts = [Change("start", *replica) for replica in sorted(now - present)]
    # Whatever stands on a base stops before it, and starts after it.
    stops.sort(key=lambda c: c.expert not in by_id or by_id[c.expert].base is None)
    starts.sort(key=lambda c: by_id[c.expert].base is not None)
    return Plan(
        placed=placed,
        unplaced={
            expert.id: _why_not(expert, by_id, slots, free, counts, devices)
            for expert in wanted
            if expert.id not in counts
        },
        short={
            expert.id: f"{served[expert.id]:.3f} of its load of {expert.load:.3f}: "
            "its devices are busy with more, and more replicas do not fit or are not allowed"
            for expert in wanted
            if expert.id in counts and served[expert.id] < expert.load * (1 - 1e-4)
        },
        changes=(*stops, *starts),
        served_share=sum(served.values()) / total if total else 1.0,
        busiest=max(load[device.name] / device.capacity for device in devices),
        used_bytes={name: round(used[name]) for name in used},
        optimal=solution.optimal,
        gap=solution.gap,
    )


def _why(
    expert: Wanted, slot: Slot, part: float, replicas: int, present: frozenset[tuple[str, Slot]]
) -> str:
    reasons = []
    if (expert.id, slot) in present:
        reasons.append("it is there already")
    if expert.base is not None:
        reasons.append(f"its base '{expert.base}' is there")
    if len(slot) > 1:
        reasons.append(f"it is split over {len(slot)} devices")
    if replicas > 1:
        reasons.append(f"one of {replicas} replicas")
    reasons.append(
        f"serves a load of {part:.3f}" if part > _NEARLY else "serves others or keeps a promise"
    )
    return "; ".join(reasons)


def _why_not(
    expert: Wanted,
    by_id: Mapping[str, Wanted],
    slots: Mapping[int, Sequence[Slot]],
    free: Mapping[str, float],
    counts: Mapping[str, int],
    devices: Sequence[Device],
) -> str:
    if expert.base is not None and expert.base not in counts:
        return f"its base '{expert.base}' has no place"
    if expert.load <= _NEARLY:
        return "nothing is asked of it"
    size = (by_id[expert.base] if expert.base else expert).tensor_parallel
    on_each = expert.bytes / size
    budget = {device.name: device.budget_bytes for device in devices}
    needs = (
        f"it needs {on_each / GB:.1f} GB on {'a device' if size == 1 else 'each of ' + str(size)}"
    )
    largest = max(min(budget[device] for device in slot) for slot in slots[size])
    if on_each > largest:
        return f"{needs}, and the largest has {largest / GB:.1f} GB"
    room = max(min(free[device] for device in slot) for slot in slots[size])
    if on_each > room:
        return f"{needs}, and {room / GB:.1f} GB is free: what is there serves more load in it"
    return f"its load of {expert.load:.3f} is not worth starting it, or every device is busy"
