"""Which devices experts, replicas and adapters go on: an integer program, explained."""

from experts.placement.planner import expected_loads, plan_placement
from experts.placement.types import Change, Device, Placed, Plan, Slot, Wanted, Weights

__all__ = [
    "Change",
    "Device",
    "Placed",
    "Plan",
    "Slot",
    "Wanted",
    "Weights",
    "expected_loads",
    "plan_placement",
]
