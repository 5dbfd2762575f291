"""The kinds of gates, named where nothing heavy is imported."""

from typing import Literal

GateKind = Literal["linear", "vector", "arrow", "uniform"]
