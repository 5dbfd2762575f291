"""The integer program of a placement, for HiGHS.

Variables: x[e, s] is 1 if expert e has a replica on slot s (a device, or a tensor-parallel group);
f[e, s] is the load that it serves there; p[e] is 1 if an expert that must have several replicas is
placed at all; z is the load over capacity of the busiest device. With total load L and total bytes
B the value is

    sum f / L - balance z - sum over (e, s) of (stability change + thrift x) bytes[e] / B

where change is 1 - x or x, whichever differs from the present placement. Subject to: bytes on each
device within its budget; f <= load x; sum_s f <= load; load on each device within its capacity
times z, z <= 1; replicas between min_replicas p and max_replicas; x[adapter, s] <= x[base, s].
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_matrix

from experts.errors import DeadlineExceeded
from experts.placement.types import Device, Slot, Wanted, Weights

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Solution:
    """Replicas with their loads. `value` is the program's."""

    loads: Mapping[tuple[str, Slot], float]
    value: float
    optimal: bool
    gap: float


class Program:
    """Rows and columns, and their solution."""

    def __init__(
        self,
        devices: Sequence[Device],
        slots: Mapping[int, Sequence[Slot]],
        wanted: Sequence[Wanted],
        present: frozenset[tuple[str, Slot]],
        weights: Weights,
    ) -> None:
        """`slots`: those of each size, which is a number of devices."""
        self._devices, self._wanted = devices, wanted
        self._by_id = {expert.id: expert for expert in wanted}
        self._pairs = [
            (expert.id, slot)
            for expert in wanted
            for slot in slots.get(self._foundation(expert).tensor_parallel, ())
        ]
        self._column = {pair: i for i, pair in enumerate(self._pairs)}
        n = len(self._pairs)
        self._several = {
            expert.id: 2 * n + i for i, expert in enumerate(e for e in wanted if e.min_replicas > 1)
        }
        self._busiest = 2 * n + len(self._several)
        self._columns = self._busiest + 1
        self._entries: list[tuple[int, int, float]] = []
        self._row_bounds: list[float] = []
        self._objective = np.zeros(self._columns)
        self._constant = 0.0
        self._present = present
        self._value(weights)
        self._constrain()

    def solve(self, time_limit_s: float, gap: float) -> Solution:
        """The best placement found in time, and never one worse than the present.

        Raises:
            DeadlineExceeded: not even a bad placement was found in time.
        """
        found = self._milp(np.zeros(self._columns), self._upper_bounds(), time_limit_s, gap)
        if found is not None and found.optimal:
            return found
        # HiGHS was not told of the present placement, and may have had no time to find it.
        stay = self._staying(time_limit_s, gap)
        options = [solution for solution in (found, stay) if solution is not None]
        if not options:
            raise DeadlineExceeded(
                f"no placement was found within {time_limit_s:g} s: nothing is changed"
            )
        return max(options, key=lambda solution: solution.value)

    def _staying(self, time_limit_s: float, gap: float) -> Solution | None:
        """The present placement with the best loads, if it is allowed."""
        lower, upper = np.zeros(self._columns), self._upper_bounds()
        for i, pair in enumerate(self._pairs):
            lower[i] = upper[i] = float(pair in self._present)
        stay = self._milp(lower, upper, time_limit_s, gap)
        return None if stay is None else replace(stay, optimal=False, gap=1.0)

    def _upper_bounds(self) -> Doubles:
        n = len(self._pairs)
        upper = np.ones(self._columns)
        upper[n : 2 * n] = [self._by_id[expert].load for expert, _ in self._pairs]
        return upper

    def _milp(
        self, lower: Doubles, upper: Doubles, time_limit_s: float, gap: float
    ) -> Solution | None:
        n = len(self._pairs)
        integrality = np.zeros(self._columns)
        integrality[:n] = 1
        integrality[2 * n : self._busiest] = 1
        rows, columns, values = zip(*self._entries, strict=True)
        shape = (len(self._row_bounds), self._columns)
        matrix = coo_matrix((values, (rows, columns)), shape=shape).tocsr()
        result = milp(
            -self._objective,
            integrality=integrality,
            bounds=Bounds(lower, upper),
            constraints=LinearConstraint(matrix, -np.inf, np.array(self._row_bounds)),
            options={"time_limit": time_limit_s, "mip_rel_gap": gap},
        )
        if result.x is None:
            return None
        loads = {
            pair: max(float(result.x[n + i]), 0.0)
            for i, pair in enumerate(self._pairs)
            if result.x[i] > 0.5
        }
        value = self._constant - float(result.fun)
        return Solution(loads, value, result.status == 0, float(result.mip_gap or 0.0))

    def _foundation(self, expert: Wanted) -> Wanted:
        """Whose slots it can be on."""
        return expert if expert.base is None else self._by_id[expert.base]

    def _value(self, weights: Weights) -> None:
        n = len(self._pairs)
        total_load = sum(expert.load for expert in self._wanted) or 1.0
        total_bytes = sum(device.budget_bytes for device in self._devices)
        for i, (expert, slot) in enumerate(self._pairs):
            share = self._by_id[expert].bytes / total_bytes
            self._objective[i] -= weights.thrift * share
            if (expert, slot) in self._present:
                self._objective[i] += weights.stability * share
                self._constant -= weights.stability * share
            else:
                self._objective[i] -= weights.stability * share
            self._objective[n + i] = 1.0 / total_load
        self._objective[self._busiest] = -weights.balance

    def _constrain(self) -> None:
        n = len(self._pairs)
        for device in self._devices:
            on = [(i, *pair) for pair, i in self._column.items() if device.name in pair[1]]
            self._row(
                {
                    i: self._by_id[expert].bytes / len(slot) / device.budget_bytes
                    for i, expert, slot in on
                },
                1.0,
            )
            loads = {n + i: 1.0 / len(slot) for i, _, slot in on}
            self._row({**loads, self._busiest: -device.capacity}, 0.0)
        for i, (expert, slot) in enumerate(self._pairs):
            self._row({n + i: 1.0, i: -self._by_id[expert].load}, 0.0)
            base = self._by_id[expert].base
            if base is not None:
                self._row({i: 1.0, self._column[base, slot]: -1.0}, 0.0)
        for wanted in self._wanted:
            own = [i for i, (name, _) in enumerate(self._pairs) if name == wanted.id]
            self._row({n + i: 1.0 for i in own}, wanted.load)
            self._row(dict.fromkeys(own, 1.0), float(wanted.max_replicas))
            several = self._several.get(wanted.id)
            if several is not None:
                self._row({**dict.fromkeys(own, -1.0), several: float(wanted.min_replicas)}, 0.0)
                for i in own:
                    self._row({i: 1.0, several: -1.0}, 0.0)

    def _row(self, coefficients: Mapping[int, float], upper: float) -> None:
        """sum of coefficients times variables <= upper."""
        row = len(self._row_bounds)
        self._entries += [(row, column, value) for column, value in coefficients.items()]
        self._row_bounds.append(upper)
