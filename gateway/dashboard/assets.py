"""The files that the dashboard is made of: ours beside this module, Plotly.js from its package."""

import asyncio
import gzip
import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from experts.errors import NotFound

STATIC = Path(__file__).parent / "static"
PLOTLY = "plotly.min.js"

_TYPES = {
    ".html": b"text/html; charset=utf-8",
    ".css": b"text/css; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".svg": b"image/svg+xml",
}
_REVALIDATE = b"no-cache"
_ONE_DAY = b"public, max-age=86400"


@dataclass(frozen=True, slots=True)
class Asset:
    """A file as it is sent. `etag` is the quoted hash of its content."""

    kind: bytes
    body: bytes
    compressed: bytes
    etag: bytes
    caching: bytes


class Assets:
    """Reads and compresses each file once, when it is first asked for, off the event loop."""

    def __init__(self) -> None:
        own = {file.name: file for file in STATIC.iterdir() if file.suffix in _TYPES}
        self._files = {**own, PLOTLY: _plotly()}
        self._loaded: dict[str, Asset] = {}
        self._reading = asyncio.Lock()

    async def get(self, name: str) -> Asset:
        """
        Raises:
            NotFound: there is no such file.
        """
        async with self._reading:
            if name not in self._loaded:
                self._loaded[name] = await self._load(name)
            return self._loaded[name]

    async def _load(self, name: str) -> Asset:
        file = self._files.get(name)
        if file is None:
            raise NotFound(f"the dashboard has no file {name[:200]!r}")
        try:
            return await asyncio.to_thread(_read, file)
        except OSError as error:
            raise NotFound(
                f"the dashboard's file {name} can't be read: {error.strerror}"
            ) from error


def _read(file: Path) -> Asset:
    body = file.read_bytes()
    return Asset(
        kind=_TYPES[file.suffix],
        body=body,
        compressed=gzip.compress(body, compresslevel=6, mtime=0),
        etag=b'"' + hashlib.sha256(body).hexdigest()[:32].encode() + b'"',
        caching=_ONE_DAY if file.name == PLOTLY else _REVALIDATE,
    )


def _plotly() -> Path:
    """Plotly.js as its Python package carries it; finding it does not import the package."""
    spec = importlib.util.find_spec("plotly")
    places = spec.submodule_search_locations if spec is not None else None
    return Path(places[0] if places else "") / "package_data" / PLOTLY
