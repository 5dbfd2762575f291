"""Uploads on their way in: each a file that is gone again unless it was moved to where it stays."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from fastapi import Request

from composer.config import Config
from composer.datasets import new_upload
from experts.errors import InvalidRequest, Overloaded
from gateway.admin.uploads import receive_file

AT_ONCE = 4
"""Uploads that one gateway worker takes in at a time."""


@dataclass(frozen=True, slots=True)
class Upload:
    file: Path
    sha256: str
    size: int


class Uploads:
    """Takes in bodies up to the bound of datasets, a few at a time."""

    def __init__(self, config: Config) -> None:
        self._limit = config.limits.max_dataset_bytes
        self._silence_s = config.timeouts.body_s
        self._free = asyncio.Semaphore(AT_ONCE)

    @asynccontextmanager
    async def receive(self, request: Request, folder: Path) -> AsyncIterator[Upload]:
        """The body as a file in `folder`.

        Raises:
            TooLarge, TooSlow: over the bound, or not in time.
            Overloaded: enough uploads are being taken in.
            InvalidRequest: the body is empty, or ended too early.
        """
        if self._free.locked():
            raise Overloaded(f"{AT_ONCE} uploads are being taken in", retry_after_s=5)
        async with self._free:
            file = await asyncio.to_thread(new_upload, folder)
            try:
                with await asyncio.to_thread(_Hashed, file) as stream:
                    size = await receive_file(
                        request, stream, max_bytes=self._limit, silence_s=self._silence_s
                    )
                if not size:
                    raise InvalidRequest("the body is empty: send the file as the body")
                yield Upload(file, stream.digest.hexdigest(), size)
            finally:
                await asyncio.to_thread(file.unlink, missing_ok=True)


class _Hashed(FileIO):
    """A new file that knows the digest of what was written to it."""

    def __init__(self, file: Path) -> None:
        super().__init__(file, "xb")
        self.digest = hashlib.sha256()

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self.digest.update(data)
        return super().write(data)
