"""Archives of plain files: written in one pass, and read without trust.

An archive is a gzipped tar of regular files with short names. Nothing else is read: no folder, no
link, no extended header, whose size nobody would bound.
"""

import gzip
import hashlib
import io
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol

from experts.errors import ArchiveError

COMPRESSION = 1
"""The data is either small or compressed already: fast beats tight."""

CHUNK = 1 << 20
MAX_NAME = 99
"""Longer names would need an extended header."""


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class ArchiveWriter:
    """Adds members to an archive; `digests` and `sizes` are by name."""

    def __init__(self, tar: tarfile.TarFile) -> None:
        self.digests: dict[str, str] = {}
        self.sizes: dict[str, int] = {}
        self._tar = tar

    def add(self, name: str, data: bytes) -> None:
        self._add(name, io.BytesIO(data), len(data))

    def add_file(self, name: str, path: Path) -> None:
        """
        Raises:
            OSError: the file can't be opened; nothing was written.
            ArchiveError: it could not be written whole, so the archive is of no use.
        """
        with path.open("rb") as file:
            self._add(name, file, path.stat().st_size)

    def add_open(self, name: str, file: IO[bytes]) -> None:
        """A member of all that is in `file`."""
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        self._add(name, file, size)

    def _add(self, name: str, file: IO[bytes], size: int) -> None:
        if len(name) > MAX_NAME or name in self.digests:
            raise ValueError(f"not a name for a member: {name}")
        info = tarfile.TarInfo(name)
        info.size, info.mode = size, 0o600
        hashing = _Hashing(file)
        try:
            self._tar.addfile(info, hashing)
        except OSError as error:
            raise ArchiveError(f"can't write {name} to the archive: {error}") from error
        self.digests[name], self.sizes[name] = hashing.digest.hexdigest(), size


@contextmanager
def write_archive(file: IO[bytes]) -> Iterator[ArchiveWriter]:
    """Write an archive to `file`; leaving ends it."""
    with (
        gzip.GzipFile(fileobj=file, mode="wb", compresslevel=COMPRESSION, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w|", format=tarfile.GNU_FORMAT) as tar,
    ):
        yield ArchiveWriter(tar)


class _Hashing(io.RawIOBase):
    """A file whose bytes are hashed as they are read."""

    def __init__(self, file: IO[bytes]) -> None:
        self.digest = hashlib.sha256()
        self._file = file

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self.digest.update(data)
        return data


class Member:
    """A member that is being read; its content must be taken, piece by piece, before the next."""

    def __init__(self, name: str, size: int, stream: _Readable) -> None:
        self.name = name
        self.size = size
        self._stream = stream
        self._left = size

    def chunks(self) -> Iterator[bytes]:
        while self._left:
            data = _exactly(self._stream, min(CHUNK, self._left))
            self._left -= len(data)
            yield data

    def skip(self) -> None:
        for _ in self.chunks():
            pass


def read_archive(file: IO[bytes], *, max_bytes: int, max_members: int) -> Iterator[Member]:
    """The members of an archive in order, within bounds on their number and their bytes in all.

    Raises:
        ArchiveError: damaged, over a bound, or with members that are not plain files.
    """
    total = 0
    with gzip.GzipFile(fileobj=file, mode="rb") as plain:
        for _ in range(max_members):
            block = _exactly(plain, tarfile.BLOCKSIZE)
            if not any(block):
                return
            try:
                info = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
            except (tarfile.HeaderError, UnicodeError) as error:
                raise _not_whole(error) from error
            if info.type != tarfile.REGTYPE:
                raise ArchiveError(f"the archive holds something else than files: {info.name!r}")
            total += info.size
            if info.size < 0 or total > max_bytes:
                raise ArchiveError(f"the archive unpacks to more than {max_bytes} bytes")
            member = Member(info.name, info.size, plain)
            yield member
            member.skip()
            _exactly(plain, -info.size % tarfile.BLOCKSIZE)
    raise ArchiveError(f"the archive has more than {max_members} members")


def _exactly(stream: _Readable, size: int) -> bytes:
    """
    Raises:
        ArchiveError: it ends earlier, or is no gzip stream.
    """
    try:
        data = stream.read(size)
        while len(data) < size:
            more = stream.read(size - len(data))
            if not more:
                raise EOFError("it ends too early")
            data += more
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise _not_whole(error) from error
    return data


def _not_whole(error: Exception) -> ArchiveError:
    return ArchiveError(f"this is not a whole archive of Composer's state: {error}")
