"""`/admin/v1/experts`: register, list, inspect, drain and remove experts."""

from typing import Any

from fastapi import APIRouter

from composer.state import ExpertRecord, ExpertStatus
from gateway.admin.depends import StateOf

router = APIRouter(prefix="/admin/v1/experts", tags=["experts"])


@router.get("")
async def list_experts(state: StateOf) -> dict[str, Any]:
    """All experts with their states."""
    records, statuses = await state.experts.all(), await state.statuses.all()
    return {
        "object": "list",
        "data": [expert_view(record, statuses.get(e)) for e, record in sorted(records.items())],
    }


def expert_view(record: ExpertRecord, status: ExpertStatus | None) -> dict[str, Any]:
    """An expert as the control plane shows it."""
    known = status or ExpertStatus(state="registered")
    return {
        "object": "composer.expert",
        **record.spec.model_dump(mode="json", exclude_none=True),
        "source": record.source,
        "registered_at": record.registered_at,
        "state": known.state,
        "reason": known.reason,
        "since": known.since,
    }
