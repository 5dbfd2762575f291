"""`/admin/v1/experts`: register, list, inspect, drain and remove experts."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query

from composer.registration import Registration, users_of
from composer.state import Endpoint, ExpertRecord, ExpertStatus, LiveRecord, State
from experts.registry import index_known
from experts.spec import ExpertSpec
from gateway.admin.depends import PartsOf, StateOf

router = APIRouter(prefix="/admin/v1/experts", tags=["experts"])


def _registration(parts: PartsOf) -> Registration:
    return Registration(parts.config, parts.state)


RegistrationOf = Annotated[Registration, Depends(_registration)]
Force = Annotated[
    bool, Query(description="Remove it even though a live composition uses it, which goes on.")
]


@router.post("", status_code=201)
async def register_expert(
    spec: ExpertSpec, registration: RegistrationOf, state: StateOf
) -> dict[str, Any]:
    """Register an expert.

    The answer comes when it is stored for good; it takes traffic once it was verified by a real
    completion, which its `state` tells.
    """
    record = await registration.add(spec)
    return await _view_of(state, record.spec.id)


@router.get("")
async def list_experts(state: StateOf) -> dict[str, Any]:
    """All experts with their states, by id."""
    views = await _views(state)
    return {"object": "list", "data": [views[expert] for expert in sorted(views)]}


@router.get("/{expert_id:path}")
async def show_expert(expert_id: str, state: StateOf) -> dict[str, Any]:
    """One expert: its specification, its state with the reason, its engine, who uses it."""
    return await _view_of(state, expert_id)


@router.post("/{expert_id:path}/drain")
async def drain_expert(
    expert_id: str, registration: RegistrationOf, state: StateOf
) -> dict[str, Any]:
    """Take an expert out of rotation; what it is answering is finished."""
    await registration.drain(expert_id)
    return await _view_of(state, expert_id)


@router.post("/{expert_id:path}/resume")
async def resume_expert(
    expert_id: str, registration: RegistrationOf, state: StateOf
) -> dict[str, Any]:
    """Put a drained expert back into rotation, once it was verified again."""
    await registration.resume(expert_id)
    return await _view_of(state, expert_id)


@router.post("/{expert_id:path}/verify")
async def verify_expert(
    expert_id: str, registration: RegistrationOf, state: StateOf
) -> dict[str, Any]:
    """Have an expert verified now; one that failed is tried at once, a ready one goes on."""
    await registration.verify(expert_id)
    return await _view_of(state, expert_id)


@router.delete("/{expert_id:path}", status_code=202)
async def remove_expert(
    expert_id: str, registration: RegistrationOf, state: StateOf, force: Force = False
) -> dict[str, Any]:
    """Drain an expert and forget it.

    One that a live composition uses is refused unless forced; one that others stand on, or that
    the configuration declares, is always refused.
    """
    record = await registration.remove(expert_id, force=force)
    status = await state.statuses.find(expert_id)
    return expert_view(record, status, None, {})


async def _views(state: State) -> dict[str, dict[str, Any]]:
    snapshot = await state.snapshot()
    live = await state.live.all()
    specs, _ = index_known(record.spec for record in snapshot.records.values())
    return {
        expert: expert_view(
            record,
            snapshot.statuses.get(expert),
            snapshot.endpoints.get((specs[expert].engine or "") if expert in specs else ""),
            live,
        )
        for expert, record in snapshot.records.items()
    }


async def _view_of(state: State, expert: str) -> dict[str, Any]:
    """
    Raises:
        NotFound: there is no expert of this id.
    """
    views = await _views(state)
    return views[expert] if expert in views else _unknown(await state.experts.get(expert))


def _unknown(record: ExpertRecord) -> dict[str, Any]:
    """An expert that was registered a moment ago."""
    return expert_view(record, None, None, {})


def expert_view(
    record: ExpertRecord,
    status: ExpertStatus | None,
    endpoint: Endpoint | None,
    live: dict[str, LiveRecord],
) -> dict[str, Any]:
    """An expert as the control plane shows it."""
    known = status or ExpertStatus(state="registered", since=record.registered_at)
    engine = None
    if endpoint is not None:
        engine = endpoint.model_dump(
            mode="json", include={"engine", "base_url", "state", "reason", "api_key_env"}
        )
    return {
        "object": "composer.expert",
        **record.spec.model_dump(mode="json", exclude_none=True),
        "source": record.source,
        "registered_at": record.registered_at,
        "state": known.state,
        "reason": known.reason,
        "since": known.since,
        "failures": known.failures,
        "retry_at": known.retry_at or None,
        "drained": record.drained,
        "removing": record.removing,
        "compositions": list(users_of(record.spec.id, live)),
        "runs_on": engine,
    }
