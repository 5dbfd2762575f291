"""`/admin/v1/quality`: how well each expert is expected to answer each category."""

from typing import Any

from fastapi import APIRouter

from composer.snapshots import LiveComposition
from gateway.admin.depends import PartsOf
from routers.two_step import TwoStepRouter

router = APIRouter(prefix="/admin/v1/quality", tags=["compositions"])


@router.get("")
async def list_quality(parts: PartsOf) -> dict[str, Any]:
    """Of each live composition: its training's figures, and the scores that routing expects.

    `expected` has a row for each of `categories` and a column for each of `experts`; `overall` is
    the row of prompts whose category is uncertain. Both are null for a router that keeps no such
    table.
    """
    compositions = parts.keeper.view.compositions
    return {
        "object": "list",
        "data": [quality_view(name, live) for name, live in sorted(compositions.items())],
    }


def quality_view(name: str, live: LiveComposition) -> dict[str, Any]:
    """The table of one live composition."""
    router = live.artefact.router
    mapping = router.mapping if isinstance(router, TwoStepRouter) else None
    return {
        "object": "composer.quality",
        "composition": name,
        "version": live.record.version,
        "summary": live.record.summary,
        "experts": list(mapping.experts if mapping else live.experts),
        "categories": list(mapping.categories if mapping else ()),
        "expected": mapping.by_category.round(4).tolist() if mapping else None,
        "overall": mapping.overall.round(4).tolist() if mapping else None,
    }
