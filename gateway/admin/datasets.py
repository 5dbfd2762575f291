"""`/admin/v1/datasets`: upload, list and remove labelled task data."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response

from composer.datasets import add_dataset, datasets_folder, remove_dataset
from composer.state import DatasetRecord
from gateway.admin.depends import PartsOf, PrincipalOf, StateOf, UploadsOf

router = APIRouter(prefix="/admin/v1/datasets", tags=["datasets"])

DatasetId = Annotated[str, Path(description="Id of the dataset.", max_length=128)]


@router.post("", status_code=201)
async def upload_dataset(
    request: Request,
    parts: PartsOf,
    principal: PrincipalOf,
    uploads: UploadsOf,
    name: Annotated[
        str, Query(description="What to call it.", min_length=1, max_length=200)
    ] = "dataset",
    source: Annotated[str, Query(description="Where it comes from.", max_length=2000)] = "",
) -> dict[str, Any]:
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
    return dataset_view(record)


@router.get("")
async def list_datasets(state: StateOf) -> dict[str, Any]:
    """All datasets, newest first."""
    records = (await state.datasets.all()).values()
    newest = sorted(records, key=lambda record: record.uploaded_at, reverse=True)
    return {"object": "list", "data": [dataset_view(record) for record in newest]}


@router.get("/{dataset}")
async def get_dataset(dataset: DatasetId, state: StateOf) -> dict[str, Any]:
    """One dataset: what is in it and where it came from."""
    return dataset_view(await state.datasets.get(dataset))


@router.delete("/{dataset}", status_code=204)
async def delete_dataset(dataset: DatasetId, state: StateOf) -> Response:
    """Remove a dataset. Refused while a training that waits or runs needs it."""
    await remove_dataset(state, dataset)
    return Response(status_code=204)


def dataset_view(record: DatasetRecord) -> dict[str, Any]:
    """A dataset as the control plane shows it; where its file stands is this host's business."""
    return {"object": "composer.dataset", **record.model_dump(mode="json", exclude={"file"})}
