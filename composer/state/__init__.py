"""The shared state in Redis: records in tables, one generation counter, whole snapshots."""

from composer.state.connection import PREFIX, Connection, Table
from composer.state.records import (
    CacheFlush,
    CompositionVersion,
    DatasetRecord,
    Endpoint,
    EndpointState,
    ExpertRecord,
    ExpertState,
    ExpertStatus,
    JobRecord,
    KeyRecord,
    LiveRecord,
    TrainingProgress,
    TrainingRecord,
    WorkerRecord,
)
from composer.state.store import EMPTY_SNAPSHOT, SCHEMA_VERSION, Snapshot, State

__all__ = [
    "EMPTY_SNAPSHOT",
    "PREFIX",
    "SCHEMA_VERSION",
    "CacheFlush",
    "CompositionVersion",
    "Connection",
    "DatasetRecord",
    "Endpoint",
    "EndpointState",
    "ExpertRecord",
    "ExpertState",
    "ExpertStatus",
    "JobRecord",
    "KeyRecord",
    "LiveRecord",
    "Snapshot",
    "State",
    "Table",
    "TrainingProgress",
    "TrainingRecord",
    "WorkerRecord",
]
