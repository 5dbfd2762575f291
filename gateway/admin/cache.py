"""`/admin/v1/cache`: see and flush the decision cache."""

from typing import Annotated, Any

from fastapi import APIRouter, Query

from composer.shared_cache import entries, flush
from gateway.admin.depends import PartsOf, StateOf

router = APIRouter(prefix="/admin/v1/cache", tags=["cache"])

Version = Annotated[
    str | None,
    Query(min_length=1, max_length=128, description="A composition's version; without it, all."),
]


@router.get("")
async def show(parts: PartsOf, state: StateOf) -> dict[str, Any]:
    """How full the decision cache is: in the worker that answers, and in Redis by version."""
    config = parts.config.cache
    return {
        "object": "composer.cache",
        "local": {"entries": len(parts.scores.local), "capacity": config.local_entries},
        "shared": {"versions": await entries(state), "capacity_each": config.shared_entries},
    }


@router.delete("")
async def forget(parts: PartsOf, state: StateOf, version: Version = None) -> dict[str, Any]:
    """Flush the entries of a version, or of all: within a second no worker uses them."""
    await flush(state, version)
    await parts.keeper.refresh()
    return {"object": "composer.cache", "version": version, "flushed": True}
