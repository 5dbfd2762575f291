"""`/admin/v1/datasets`: upload, list and remove labelled task data."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response

from composer.datasets import add_dataset, datasets_folder, remove_dataset
from gateway.admin.depends import PartsOf, PrincipalOf, StateOf, UploadsOf
from gateway.admin.training_views import DatasetList, DatasetView

router = APIRouter(prefix="/admin/v1/datasets", tags=["datasets"])

DatasetId = Annotated[str, Path(description="Id of the dataset.", max_length=128)]


@router.post(
    "",
    status_code=201,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}}
            },
        }
    },
)
async def upload_dataset(
    request: Request,
    parts: PartsOf,
    principal: PrincipalOf,
    uploads: UploadsOf,
    name: Annotated[
        str, Query(description="What to call it.", min_length=1, max_length=200)
    ] = "dataset",
    source: Annotated[str, Query(description="Where it comes from.", max_length=2000)] = "",
) -> DatasetView:
    """Upload labelled task data: the body is a JSONL or parquet file.

    It is read whole before it is accepted. Lines that can't be used are counted, and the first of
    them told with the reason; a file without a good line is refused.
    """
    async with uploads.receive(request, datasets_folder(parts.config)) as upload:
        record = await add_dataset(
            parts.state,
            parts.config,
            upload.file,
            name=name,
            source=source,
            uploaded_by=principal.key,
            sha256=upload.sha256,
            size=upload.size,
        )
    return DatasetView.of(record)


@router.get("")
async def list_datasets(state: StateOf) -> DatasetList:
    """All datasets, newest first."""
    records = (await state.datasets.all()).values()
    newest = sorted(records, key=lambda record: record.uploaded_at, reverse=True)
    return DatasetList(data=[DatasetView.of(record) for record in newest])


@router.get("/{dataset}")
async def get_dataset(dataset: DatasetId, state: StateOf) -> DatasetView:
    """One dataset: what is in it and where it came from."""
    return DatasetView.of(await state.datasets.get(dataset))


@router.delete("/{dataset}", status_code=204)
async def delete_dataset(dataset: DatasetId, state: StateOf) -> Response:
    """Remove a dataset. Refused while a training that waits or runs needs it."""
    await remove_dataset(state, dataset)
    return Response(status_code=204)
