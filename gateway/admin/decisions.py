"""`/admin/v1/decisions`: recent decisions with their outcomes, one by id, and all as NDJSON."""

from collections.abc import AsyncIterator
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse

from composer.stats import Decisions
from composer.stats.decisions import MAX_LISTED, Page
from composer.stats.schema import DecisionList, DecisionView, decision_schema
from experts.errors import StateUnavailable
from gateway.admin.depends import StateOf

router = APIRouter(prefix="/admin/v1/decisions", tags=["decisions"])

Name = Annotated[str | None, Query(max_length=200)]
Cursor = Annotated[str, Query(max_length=64, description="A cursor that was given out before.")]
NDJSON = "application/x-ndjson"


@router.get("", responses={200: {"model": DecisionList, "description": "The decisions."}})
async def list_decisions(
    state: StateOf,
    limit: Annotated[int, Query(ge=1, le=MAX_LISTED)] = 50,
    before: Annotated[
        str | None, Query(max_length=64, description="Only those before this cursor.")
    ] = None,
    expert: Name = None,
    category: Name = None,
) -> dict[str, Any]:
    """The newest decisions, newest first, each with its outcome and feedback."""
    found = await Decisions(state).newest(limit, before=before, expert=expert, category=category)
    return {"object": "list", "data": found}


@router.get(
    "/export",
    response_class=StreamingResponse,
    responses={200: {"content": {NDJSON: {}}, "description": "Decisions, one a line."}},
)
async def export_decisions(
    state: StateOf,
    cursor: Cursor = "",
    limit: Annotated[int, Query(ge=1, le=1_000_000)] = 10_000,
) -> StreamingResponse:
    """Decisions after a cursor, oldest first, one JSON object a line; the last line is
    `{"cursor": "..."}`, from which the next export goes on: nothing is missed or repeated. It also
    says `"missed": true` if some were trimmed before they could be read, and `"error"` with the
    reason if the export broke off there."""
    pages = Decisions(state).after(cursor, limit)
    first = await anext(pages, None)
    return StreamingResponse(_lines(first, pages, cursor), media_type=NDJSON)


async def _lines(
    first: Page | None, pages: AsyncIterator[Page], cursor: str
) -> AsyncIterator[bytes]:
    last: dict[str, Any] = {"cursor": cursor or "0-0"}
    page = first
    try:
        while page is not None:
            if page.missed:
                last["missed"] = True
            if page.views:
                yield b"".join(orjson.dumps(view) + b"\n" for view in page.views)
                last["cursor"] = page.views[-1]["cursor"]
            page = await anext(pages, None)
    except StateUnavailable as error:
        last["error"] = error.message
    yield orjson.dumps(last) + b"\n"


@router.get("/schema")
async def show_schema() -> dict[str, Any]:
    """The JSON schema of a decision."""
    return decision_schema()


@router.get(
    "/{decision_id}", responses={200: {"model": DecisionView, "description": "The decision."}}
)
async def get_decision(state: StateOf, decision_id: str) -> dict[str, Any]:
    """One decision: every score, who was ruled out and why, what became of it."""
    return await Decisions(state).get(decision_id)
