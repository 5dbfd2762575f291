"""Unpacking an archive into a folder of its own, and checking all of it before it is used."""

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError

from composer.backup.archive import Member, read_archive
from composer.backup.contents import (
    HEADER,
    MANIFEST,
    MAX_MEMBERS,
    STATISTICS,
    TABLES,
    Entry,
    Manifest,
    artefact_member,
    check_members,
    dataset_member,
    max_size,
    read_header,
    read_manifest,
    table_member,
)
from composer.backup.statistics import MAX_LINE
from composer.state import (
    CompositionVersion,
    DatasetRecord,
    ExpertRecord,
    KeyRecord,
    LiveRecord,
    TrainingRecord,
)
from composer.state.store import version_key
from experts.errors import ArchiveError, ArtefactError
from routers.artefact import load_artefact

SPARE_BYTES = 64 << 20
"""Room that unpacking leaves on the disk: the state's own server must be able to write."""

_MODELS: dict[str, type[BaseModel]] = {
    "experts": ExpertRecord,
    "live": LiveRecord,
    "versions": CompositionVersion,
    "keys": KeyRecord,
    "datasets": DatasetRecord,
    "trainings": TrainingRecord,
}


@dataclass(frozen=True, slots=True)
class Unpacked:
    """A whole archive whose every part was checked; its files are in `folder`."""

    folder: Path
    manifest: Manifest
    experts: Mapping[str, ExpertRecord]
    live: Mapping[str, LiveRecord]
    versions: Mapping[str, CompositionVersion]
    keys: Mapping[str, KeyRecord]
    datasets: Mapping[str, DatasetRecord]
    trainings: Mapping[str, TrainingRecord]

    def artefact(self, version: str) -> Path:
        return self.folder / "artefacts" / version

    def dataset(self, record: DatasetRecord) -> Path:
        return self.folder / "datasets" / record.id

    def statistics(self) -> Iterator[bytes]:
        """Lines of the statistics.

        Raises:
            ArchiveError: a line is too long to be one of ours.
        """
        with (self.folder / STATISTICS).open("rb") as file:
            while line := file.readline(MAX_LINE + 1):
                if len(line) > MAX_LINE:
                    raise ArchiveError("the archive's statistics can't be read")
                yield line


def unpack(file: IO[bytes], folder: Path, max_bytes: int) -> Unpacked:
    """Unpack into the empty `folder`, synced to the disk.

    Raises:
        ArchiveError: damaged, hostile, too large, of a newer version, or at odds with itself.
    """
    found: dict[str, Entry] = {}
    manifest: Manifest | None = None
    for member in read_archive(file, max_bytes=max_bytes, max_members=MAX_MEMBERS):
        _check_member(member, found, max_bytes)
        if manifest is not None:
            raise ArchiveError("the archive goes on after its manifest")
        found[member.name] = _write(member, folder)
        if member.name == HEADER:
            read_header((folder / HEADER).read_bytes())
        elif member.name == MANIFEST:
            del found[MANIFEST]
            manifest = read_manifest((folder / MANIFEST).read_bytes())
            check_members(manifest, found)
    if manifest is None:
        raise ArchiveError("the archive is not whole: its end with the manifest is missing")
    missing = [name for name in (*map(table_member, TABLES), STATISTICS) if name not in found]
    if missing:
        raise ArchiveError(f"the archive has no {missing[0]}")
    tables = {table: _read_table(folder, table) for table in TABLES}
    unpacked = Unpacked(folder, manifest, **tables)
    _check_datasets(unpacked, found)
    _check_versions(unpacked, found)
    return unpacked


def _check_member(member: Member, found: Mapping[str, Entry], max_bytes: int) -> None:
    limit = max_size(member.name, max_bytes)
    if limit is None:
        raise ArchiveError(f"the archive holds a file that does not belong: {member.name!r}")
    if member.size > limit:
        raise ArchiveError(f"{member.name} is longer than {limit} bytes")
    if member.name in found:
        raise ArchiveError(f"the archive holds {member.name} twice")
    if not found and member.name != HEADER:
        raise ArchiveError(
            "this is not an archive of Composer's state: export one with `coe state export`"
        )


def _write(member: Member, folder: Path) -> Entry:
    path = folder / member.name
    path.parent.mkdir(parents=True, exist_ok=True)
    if member.size + SPARE_BYTES > shutil.disk_usage(folder).free:
        raise ArchiveError(f"the disk of {folder.parent} has no room for {member.name}")
    digest = hashlib.sha256()
    with path.open("xb") as file:
        for chunk in member.chunks():
            digest.update(chunk)
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    return Entry(bytes=member.size, sha256=digest.hexdigest())


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid")

    id: str
    record: dict[str, Any]


def _read_table(folder: Path, table: str) -> dict[str, Any]:
    records: dict[str, Any] = {}
    name = table_member(table)
    with (folder / name).open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = _Row.model_validate(orjson.loads(line))
                record = _MODELS[table].model_validate_json(orjson.dumps(row.record))
            except (ValueError, ValidationError) as error:
                raise ArchiveError(f"{name}:{number} can't be read") from error
            if row.id in records or row.id != _id_of(table, record):
                raise ArchiveError(f"{name}:{number} has a wrong id")
            records[row.id] = record
    return records


def _id_of(table: str, record: Any) -> str:
    if table == "experts":
        return str(record.spec.id)
    if table == "live":
        return str(record.current.name)
    if table == "versions":
        return version_key(record.name, record.version)
    return str(record.id)


def _check_datasets(unpacked: Unpacked, found: Mapping[str, Entry]) -> None:
    for record in unpacked.datasets.values():
        entry = found.get(dataset_member(record.id) or "")
        if entry is None or entry.sha256 != record.sha256:
            raise ArchiveError(f"the archive lacks the file of dataset '{record.id}'")


def _check_versions(unpacked: Unpacked, found: Mapping[str, Entry]) -> None:
    records = [*unpacked.versions.values(), *(live.current for live in unpacked.live.values())]
    checked = set()
    for record in records:
        if record.version in checked:
            continue
        checked.add(record.version)
        if artefact_member(record.version, "artefact.json") not in found:
            raise ArchiveError(f"the archive lacks the artefact of version '{record.version}'")
        try:
            artefact = load_artefact(unpacked.artefact(record.version))
        except ArtefactError as error:
            raise ArchiveError(f"version '{record.version}': {error.message}") from error
        if artefact.version != record.version:
            raise ArchiveError(f"the artefact of version '{record.version}' is another one")
