"""API keys: made once, kept as a digest, and never without one that may make others."""

import hashlib
import secrets
import time
from collections.abc import Iterable, Mapping
from typing import Any

from composer.config import Config
from composer.state import KeyRecord, State
from composer.state.records import Scope
from experts.errors import ConfigError, Conflict

SECRET_PREFIX = "cmp-"  # noqa: S105 - how secrets begin, so that a leaked one is known for what it is
SECRET_BYTES = 32
HINT_LENGTH = len(SECRET_PREFIX) + 4
MAX_KEYS = 10_000


def digest_of(secret: str) -> str:
    """What is stored of a key. Secrets are 256 random bits, so a plain hash can't be reversed, and
    comparing digests tells nothing about secrets by its time."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def has_admin(keys: Iterable[KeyRecord]) -> bool:
    """Whether someone may make other keys."""
    return any("admin" in key.scopes for key in keys)


async def create_key(state: State, name: str, scopes: Iterable[Scope]) -> tuple[KeyRecord, str]:
    """Make a key; its secret is returned here and kept nowhere.

    Raises:
        Conflict: there are too many keys.
        StateUnavailable: the key may not have been written.
    """
    secret = SECRET_PREFIX + secrets.token_urlsafe(SECRET_BYTES)
    record = KeyRecord(
        id=f"key-{secrets.token_hex(6)}",
        name=name,
        digest=digest_of(secret),
        scopes=frozenset(scopes),
        created_at=time.time(),
        hint=secret[:HINT_LENGTH],
    )
    if len(await state.keys.all()) >= MAX_KEYS:
        raise Conflict(f"there are {MAX_KEYS} keys: remove some")
    await state.keys.create(record.id, record)
    return record, secret


async def remove_key(state: State, key_id: str, *, required: bool) -> None:
    """Forget a key. Where keys are `required`, one that may make others must stay.

    Raises:
        NotFound: there is no such key.
        Conflict: it is the last admin key.
    """

    def someone_stays(keys: Mapping[str, KeyRecord]) -> None:
        others = [key for key in keys.values() if key.id != key_id]
        if required and has_admin([keys[key_id]]) and not has_admin(others):
            raise Conflict(
                f"key '{key_id}' is the last with the scope 'admin': make another one first"
            )

    await state.keys.remove(key_id, someone_stays)


async def require_admin_key(config: Config, state: State) -> None:
    """
    Raises:
        ConfigError: requests need keys, and nobody has one that may make others.
    """
    if config.keys_required and not has_admin((await state.keys.all()).values()):
        raise no_admin_key(config)


def no_admin_key(config: Config) -> ConfigError:
    """The refusal to start, which says what to do."""
    return ConfigError(
        f"requests to {config.host} need keys, and there is no admin key yet: "
        "`coe keys create --admin` makes the first",
        param="auth",
    )


def key_view(record: KeyRecord) -> dict[str, Any]:
    """A key as the control plane shows it: enough to tell it from others, and no more."""
    return {
        "object": "composer.key",
        "id": record.id,
        "name": record.name,
        "scopes": sorted(record.scopes),
        "hint": f"{record.hint}...",
        "created_at": record.created_at,
    }
