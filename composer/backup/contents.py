"""What an archive of the state holds: a header first, then tables and files, a manifest last.

The header is enough to refuse a newer version at once; without a manifest an archive is not whole.
"""

import re
from collections.abc import Mapping
from importlib import metadata
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from composer.state import SCHEMA_VERSION
from experts.errors import ArchiveError

HEADER = "header.json"
MANIFEST = "manifest.json"
STATISTICS = "statistics.jsonl"
TABLES = ("experts", "live", "versions", "keys", "datasets", "trainings")

MAX_MEMBERS = 200_000
MAX_HEADER = 64 << 10
MAX_MANIFEST = 64 << 20
MAX_TABLE = 256 << 20

_VERSION = re.compile(r"[0-9a-f]{8,40}")
_DATASET = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,39}")


H = TypeVar("H", bound="Header")


class Header(BaseModel):
    """Which state this is, of which version, and of when."""

    model_config = ConfigDict(frozen=True)

    format: Literal["composer-state"] = "composer-state"
    schema_version: int = Field(default=SCHEMA_VERSION, ge=1)
    composer_version: str = Field(default_factory=lambda: metadata.version("expert-composer"))
    created_at: float


class Entry(BaseModel):
    """One member: how long it is, and the hash of its content."""

    model_config = ConfigDict(frozen=True)

    bytes: int
    sha256: str


class Manifest(Header):
    """The whole content. `left_out` says what could not be exported, and why."""

    counts: dict[str, int]
    members: dict[str, Entry]
    left_out: tuple[str, ...] = ()


def table_member(table: str) -> str:
    return f"tables/{table}.jsonl"


def artefact_member(version: str, file: str) -> str | None:
    """Name of an artefact's file in the archive, if it can have one."""
    return f"artefacts/{version}/{file}" if _VERSION.fullmatch(version) and _file(file) else None


def dataset_member(dataset: str) -> str | None:
    """Name of a dataset's file in the archive, if it can have one."""
    return f"datasets/{dataset}" if _DATASET.fullmatch(dataset) else None


def max_size(name: str, max_bytes: int) -> int | None:
    """How long a member of this name may be; None if there is no such member."""
    folder, _, rest = name.partition("/")
    fixed = {HEADER: MAX_HEADER, MANIFEST: MAX_MANIFEST, STATISTICS: max_bytes}
    if name in fixed:
        return fixed[name]
    if folder == "tables" and rest.removesuffix(".jsonl") in TABLES and rest.endswith(".jsonl"):
        return MAX_TABLE
    if folder == "datasets" and _DATASET.fullmatch(rest):
        return max_bytes
    version, _, file = rest.partition("/")
    if folder == "artefacts" and _VERSION.fullmatch(version) and _file(file):
        return max_bytes
    return None


def read_header(raw: bytes) -> Header:
    """
    Raises:
        ArchiveError: not a header, or of a version that this one can't read.
    """
    header = _parse(Header, raw)
    if header.schema_version > SCHEMA_VERSION:
        raise ArchiveError(
            f"the archive has schema {header.schema_version} (Composer {header.composer_version}), "
            f"this version knows {SCHEMA_VERSION}: upgrade Composer first"
        )
    return header


def read_manifest(raw: bytes) -> Manifest:
    """
    Raises:
        ArchiveError: not a manifest.
    """
    return _parse(Manifest, raw)


def check_members(manifest: Manifest, found: Mapping[str, Entry]) -> None:
    """
    Raises:
        ArchiveError: what was found is not what the manifest lists.
    """
    for name in sorted(set(manifest.members) | set(found)):
        if manifest.members.get(name) != found.get(name):
            raise ArchiveError(f"the archive is damaged: {name} is not what its manifest says")


def _file(name: str) -> bool:
    return _FILE.fullmatch(name) is not None


def _parse(model: type[H], raw: bytes) -> H:
    try:
        return model.model_validate_json(raw)
    except ValidationError as error:
        raise ArchiveError(
            "this is not an archive of Composer's state: export one with `coe state export`"
        ) from error
