"""`/admin/v1/workers`: the gateway workers and whether each serves the latest state."""

import time
from typing import Any

from fastapi import APIRouter

from composer.state import WorkerRecord
from gateway.admin.depends import StateOf

router = APIRouter(prefix="/admin/v1/workers", tags=["workers"])


@router.get("")
async def list_workers(state: StateOf) -> dict[str, Any]:
    """The workers by their heartbeats, oldest worker first."""
    generation = await state.generation()
    records = sorted((await state.workers.all()).values(), key=lambda w: (w.started_at, w.id))
    return {
        "object": "list",
        "generation": generation,
        "data": [worker_view(record, generation, time.time()) for record in records],
    }


def worker_view(record: WorkerRecord, generation: int, now: float) -> dict[str, Any]:
    """A worker; `current`: it serves the latest state; `silent_s` since its last heartbeat."""
    return {
        "object": "composer.worker",
        **record.model_dump(mode="json"),
        "current": record.generation >= generation,
        "silent_s": round(max(0.0, now - record.at), 1),
    }
