"""Taking over an archive of the state: a plan, its files put in place, then one write.

What the configuration of this installation declares stays as it is. What is here under the same id
with another content is a conflict, and nothing is written, unless the archive's is to replace it.
"""

import asyncio
import os
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

from pydantic import BaseModel
from redis.exceptions import WatchError

from composer.backup import statistics
from composer.backup.contents import TABLES
from composer.backup.unpack import Unpacked, unpack
from composer.config import Config
from composer.setup import encoder_identity
from composer.state import (
    CompositionVersion,
    DatasetRecord,
    ExpertRecord,
    LiveRecord,
    State,
    TrainingRecord,
)
from composer.state.connection import GENERATION, MAX_RACES
from experts.errors import ArchiveError, ArtefactError, ConfigError, Conflict, StateUnavailable
from experts.registry import index_experts
from routers.artefact import load_artefact

WRITE_S = 60.0
"""Deadline of the one write, which may be of megabytes that are synced to the disk."""

MAX_TOLD = 5
"""Conflicts that the refusal names."""

Records = dict[str, Any]


@dataclass(slots=True)
class ImportReport:
    """What an import did: numbers of records by table and fate, and what a person should know."""

    created_at: float
    added: Counter[str] = field(default_factory=Counter)
    replaced: Counter[str] = field(default_factory=Counter)
    unchanged: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)


async def import_state(
    state: State, config: Config, file: IO[bytes], *, replace: bool = False
) -> ImportReport:
    """Take over an archive: all of it or nothing; again and again with the same result.

    Raises:
        ArchiveError: it can't be used.
        Conflict: it contradicts what is here; without `replace` nothing of it is taken.
        StateUnavailable: Redis went away.
    """
    with TemporaryDirectory(prefix=".import-", dir=config.state_dir) as scratch:
        archive = await asyncio.to_thread(
            unpack, file, Path(scratch), config.limits.max_archive_bytes
        )
        await asyncio.to_thread(_check_encoder, archive, config)
        async with state.patient(WRITE_S) as patient:
            staged = statistics.StagedStatistics(patient.connection)
            try:
                await staged.add(archive.statistics())
                return await _take_over(patient, config, archive, staged, replace)
            finally:
                await staged.discard()


async def _take_over(
    state: State,
    config: Config,
    archive: Unpacked,
    staged: statistics.StagedStatistics,
    replace: bool,
) -> ImportReport:
    c = state.connection
    for _ in range(MAX_RACES):
        async with c.redis.pipeline(transaction=True) as pipe:
            await c.call(pipe.watch(*(getattr(state, table).key for table in TABLES)))
            _, records = await state.together([getattr(state, table) for table in TABLES])
            plan = _Plan(archive, dict(zip(TABLES, records, strict=True)), config, replace)
            await asyncio.to_thread(plan.place_files)
            pipe.multi()
            for table, changes in plan.changes.items():
                if changes:
                    mapping = {key: record.model_dump_json() for key, record in changes.items()}
                    pipe.hset(getattr(state, table).key, mapping=mapping)
            await _statistics(state, pipe, staged, plan.report, replace)
            if any(plan.changes.values()):
                pipe.incr(GENERATION)
            try:
                await c.call(pipe.execute())
            except WatchError:
                continue
            return plan.report
    raise StateUnavailable("the state is changed by too many at once: try again")


async def _statistics(
    state: State,
    pipe: Any,
    staged: statistics.StagedStatistics,
    report: ImportReport,
    replace: bool,
) -> None:
    here = await statistics.existing(state.connection)
    if here and not replace:
        if staged.keys:
            report.notes.append("statistics: those that are here stay, the archive's were left")
        return
    if gone := here - set(staged.keys):
        pipe.unlink(*gone)
    staged.take_over(pipe, replace=replace)
    report.added["statistics"] = len(staged.keys)


