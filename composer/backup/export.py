"""Writing the whole state to an archive."""

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import orjson
from pydantic import BaseModel

from composer.backup import statistics
from composer.backup.archive import ArchiveWriter, write_archive
from composer.backup.contents import (
    HEADER,
    MANIFEST,
    STATISTICS,
    TABLES,
    Entry,
    Header,
    Manifest,
    artefact_member,
    dataset_member,
    table_member,
)
from composer.datasets import CONFIGURED
from composer.state import (
    CompositionVersion,
    DatasetRecord,
    ExpertRecord,
    LiveRecord,
    State,
)

Tables = dict[str, dict[str, Any]]


async def export_state(state: State, file: IO[bytes], scratch: Path) -> Manifest:
    """Write an archive of the whole state to `file`: tables as of one moment, their artefacts and
    datasets, statistics. `scratch` is a folder that has room for the statistics.

    What has lost its files is left out and said so; the decision cache is not part of the state.

    Raises:
        StateUnavailable: Redis went away.
    """
    _, records = await state.together([getattr(state, table) for table in TABLES])
    tables: Tables = dict(zip(TABLES, records, strict=True))
    with TemporaryFile(dir=scratch) as lines:
        n_statistics = 0
        async for line in statistics.dump(state.connection):
            await asyncio.to_thread(lines.write, line)
            n_statistics += 1
        return await asyncio.to_thread(_write, file, tables, lines, n_statistics)


def _write(file: IO[bytes], tables: Tables, lines: IO[bytes], n_lines: int) -> Manifest:
    header = Header(created_at=time.time())
    with write_archive(file) as archive:
        archive.add(HEADER, header.model_dump_json().encode())
        kept, left_out = _add_files(archive, tables)
        for table, records in kept.items():
            archive.add(table_member(table), _rows(records))
        archive.add_open(STATISTICS, lines)
        manifest = Manifest(
            **header.model_dump(),
            counts={**{t: len(records) for t, records in kept.items()}, "statistics": n_lines},
            members={
                name: Entry(bytes=size, sha256=archive.digests[name])
                for name, size in archive.sizes.items()
            },
            left_out=tuple(left_out),
        )
        archive.add(MANIFEST, manifest.model_dump_json(indent=1).encode())
    return manifest


def _rows(records: Mapping[str, BaseModel]) -> bytes:
    return b"".join(
        b'{"id":%b,"record":%b}\n' % (orjson.dumps(key), record.model_dump_json().encode())
        for key, record in records.items()
    )


def _add_files(archive: ArchiveWriter, tables: Tables) -> tuple[Tables, list[str]]:
    """Add the files of datasets and artefacts. Returns the tables without the records whose files
    are not there, and what those are."""
    kept: Tables = {name: dict(records) for name, records in tables.items()}
    left_out: list[str] = []
    experts: dict[str, ExpertRecord] = kept["experts"]
    kept["experts"] = {e: record for e, record in experts.items() if not record.removing}
    datasets: dict[str, DatasetRecord] = kept["datasets"]
    # The configuration's own data is listed anew wherever it is configured.
    datasets.pop(CONFIGURED, None)
    for dataset, record in list(datasets.items()):
        try:
            _add_dataset(archive, record)
        except OSError as error:
            left_out.append(f"dataset '{dataset}': {error.strerror or error}")
            del datasets[dataset]
    stored: dict[str, str] = {}
    versions: dict[str, CompositionVersion] = kept["versions"]
    for key, version in list(versions.items()):
        if problem := _add_artefact(archive, version, stored):
            left_out.append(f"version '{key}': {problem}")
            del versions[key]
    live: dict[str, LiveRecord] = kept["live"]
    for name, current in list(live.items()):
        if problem := _add_artefact(archive, current.current, stored):
            left_out.append(f"composition '{name}': {problem}")
            del live[name]
    return kept, left_out


def _add_dataset(archive: ArchiveWriter, record: DatasetRecord) -> None:
    member = dataset_member(record.id)
    if member is None:
        raise OSError("its id can't name a file")
    archive.add_file(member, Path(record.file))


def _add_artefact(
    archive: ArchiveWriter, version: CompositionVersion, stored: dict[str, str]
) -> str:
    """Add an artefact unless it is stored already; returns why that can't be, or nothing."""
    if version.version in stored:
        return stored[version.version]
    problem = ""
    try:
        folder = Path(version.artefact)
        files = {file: artefact_member(version.version, file.name) for file in folder.iterdir()}
        strange = [file.name for file, member in files.items() if member is None]
        if strange:
            problem = f"its artefact holds '{strange[0]}'"
        elif not files:
            problem = "its artefact is empty"
        else:
            for file, member in sorted(files.items()):
                assert member is not None
                archive.add_file(member, file)
    except OSError as error:
        problem = error.strerror or str(error)
    stored[version.version] = problem
    return problem
