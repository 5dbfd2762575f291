"""Which experts are in memory: tiers, budgets, and the choice of who makes room for whom."""

from experts.residency.manager import ResidencyManager
from experts.residency.memory import Memory
from experts.residency.policies import Forecast, ForecastSettings, LeastRecentlyUsed, Policy
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

__all__ = [
    "Action",
    "Arrived",
    "Device",
    "Dispatch",
    "Drop",
    "Ended",
    "Event",
    "Expert",
    "FallBack",
    "Forecast",
    "ForecastSettings",
    "LeastRecentlyUsed",
    "Load",
    "LoadFailed",
    "Loaded",
    "Lost",
    "Memory",
    "Policy",
    "Refuse",
    "ResidencyManager",
    "Step",
    "Ticked",
    "Tier",
    "Unload",
    "Unloaded",
]
