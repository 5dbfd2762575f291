"""`/admin/v1/stats`: requests, tokens, cost, latency, cache and feedback over a span of time."""

from typing import Annotated, Any

from fastapi import APIRouter, Query

from composer.stats import Statistics
from composer.stats.schema import StatsView
from gateway.admin.depends import StateOf

router = APIRouter(prefix="/admin/v1/stats", tags=["stats"])


@router.get("", responses={200: {"model": StatsView, "description": "The figures."}})
async def read_stats(
    state: StateOf,
    start: Annotated[
        float | None,
        Query(
            alias="from",
            ge=-1e10,
            le=1e10,
            description="Unix seconds; negative: so long before now; 0: all time. "
            "Default: an hour before `to`.",
        ),
    ] = None,
    end: Annotated[
        float | None,
        Query(alias="to", ge=-1e10, le=1e10, description="As `from`. Default: now."),
    ] = None,
    step: Annotated[
        int | None,
        Query(description="60 (kept for 48 hours) or 3600 (kept for 90 days). Default: by span."),
    ] = None,
) -> dict[str, Any]:
    """Figures in total, by expert, by category and by composition, and as time series.

    A request counts for the expert that answered it (if nobody did, for the one ranked first), at
    the time when it ended. `fallbacks` are attempts that failed and moved on down the ranking.
    Percentiles of latencies are within 5%.
    """
    return await Statistics(state).read(start, end, step)
