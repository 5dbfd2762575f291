"""Policies against each other on the same traces, and what can be said of the differences."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import sqrt

import numpy as np
from scipy.stats import t as student

from eval.simulate.bound import offline_bound
from eval.simulate.consistency import SEGMENT, segment_hit_rate
from eval.simulate.fleet import Fleet
from eval.simulate.traces import Trace
from eval.simulate.world import Run, World
from experts.errors import DataError
from experts.placement import Device, Wanted, Weights, plan_placement
from experts.residency import Forecast, LeastRecentlyUsed, ResidencyManager

WARM_UP = 0.2
"""Share of a trace's time that isn't counted: memory starts empty."""

PLACEMENT_S = 120.0
PLACEMENT_GAP = 0.02
"""Reached long before the time is over, so that the placement depends on no clock."""

CONFIDENCE = 0.95


def _forecast(fleet: Fleet, trace: Trace) -> ResidencyManager:
    policy = Forecast(expert.id for expert in fleet.experts)
    return ResidencyManager(fleet.devices, fleet.experts, policy, host_bytes=fleet.host_bytes)


def _lru(fleet: Fleet, trace: Trace) -> ResidencyManager:
    return ResidencyManager(
        fleet.devices, fleet.experts, LeastRecentlyUsed(), host_bytes=fleet.host_bytes
    )


def _static(fleet: Fleet, trace: Trace) -> ResidencyManager:
    """Placement by the integer program from the trace's own shares, that is, with the future known
    on average. The others are exchanged, least recently used first, in room for the largest."""
    pinned = _placement(fleet, trace)
    experts = [
        replace(expert, pinned=True) if expert.id in pinned else expert for expert in fleet.experts
    ]
    return ResidencyManager(
        fleet.devices,
        experts,
        LeastRecentlyUsed(),
        host_bytes=fleet.host_bytes,
        resident=pinned,
    )


def _placement(fleet: Fleet, trace: Trace) -> dict[str, str]:
    """Expert -> device, of those that always stay."""
    largest = max(expert.resident_bytes for expert in fleet.experts)
    devices = [
        Device(device.name, device.budget_bytes - largest)
        for device in fleet.devices
        if device.budget_bytes > largest
    ]
    if not devices:
        return {}
    counts = Counter(trace.experts)
    wanted = [
        Wanted(expert.id, expert.resident_bytes, counts[expert.id] / len(trace))
        for expert in fleet.experts
        if counts[expert.id]
    ]
    plan = plan_placement(
        devices,
        wanted,
        weights=Weights(balance=0.0),
        time_limit_s=PLACEMENT_S,
        gap=PLACEMENT_GAP,
    )
    return {placed.expert: placed.slot[0] for placed in plan.placed}


MANAGERS: dict[str, Callable[[Fleet, Trace], ResidencyManager]] = {
    "forecast": _forecast,
    "lru": _lru,
    "static": _static,
}
BASELINE = "lru"


@dataclass(frozen=True)
class Figures:
    """One policy on one trace, after the warm-up; waits in seconds, rates per second.

    `link_share` is the share of the time that a device was busy moving experts.
    """

    hit_rate: float
    wait_mean: float
    wait_p99: float
    loads: float
    cold_loads: float
    refused: float
    throughput: float
    link_share: float


@dataclass(frozen=True)
class Trial:
    """All policies on one trace."""

    requests: int
    figures: Mapping[str, Figures]
    offline_bound: float
    segment_hit_rate: float


def compare(fleet: Fleet, trace: Trace, policies: Sequence[str], *, deadline_s: float) -> Trial:
    """
    Raises:
        DataError: the trace asks for experts that the fleet doesn't have.
    """
    trace = replace(trace, experts=tuple(fleet.bases.get(e, e) for e in trace.experts))
    unknown = set(trace.experts) - {expert.id for expert in fleet.experts}
    if unknown:
        raise DataError(f"the fleet has no expert '{min(unknown)}', which the trace asks for")
    start = WARM_UP * trace.duration
    runs = {
        name: World(fleet, trace, MANAGERS[name](fleet, trace), deadline_s=deadline_s).run()
        for name in policies
    }
    return Trial(
        requests=len(trace),
        figures={name: _figures(run, fleet, trace, start) for name, run in runs.items()},
        offline_bound=offline_bound(fleet, trace, list(runs.values()), start=start),
        segment_hit_rate=segment_hit_rate(trace.experts, typical_cache(fleet), segment=SEGMENT),
    )


def typical_cache(fleet: Fleet) -> int:
    """How many experts of the mean size the devices hold."""
    mean = sum(expert.resident_bytes for expert in fleet.experts) / len(fleet.experts)
    return max(1, int(fleet.capacity / mean))


def _figures(run: Run, fleet: Fleet, trace: Trace, start: float) -> Figures:
    counted = trace.at >= start
    waits = run.waited_s[counted]
    return Figures(
        hit_rate=float(run.hit[counted].mean()),
        wait_mean=float(waits.mean()),
        wait_p99=float(np.quantile(waits, 0.99)),
        loads=float(sum(at >= start for at in run.load_times)),
        cold_loads=float(sum(at >= start for at in run.cold_load_times)),
        refused=float(run.refused[counted].sum()),
        throughput=float((counted & ~run.refused).sum() / max(run.end - start, 1e-9)),
        link_share=run.link_busy_s / len(fleet.devices) / max(run.end, 1e-9),
    )


@dataclass(frozen=True)
class Interval:
    """Mean of paired differences with its 95 % confidence interval (Student's t)."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Summary:
    """Means over the trials of one generator or recording.

    `against_lru`: policy -> figure -> how much more than LRU's, paired by trace; empty with one.
    """

    name: str
    trials: int
    requests: float
    figures: Mapping[str, Figures]
    offline_bound: float
    bound_distance: Mapping[str, float]
    segment_hit_rate: float
    against_lru: Mapping[str, Mapping[str, Interval]]


def summarise(name: str, trials: Sequence[Trial]) -> Summary:
    policies = list(trials[0].figures)
    means = {
        policy: Figures(
            **{
                figure: float(np.mean([asdict(trial.figures[policy])[figure] for trial in trials]))
                for figure in Figures.__dataclass_fields__
            }
        )
        for policy in policies
    }
    bound = float(np.mean([trial.offline_bound for trial in trials]))
    others = [policy for policy in policies if policy != BASELINE]
    paired = partial(_paired, trials)
    return Summary(
        name=name,
        trials=len(trials),
        requests=float(np.mean([trial.requests for trial in trials])),
        figures=means,
        offline_bound=bound,
        bound_distance={policy: bound - means[policy].hit_rate for policy in policies},
        segment_hit_rate=float(np.mean([trial.segment_hit_rate for trial in trials])),
        against_lru={
            policy: {figure: paired(policy, figure) for figure in Figures.__dataclass_fields__}
            for policy in others
        }
        if BASELINE in policies and len(trials) > 1
        else {},
    )


def _paired(trials: Sequence[Trial], policy: str, figure: str) -> Interval:
    differences = [
        getattr(trial.figures[policy], figure) - getattr(trial.figures[BASELINE], figure)
        for trial in trials
    ]
    n = len(differences)
    mean = float(np.mean(differences))
    half = float(student.ppf((1 + CONFIDENCE) / 2, n - 1) * np.std(differences, ddof=1) / sqrt(n))
    return Interval(mean, mean - half, mean + half)
