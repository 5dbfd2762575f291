"""`/admin/v1/keys`: make, list and remove API keys."""

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from composer.keys import create_key, key_view, remove_key
from composer.state.records import Scope
from gateway.admin.depends import PartsOf, StateOf

router = APIRouter(prefix="/admin/v1/keys", tags=["keys"])

Name = Annotated[str, Field(min_length=1, max_length=200)]


class NewKey(BaseModel):
    """The key that is to be made."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: Name = Field(description="Whose key it is, or what for.")
    scopes: list[Scope] = Field(
        default=["user"],
        min_length=1,
        max_length=2,
        description="`user` may send prompts, `admin` may use `/admin` and `/metrics`.",
    )


@router.post("", status_code=201)
async def create(body: NewKey, state: StateOf, parts: PartsOf) -> dict[str, Any]:
    """Make a key. The answer holds its `secret`, shown this once: only its hash is kept."""
    record, secret = await create_key(state, body.name, body.scopes)
    await parts.keeper.refresh()
    return {**key_view(record), "secret": secret}


@router.get("")
async def list_keys(state: StateOf) -> dict[str, Any]:
    """All keys, newest first, without their secrets."""
    keys = sorted((await state.keys.all()).values(), key=lambda key: -key.created_at)
    return {"object": "list", "data": [key_view(key) for key in keys]}


@router.delete("/{key_id}")
async def remove(key_id: str, state: StateOf, parts: PartsOf) -> dict[str, Any]:
    """Remove a key: within a second no worker takes it. Where keys are required, the last admin
    key stays (409)."""
    await remove_key(state, key_id, required=parts.config.keys_required)
    await parts.keeper.refresh()
    return {"object": "composer.key", "id": key_id, "deleted": True}
