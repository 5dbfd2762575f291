"""The dashboard's files over HTTP: cached, compressed, and under a strict content policy."""

from gateway.asgi import Header, Receive, Scope, Send, header, send_answer
from gateway.dashboard.assets import Asset, Assets

PREFIX = "/dashboard"

_GUARDS: tuple[Header, ...] = (
    # Plotly.js styles what it draws; scripts and data come from here alone.
    (
        b"content-security-policy",
        b"default-src 'self'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
        b"img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; form-action 'self'; "
        b"frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
)


class Dashboard:
    """Serves `/dashboard` and the files below it. They hold no data, so anybody may have them."""

    def __init__(self) -> None:
        self._assets = Assets()

    @staticmethod
    def serves(path: str) -> bool:
        return path == PREFIX or path.startswith(f"{PREFIX}/")

    async def __call__(self, scope: Scope, receive: Receive, send: Send, current_id: str) -> None:
        """
        Raises:
            NotFound: there is no such file.
        """
        name = scope["path"].removeprefix(PREFIX).removeprefix("/") or "index.html"
        asset = await self._assets.get(name)
        headers = [
            *_GUARDS,
            (b"etag", asset.etag),
            (b"cache-control", asset.caching),
            (b"vary", b"accept-encoding"),
            (b"x-request-id", current_id.encode()),
        ]
        if _is_fresh(scope, asset):
            await send_answer(send, 304, b"", headers)
            return
        body = asset.body
        if _takes_gzip(scope):
            body = asset.compressed
            headers.append((b"content-encoding", b"gzip"))
        await send_answer(send, 200, body, [(b"content-type", asset.kind), *headers])


def _is_fresh(scope: Scope, asset: Asset) -> bool:
    """Whether the client has this very content (RFC 9110, weak comparison)."""
    known = header(scope, b"if-none-match") or b""
    tags = [tag.strip().removeprefix(b"W/") for tag in known.split(b",")]
    return asset.etag in tags or known.strip() == b"*"


def _takes_gzip(scope: Scope) -> bool:
    for part in (header(scope, b"accept-encoding") or b"").lower().split(b","):
        coding, _, weight = part.strip().partition(b";")
        if coding.strip() in (b"gzip", b"*"):
            return weight.replace(b" ", b"") not in (b"q=0", b"q=0.0", b"q=0.00", b"q=0.000")
    return False
