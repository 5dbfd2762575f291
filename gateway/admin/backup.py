"""`/admin/v1/export` and `/admin/v1/import`: the whole state as one archive."""

import time
from collections.abc import AsyncIterator
from contextlib import ExitStack
from tempfile import TemporaryFile
from typing import IO, Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from composer.backup import export_state, import_state
from gateway.admin.depends import PartsOf
from gateway.admin.uploads import receive_file

router = APIRouter(prefix="/admin/v1", tags=["state"])

PIECE = 256 << 10


class ImportView(BaseModel):
    """What an import did. The numbers are of records, by table."""

    object: str = "composer.import"
    created_at: float = Field(description="When the archive was made (Unix seconds).")
    added: dict[str, int] = Field(description="Records that are new here.")
    replaced: dict[str, int] = Field(description="Records that the archive's took the place of.")
    unchanged: dict[str, int] = Field(description="Records that were here already.")
    notes: list[str] = Field(description="What was not taken over, and why.")


@router.get(
    "/export",
    response_class=StreamingResponse,
    responses={200: {"content": {"application/gzip": {}}, "description": "The archive."}},
)
async def export(parts: PartsOf) -> StreamingResponse:
    """The whole state as a tar.gz: experts, compositions with all their versions and artefacts,
    keys (hashed), datasets, trainings and statistics. The decision cache is left out."""
    with ExitStack() as stack:
        # Without a name it is gone with its handle, whatever happens.
        file = stack.enter_context(TemporaryFile(dir=parts.config.state_dir))
        await export_state(parts.state, file, parts.config.state_dir)
        length = file.tell()
        file.seek(0)
        stack.pop_all()
    name = time.strftime("composer-%Y%m%d-%H%M%S.tar.gz", time.gmtime())
    return StreamingResponse(
        _pieces(file),
        media_type="application/gzip",
        headers={
            "content-length": str(length),
            "content-disposition": f'attachment; filename="{name}"',
            "cache-control": "no-store",
        },
    )


@router.post(
    "/import",
    openapi_extra={
        "requestBody": {
            "required": True,
            "description": "An archive that `GET /admin/v1/export` gave.",
            "content": {"application/gzip": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
async def import_archive(
    request: Request,
    parts: PartsOf,
    replace: Annotated[
        bool, Query(description="Whether the archive's records replace those of the same id.")
    ] = False,
) -> ImportView:
    """Take over an archive, all of it or nothing. What is here already stays; what contradicts it
    is a conflict (409) unless `replace` is set."""
    config = parts.config
    with TemporaryFile(dir=config.state_dir) as file:
        await receive_file(
            request,
            file,
            max_bytes=config.limits.max_archive_bytes,
            silence_s=config.timeouts.body_s,
        )
        file.seek(0)
        report = await import_state(parts.state, config, file, replace=replace)
    return ImportView(
        created_at=report.created_at,
        added=dict(report.added),
        replaced=dict(report.replaced),
        unchanged=dict(report.unchanged),
        notes=report.notes,
    )


async def _pieces(file: IO[bytes]) -> AsyncIterator[bytes]:
    with file:
        while piece := file.read(PIECE):
            yield piece
