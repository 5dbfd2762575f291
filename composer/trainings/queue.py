"""The queue of trainings: asking for one, following it, calling it off."""

import secrets
import time
from collections.abc import Callable, Sequence

from composer.compositions import require_experts, require_free_name
from composer.state import JobRecord, State, TrainingRecord
from experts.errors import Conflict, InvalidRequest, Overloaded

MAX_WAITING = 100
MAX_FINISHED = 200
"""Records of finished trainings that are kept: the newest."""

ACTIVE = ("queued", "running")


async def start_training(
    state: State,
    *,
    composition: str,
    datasets: Sequence[str],
    experts: Sequence[str] = (),
    quality_weight: float = 1.0,
    promote: bool = False,
    created_by: str = "",
    clock: Callable[[], float] = time.time,
) -> TrainingRecord:
    """Queue a training.

    Raises:
        InvalidRequest: a dataset or an expert is unknown.
        Conflict: the composition is called like an expert.
        Overloaded: too many trainings wait.
    """
    known = await state.datasets.all()
    unknown = [dataset for dataset in datasets if dataset not in known]
    if unknown:
        raise InvalidRequest(f"there is no dataset '{unknown[0]}'", param="datasets")
    await require_experts(state, experts)
    await require_free_name(state, composition)
    if len(await state.jobs.all()) >= MAX_WAITING:
        raise Overloaded(f"{MAX_WAITING} trainings wait already", retry_after_s=60)
    now = clock()
    record = TrainingRecord(
        id=f"tr-{secrets.token_hex(6)}",
        composition=composition,
        datasets=tuple(dict.fromkeys(datasets)),
        experts=tuple(dict.fromkeys(experts)),
        quality_weight=quality_weight,
        promote=promote,
        created_at=now,
        created_by=created_by,
    )
    job = JobRecord(id=record.id, created_at=now)
    await state.write([(state.trainings, {record.id: record}), (state.jobs, {record.id: job})])
    return record


async def cancel_training(
    state: State, training: str, clock: Callable[[], float] = time.time
) -> TrainingRecord:
    """Call a training off: at once if it waits; if it runs, its process is ended within seconds.

    Raises:
        NotFound: there is none of this id.
        Conflict: it is done already.
    """

    def change(record: TrainingRecord) -> TrainingRecord:
        if record.state == "queued":
            return record.model_copy(
                update={"state": "cancelled", "cancel": True, "finished_at": clock()}
            )
        if record.state not in ACTIVE:
            raise Conflict(f"training '{training}' is done: it {_ended(record)}")
        return record.model_copy(update={"cancel": True})

    return await state.trainings.update(training, change)


async def prune_trainings(state: State) -> None:
    """Forget the oldest of the finished trainings."""
    finished = [r for r in (await state.trainings.all()).values() if r.state not in ACTIVE]
    finished.sort(key=lambda record: record.finished_at or record.created_at)
    surplus = finished[: max(0, len(finished) - MAX_FINISHED)]
    if surplus:
        await state.trainings.put({record.id: None for record in surplus})


def _ended(record: TrainingRecord) -> str:
    return "was cancelled" if record.state == "cancelled" else record.state