class _Plan:
    """What an import changes, given what is here. It neither reads nor writes the state."""

    def __init__(
        self, archive: Unpacked, here: Mapping[str, Records], config: Config, replace: bool
    ) -> None:
        self.report = ImportReport(created_at=archive.manifest.created_at)
        self.report.notes += [f"not in the archive: {text}" for text in archive.manifest.left_out]
        self.changes: dict[str, Records] = {table: {} for table in TABLES}
        self._archive = archive
        self._here = here
        self._artefacts = config.state_dir / "artefacts"
        self._datasets = config.state_dir / "datasets"
        self._conflicts: list[str] = []
        for expert in archive.experts.values():
            self._plan_expert(expert, replace)
        for key, version in archive.versions.items():
            # Versions are named for their content: one that is here is the same.
            self._put("versions", key, self._version(version), same=key in here["versions"])
        for name, live in archive.live.items():
            self._plan_live(name, live, replace)
        for key, record in archive.keys.items():
            self._offer("keys", key, record, replace)
        for key, dataset in archive.datasets.items():
            self._offer("datasets", key, self._dataset(dataset), replace)
        for key, training in archive.trainings.items():
            self._plan_training(key, training, replace)
        self._refuse_conflicts()
        self._check_bases()

    def place_files(self) -> None:
        """Move the files of what is new to where its records say; what is there stays."""
        for record in self.changes["versions"].values():
            self._place_artefact(record)
        for live in self.changes["live"].values():
            self._place_artefact(live.current)
        for record in self.changes["datasets"].values():
            _put_in_place(self._archive.dataset(record), Path(record.file))

    def _place_artefact(self, record: CompositionVersion) -> None:
        target = Path(record.artefact)
        if not _is_whole(target, record.version):
            shutil.rmtree(target, ignore_errors=True)
            _put_in_place(self._archive.artefact(record.version), target)

    def _plan_expert(self, record: ExpertRecord, replace: bool) -> None:
        expert, here = record.spec.id, self._here["experts"].get(record.spec.id)
        if record.source == "config":
            # Where its adapter lies is this installation's own affair.
            if here is not None and _without_place(here) == _without_place(record):
                self.report.unchanged["experts"] += 1
            else:
                self.report.notes.append(
                    f"expert '{expert}' stood in the configuration of the archive's installation: "
                    "it is not taken over; copy its composer.yaml for it"
                )
        elif here is not None and here.source == "config" and here.spec != record.spec:
            self.report.notes.append(f"expert '{expert}': the one of this configuration stays")
        else:
            same = here is not None and here.spec == record.spec
            self._put("experts", expert, record, same=same, replace=replace)

    def _plan_live(self, name: str, live: LiveRecord, replace: bool) -> None:
        here: LiveRecord | None = self._here["live"].get(name)
        current = self._version(live.current)
        if live.current.source == "config" and replace:
            current = current.model_copy(update={"source": "import"})
        moved = live.model_copy(update={"current": current})
        same = here is not None and here.current.version == current.version
        if same or (here is not None and here.current.source == "config" != current.source):
            self._put("live", name, moved, same=same, replace=True)
        elif current.source == "config":
            self.report.notes.append(
                f"composition '{name}': its version {current.version} was live by configuration "
                "and is not made live here"
            )
        else:
            self._put("live", name, moved, same=False, replace=replace)

    def _plan_training(self, key: str, training: TrainingRecord, replace: bool) -> None:
        """A job that ran when the archive was made does not run on in another installation."""
        if training.state in ("queued", "running"):
            ended = {
                "state": "cancelled",
                "finished_at": self._archive.manifest.created_at,
                "error": "it had not ended when the state was exported",
            }
            same = key in self._here["trainings"]
            self._put("trainings", key, training.model_copy(update=ended), same=same)
        else:
            self._offer("trainings", key, training, replace)

    def _offer(self, table: str, key: str, record: BaseModel, replace: bool) -> None:
        here = self._here[table].get(key)
        same = here is not None and _content(here) == _content(record)
        self._put(table, key, record, same=same, replace=replace)

    def _put(
        self, table: str, key: str, record: BaseModel, *, same: bool, replace: bool = False
    ) -> None:
        if same:
            self.report.unchanged[table] += 1
        elif key not in self._here[table]:
            self.report.added[table] += 1
            self.changes[table][key] = record
        elif replace:
            self.report.replaced[table] += 1
            self.changes[table][key] = record
        else:
            self._conflicts.append(f"{table} '{key}'")

    def _version(self, record: CompositionVersion) -> CompositionVersion:
        return record.model_copy(update={"artefact": str(self._artefacts / record.version)})

    def _dataset(self, record: DatasetRecord) -> DatasetRecord:
        return record.model_copy(
            update={"file": str(self._datasets / f"{record.id}.{record.format}")}
        )

    def _refuse_conflicts(self) -> None:
        if self._conflicts:
            told = ", ".join(self._conflicts[:MAX_TOLD])
            more = f" and {n} more" if (n := len(self._conflicts) - MAX_TOLD) > 0 else ""
            raise Conflict(
                f"nothing was imported: the archive differs from what is here in {told}{more}; "
                "'replace' takes the archive's",
                param="replace",
            )

    def _check_bases(self) -> None:
        merged = {**self._here["experts"], **self.changes["experts"]}
        try:
            index_experts(record.spec for record in merged.values())
        except ConfigError as error:
            raise Conflict(f"nothing was imported: {error.message}") from error


def _without_place(record: ExpertRecord) -> dict[str, Any]:
    return record.spec.model_dump(exclude={"adapter", "path"})


def _content(record: BaseModel) -> dict[str, Any]:
    """A record without where its file lies on this host."""
    return record.model_dump(exclude={"file"})


def _check_encoder(archive: Unpacked, config: Config) -> None:
    """What is live must be of use to this installation's encoder."""
    identity = encoder_identity(config)
    for name, live in archive.live.items():
        artefact = load_artefact(archive.artefact(live.current.version))
        try:
            artefact.require_encoder(*identity)
        except ArtefactError as error:
            raise ArchiveError(f"composition '{name}': {error.message}") from error


def _is_whole(folder: Path, version: str) -> bool:
    try:
        return load_artefact(folder).version == version
    except ArtefactError:
        return False


def _put_in_place(source: Path, target: Path) -> None:
    """Move a file or folder; what else stands there gives way. Nothing to move: it is there."""
    if not source.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.replace(source, target)
    handle = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
