"""`/admin/v1/compositions`: versions of compositions, which is live, import, going on and back."""

import asyncio
from pathlib import Path as File
from shutil import rmtree
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from composer.compositions import (
    EncoderIdentity,
    all_compositions,
    artefacts_folder,
    delete_version,
    keep_artefact,
    load_for,
    one_composition,
    promote,
    require_experts,
    require_free_name,
    roll_back,
)
from composer.root import Parts
from composer.state import LiveRecord, State
from composer.state.store import version_key
from composer.unpacking import unpack_artefact
from composer.workers import wait_for_generation
from experts.spec import ExpertId
from gateway.admin.depends import PartsOf, PrincipalOf, StateOf, UploadsOf
from gateway.admin.training_views import (
    ChangeView,
    CompositionList,
    CompositionSummary,
    CompositionView,
    LiveView,
    VersionView,
    WorkersServing,
)

router = APIRouter(prefix="/admin/v1/compositions", tags=["compositions"])

SERVED_WITHIN_S = 1.0
"""How long an answer waits until all workers serve a change."""

Name = Annotated[str, Path(description="Name of the composition.", max_length=128)]
Weight = Annotated[float, Query(ge=0, le=1, description="Weight of quality against price.")]


class Promotion(BaseModel):
    """Which version to make live."""

    model_config = ConfigDict(extra="forbid")

    version: str = Field(min_length=1, max_length=128, description="Id of the version.")


@router.get("")
async def list_compositions(state: StateOf) -> CompositionList:
    """All compositions with what is live, what was live before, and how many versions there are."""
    found = await all_compositions(state)
    return CompositionList(data=[CompositionSummary.of(composition) for composition in found])


@router.post(
    "/import",
    status_code=201,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/x-tar": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
async def import_version(
    request: Request,
    parts: PartsOf,
    principal: PrincipalOf,
    uploads: UploadsOf,
    name: Annotated[ExpertId, Query(description="The composition that gets the version.")] = "auto",
    quality_weight: Weight = 1.0,
) -> VersionView:
    """Import a version: the body is an uncompressed tar of an artefact folder.

    The artefact must be whole, made for this encoder, and route to registered experts alone. It is
    not live before it is promoted.
    """
    await require_free_name(parts.state, name)
    folder = artefacts_folder(parts.config)
    encoder = _encoder(parts)
    async with uploads.receive(request, folder) as upload:
        staged = upload.file.with_name(f"{upload.file.name}-files")
        try:
            await asyncio.to_thread(_unpack, upload.file, staged)
            artefact = await asyncio.to_thread(load_for, staged, encoder)
            await require_experts(parts.state, artefact.manifest.experts)
            version = await keep_artefact(
                parts.state,
                parts.config,
                staged,
                name,
                encoder,
                source="import",
                quality_weight=quality_weight,
                created_by=principal.key,
            )
        finally:
            await asyncio.to_thread(rmtree, staged, ignore_errors=True)
    key = version_key(name, version.version)
    await parts.state.versions.put({key: version})
    return VersionView.of(version)


@router.get("/{name:path}")
async def get_composition(name: Name, state: StateOf) -> CompositionView:
    """One composition with its versions, newest first."""
    return CompositionView.of(await one_composition(state, name))


@router.post("/{name:path}/promote")
async def promote_version(name: Name, body: Promotion, parts: PartsOf) -> ChangeView:
    """Make a version live. All gateway workers serve it within a second, without a restart."""
    live = await promote(parts.state, name, body.version, _encoder(parts))
    return await _once_served(parts.state, name, live)


@router.post("/{name:path}/rollback")
async def roll_back_version(name: Name, parts: PartsOf) -> ChangeView:
    """Make the version live again that was live before."""
    live = await roll_back(parts.state, name, _encoder(parts))
    return await _once_served(parts.state, name, live)


@router.delete("/{name:path}/versions/{version}", status_code=204)
async def remove_version(
    name: Name,
    version: Annotated[str, Path(description="Id of the version.", max_length=128)],
    parts: PartsOf,
) -> Response:
    """Forget a version that is not live."""
    await delete_version(parts.state, parts.config, name, version)
    return Response(status_code=204)


async def _once_served(state: State, name: str, live: LiveRecord) -> ChangeView:
    generation = await state.generation()
    current, total = await wait_for_generation(state, generation, SERVED_WITHIN_S)
    served = WorkersServing(total=total, current=current)
    return ChangeView.model_validate({**LiveView.fields_of(name, live), "workers": served})


def _encoder(parts: Parts) -> EncoderIdentity:
    encoder = parts.pipeline.encoder
    return EncoderIdentity(encoder.id, encoder.dimension)


def _unpack(archive: File, folder: File) -> None:
    folder.mkdir(mode=0o755)
    unpack_artefact(archive, folder)
