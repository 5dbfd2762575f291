"""An upper bound on the hit rate of any policy, offline ones included, that loads on demand.

A hit is a request whose expert is resident when it arrives. Number a request's expert e and look at
the gap since the previous request for e. If the policy loads experts only for requests that wait,
then e has been resident from the start of the gap, or from when the load that ended that previous
request's wait began, and it occupied its bytes ever since: what was unloaded in between could have
been loaded again only for a request that came in between, and there was none. So hits are a choice
of gaps whose occupied byte-seconds fit, in every window of time, into all devices' bytes times the
window's length. The best choice, relaxed to fractions of gaps, is a linear program.

This is the reasoning of PFOO-U (Berger, Beckmann and Harchol-Balter, Practical Bounds on Optimal
Caching with Variable Object Sizes, 2018), with windows instead of one constraint for all time, and
with a correction that loads taking time make necessary: a policy that lets a request wait before
its load begins saves the bytes of that time. The bound is therefore given what the runs have saved
in each window, the most of any of them, and holds for every policy that saves no more than that.

It is an upper bound for three more reasons, each of which only raises it: devices are pooled, so
that bytes have no borders; what is in memory when the counting starts is free to choose; and
nothing is lost to bytes that are reserved while an expert loads or leaves.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.sparse import csr_matrix

from eval.simulate.fleet import Fleet
from eval.simulate.traces import Trace
from eval.simulate.world import Run

Doubles = NDArray[np.float64]

WINDOWS = 40


def offline_bound(
    fleet: Fleet, trace: Trace, runs: Sequence[Run], *, start: float = 0.0, windows: int = WINDOWS
) -> float:
    """Highest hit rate among the requests from `start` on, for policies that delay loads by no more
    byte-seconds in any window than one of the runs. No runs: for policies that delay none."""
    if trace.duration <= start:
        return 1.0
    edges = np.linspace(start, trace.duration, windows + 1)
    sizes_of = {expert.id: expert.resident_bytes for expert in fleet.experts}
    sizes = np.array([sizes_of[expert] for expert in trace.experts], dtype=np.float64)
    previous = _previous(trace.experts)
    since = np.where(previous >= 0, trace.at[previous], start)
    saved = np.zeros(windows)
    for run in runs:
        # Of each gap, what passed before the load that began in it.
        waited = np.where(previous >= 0, run.before_load_s[previous], 0.0)
        until = np.minimum(trace.at, since + waited)
        saved = np.maximum(saved, _overlaps(since, until, edges).T @ sizes)
    counted = trace.at >= start
    costs = _overlaps(since[counted], trace.at[counted], edges)
    capacity = fleet.capacity * np.diff(edges) + saved
    return _largest_share(costs, sizes[counted], capacity)


def _largest_share(costs: csr_matrix, sizes: Doubles, capacity: Doubles) -> float:
    """Most gaps, in fractions, whose byte-seconds fit into each window; as a share of all."""
    n = len(sizes)
    scale = float(capacity.max())
    matrix = costs.multiply(sizes[:, None] / scale).T.tocsr()
    result = linprog(
        -np.ones(n), A_ub=matrix, b_ub=capacity / scale, bounds=(0.0, 1.0), method="highs"
    )
    if not result.success:
        raise RuntimeError(f"the bound's linear program failed: {result.message}")
    return float(-result.fun / n)


def _previous(experts: Sequence[str]) -> NDArray[np.int64]:
    """Index of the previous request for the same expert, -1 if there is none."""
    last: dict[str, int] = {}
    previous = np.empty(len(experts), dtype=np.int64)
    for i, expert in enumerate(experts):
        previous[i] = last.get(expert, -1)
        last[expert] = i
    return previous


def _overlaps(since: Doubles, until: Doubles, edges: Doubles) -> csr_matrix:
    """Seconds of each span in each window; shape (n_spans, n_windows)."""
    low = np.maximum(since[:, None], edges[None, :-1])
    high = np.minimum(until[:, None], edges[None, 1:])
    return csr_matrix(np.maximum(high - low, 0.0))
