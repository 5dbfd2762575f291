"""Looking into an archive without using it."""

import hashlib
from pathlib import Path

from composer.backup.archive import read_archive
from composer.backup.contents import (
    HEADER,
    MANIFEST,
    MAX_MANIFEST,
    MAX_MEMBERS,
    Entry,
    Manifest,
    check_members,
    read_header,
    read_manifest,
)
from experts.errors import ArchiveError

MAX_BYTES = 1 << 40


def inspect_archive(path: Path) -> Manifest:
    """The manifest of an archive, every member of which was checked against it.

    Raises:
        ArchiveError: it is damaged, or not whole.
    """
    found: dict[str, Entry] = {}
    with path.open("rb") as file:
        for member in read_archive(file, max_bytes=MAX_BYTES, max_members=MAX_MEMBERS):
            if member.name in (HEADER, MANIFEST) and member.size > MAX_MANIFEST:
                raise ArchiveError(f"{member.name} is longer than {MAX_MANIFEST} bytes")
            digest = hashlib.sha256()
            kept = []
            for chunk in member.chunks():
                digest.update(chunk)
                if member.name in (HEADER, MANIFEST):
                    kept.append(chunk)
            if member.name == HEADER:
                read_header(b"".join(kept))
            elif member.name == MANIFEST:
                manifest = read_manifest(b"".join(kept))
                check_members(manifest, found)
                return manifest
            found[member.name] = Entry(bytes=member.size, sha256=digest.hexdigest())
    raise ArchiveError(f"{path} is not whole: its end with the manifest is missing")
