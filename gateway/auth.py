"""Who sends a request, and what they may do: API keys, known by the digest of their secret."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from composer.keys import digest_of
from composer.state import KeyRecord
from composer.state.records import Scope as KeyScope
from experts.errors import NotAllowed, NotReady, Unauthenticated
from gateway.asgi import Scope, header

PRINCIPAL = "composer.principal"
"""Where the principal of a request stands in its ASGI scope."""

_OPEN = ("/health/", "/dashboard")
_ADMIN = ("/admin/", "/metrics", "/openapi.json")
_MAX_SECRET = 256


@dataclass(frozen=True, slots=True)
class Principal:
    """`key` is the id of the key used, empty for a client on this machine that needs none."""

    key: str
    scopes: frozenset[KeyScope]


LOCAL = Principal("", frozenset({"user", "admin"}))
NOBODY = Principal("", frozenset())


class Authenticator:
    """Finds the principal of a request, and refuses one that may not do what it asks.

    `keys` gives the known keys by digest, or None before they were read. Where keys are not
    `required`, a client without a known key may do everything: it is on this machine, and OpenAI
    clients always send some key.
    """

    def __init__(
        self, keys: Callable[[], Mapping[str, KeyRecord] | None], *, required: bool
    ) -> None:
        self._keys = keys
        self._required = required

    def check(self, scope: Scope) -> Principal:
        """
        Raises:
            Unauthenticated: a key is needed and there is none, or it is unknown.
            NotAllowed: the key's scopes don't cover this path.
            NotReady: a key is needed, and this process does not know the keys yet.
        """
        path: str = scope["path"]
        secret = _secret(scope)
        keys = self._keys()
        record = keys.get(digest_of(secret)) if secret and keys else None
        if record is None and not self._required:
            return LOCAL
        if path.startswith(_OPEN):
            return NOBODY if record is None else Principal(record.id, record.scopes)
        if record is None and secret and keys is None:
            raise NotReady("the keys are not known yet: the state can't be reached")
        if record is None:
            raise Unauthenticated(
                "a known key is needed: send 'Authorization: Bearer KEY'; an operator makes one "
                "with `coe keys create`"
            )
        needed: KeyScope = "admin" if path.startswith(_ADMIN) else "user"
        if needed not in record.scopes:
            raise NotAllowed(f"key '{record.id}' lacks the scope '{needed}' that {path} needs")
        return Principal(record.id, record.scopes)


def _secret(scope: Scope) -> str:
    value = header(scope, b"authorization") or b""
    kind, _, secret = value.partition(b" ")
    if kind.lower() != b"bearer" or len(secret) > _MAX_SECRET:
        return ""
    return secret.strip().decode("latin-1")
