"""`/admin/v1/trainings`: start, follow and cancel trainings."""

from typing import Annotated

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, ConfigDict, Field

from composer.trainings.queue import cancel_training, start_training
from experts.spec import ExpertId
from gateway.admin.depends import PrincipalOf, StateOf
from gateway.admin.training_views import TrainingList, TrainingView

router = APIRouter(prefix="/admin/v1/trainings", tags=["trainings"])

Id = Annotated[str, Field(min_length=1, max_length=128)]
TrainingId = Annotated[str, Path(description="Id of the training.", max_length=128)]


class TrainingRequest(BaseModel):
    """What to train, and on what."""

    model_config = ConfigDict(extra="forbid")

    composition: ExpertId = Field(
        default="auto", description="The composition that gets a new version; a new name is made."
    )
    datasets: list[Id] = Field(
        min_length=1,
        max_length=100,
        description="Ids of datasets. They are read as one; `configured` is the data that the "
        "configuration names.",
    )
    experts: list[ExpertId] = Field(
        default_factory=list,
        max_length=1000,
        description="The experts to route between; none: all registered ones with outcomes.",
    )
    quality_weight: float = Field(
        default=1.0, ge=0, le=1, description="Weight of quality against price, 1: quality alone."
    )
    promote: bool = Field(default=False, description="Make the version live when it is done.")


@router.post("", status_code=201)
async def create_training(
    body: TrainingRequest, state: StateOf, principal: PrincipalOf
) -> TrainingView:
    """Queue a training. It runs in a process of its own, after those that wait already."""
    record = await start_training(
        state,
        composition=body.composition,
        datasets=body.datasets,
        experts=body.experts,
        quality_weight=body.quality_weight,
        promote=body.promote,
        created_by=principal.key,
    )
    return TrainingView.of(record)


@router.get("")
async def list_trainings(
    state: StateOf,
    limit: Annotated[int, Query(description="How many at most.", ge=1, le=1000)] = 100,
) -> TrainingList:
    """Trainings, newest first."""
    records = (await state.trainings.all()).values()
    newest = sorted(records, key=lambda record: record.created_at, reverse=True)[:limit]
    return TrainingList(data=[TrainingView.of(record) for record in newest])


@router.get("/{training}")
async def get_training(training: TrainingId, state: StateOf) -> TrainingView:
    """One training: its progress, and at the end its report or why it failed."""
    return TrainingView.of(await state.trainings.get(training))


@router.post("/{training}/cancel")
async def cancel(training: TrainingId, state: StateOf) -> TrainingView:
    """Call a training off: at once if it waits, within seconds if it runs."""
    return TrainingView.of(await cancel_training(state, training))
