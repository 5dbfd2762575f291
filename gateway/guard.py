"""Who may reach a gateway on loopback: clients of this machine, not web pages in its browser."""

from urllib.parse import urlsplit

from composer.config import LOOPBACK_HOSTS
from experts.errors import Forbidden
from gateway.asgi import Scope, header

_SEEN_LIMIT = 256


class LoopbackGuard:
    """Refuses a `Host` that is not loopback (DNS rebinding) and an `Origin` from elsewhere."""

    def __init__(self) -> None:
        self._good: set[bytes] = set()

    def check(self, scope: Scope) -> None:
        """
        Raises:
            Forbidden: the header names a host other than loopback.
        """
        host = header(scope, b"host")
        if host is not None and host not in self._good:
            self._require(b"//" + host, "Host", host)
        origin = header(scope, b"origin")
        if origin is not None and origin not in self._good:
            self._require(origin, "Origin", origin)

    def _require(self, url: bytes, name: str, value: bytes) -> None:
        try:
            hostname = urlsplit(url.decode("ascii")).hostname
        except (UnicodeDecodeError, ValueError):
            hostname = None
        if hostname not in LOOPBACK_HOSTS:
            raise Forbidden(
                f"the {name} header names a host that is not this machine: "
                "this gateway serves clients on loopback only"
            )
        if len(self._good) < _SEEN_LIMIT:
            self._good.add(value)
