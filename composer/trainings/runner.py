"""The loop of a supervisor that runs queued trainings, one at a time, each in its own process.

A training that was running when its supervisor died is run again: the same data and experts make
the same version, so nothing is done twice.
"""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from shutil import rmtree
from types import TracebackType
from typing import Self, TypeVar

from pydantic import ValidationError

from composer.compositions import EncoderIdentity, artefacts_folder, keep_artefact, promote
from composer.config import Config
from composer.datasets import clean_uploads, datasets_folder, files_of, list_configured
from composer.lease import Lease
from composer.logs import get_logger
from composer.processes import Command, ManagedProcess, child_environment, start_process
from composer.setup import encoder_identity
from composer.state import CompositionVersion, State, TrainingProgress, TrainingRecord
from composer.state.store import version_key
from composer.trainings.job import ARTEFACT, JOB, PROGRESS, RESULT, Job, Result, Step
from composer.trainings.queue import ACTIVE, prune_trainings
from experts.errors import ComposerError, DataError, InvalidRequest, StateUnavailable

POLL_S = 0.5
MAX_LINES = 20
MAX_ERROR = 2000
ONE_THREAD = tuple((f"{name}_NUM_THREADS", "1") for name in ("OMP", "OPENBLAS", "MKL"))

T = TypeVar("T")


class TrainingRunner:
    """`async with` runs the loop, as long as `lease` is held where there is one."""

    def __init__(
        self,
        state: State,
        config: Config,
        lease: Lease | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._state = state
        self._config = config
        self._lease = lease
        self._clock = clock
        self._folder = config.state_dir / "trainings"
        self._task: asyncio.Task[None] | None = None
        self._log = get_logger("trainings")

    async def __aenter__(self) -> Self:
        for folder in (datasets_folder(self._config), artefacts_folder(self._config)):
            await asyncio.to_thread(clean_uploads, folder)
        await asyncio.to_thread(rmtree, self._folder, ignore_errors=True)
        self._task = asyncio.create_task(self._run(), name="trainings")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    @property
    def _in_charge(self) -> bool:
        return self._lease is None or self._lease.held

    async def _run(self) -> None:
        try:
            await self._until_written(lambda: list_configured(self._state, self._config))
        except ComposerError as error:
            self._log.warning("the configured data can't be listed", error=error.message)
        while True:
            try:
                worked = self._in_charge and await self._turn()
            except StateUnavailable as error:
                worked = False
                self._log.warning("trainings wait for the state", error=error.message)
            if not worked:
                await asyncio.sleep(POLL_S)

    async def _turn(self) -> bool:
        """Run the training that has waited longest; whether there was one."""
        jobs = await self._state.jobs.all()
        for job in sorted(jobs.values(), key=lambda job: job.created_at):
            record = await self._state.trainings.find(job.id)
            if record is None or record.state not in ACTIVE:
                await self._state.jobs.put({job.id: None})
                continue
            record = await self._state.trainings.update(job.id, self._started)
            if record.state == "running":
                await self._execute(record)
            return True
        return False

    def _started(self, record: TrainingRecord) -> TrainingRecord:
        if record.state not in ACTIVE:
            return record
        return record.model_copy(
            update={
                "state": "running",
                "started_at": self._clock(),
                "progress": TrainingProgress(),
            }
        )

    async def _execute(self, record: TrainingRecord) -> None:
        """Run a training to its end, and write down what came of it."""
        folder = self._folder / record.id
        log = self._log.bind(training=record.id, composition=record.composition)
        log.info("training started")
        try:
            await self._prepare(record, folder)
            process = await start_process(
                Command(
                    "training",
                    [sys.executable, "-m", "composer.cli", "train-job", str(folder)],
                    env=child_environment(ONE_THREAD),
                    log=self._config.state_dir / "logs" / "training.log",
                ),
                self._config.state_dir / "processes",
            )
            try:
                end = await self._watch(record, process, folder / PROGRESS)
            finally:
                # Whatever it was doing is in its folder, which goes: there is nothing to wait for.
                if process.returncode is None:
                    process.kill()
                await process.wait()
            if end == "":
                await self._publish(record, self._result(folder, process))
            elif end == "cancelled":
                await self._finish(record, "cancelled", error="")
            elif end != "not in charge":
                await self._finish(record, "failed", error=end)
        except StateUnavailable:
            raise
        except ComposerError as error:
            await self._finish(record, "failed", error=error.message)
        except OSError as error:
            await self._finish(record, "failed", error=f"it can't be run here: {error}")
        except Exception:
            log.exception("a training could not be handled")
            await self._finish(record, "failed", error="an unexpected error: the log has it")
        finally:
            await asyncio.to_thread(rmtree, folder, ignore_errors=True)
        log.info("training ended")

    async def _prepare(self, record: TrainingRecord, folder: Path) -> None:
        """
        Raises:
            DataError, NotFound, InvalidRequest: a dataset or an expert is gone.
        """
        state, config = self._state, self._config
        files: list[Path] = []
        for dataset in record.datasets:
            files += files_of(await state.datasets.get(dataset), config)
        registered = {e: record.spec for e, record in (await state.experts.all()).items()}
        gone = sorted(set(record.experts) - registered.keys())
        if gone:
            raise InvalidRequest(f"expert '{gone[0]}' is not registered any more", param="experts")
        taking_part = record.experts or tuple(sorted(registered))
        if not taking_part:
            raise DataError("no expert is registered: register those that the data speaks of")
        live = await state.live.find(record.composition)
        job = Job(
            composition=record.composition,
            files=tuple(files),
            specs=tuple(registered[expert] for expert in taking_part),
            base=Path(live.current.artefact) if live is not None else None,
            quality_weight=record.quality_weight,
            backend=config.encoder.backend,
            cache_dir=config.cache_dir,
        )

        def write() -> None:
            rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True, mode=0o700)
            (folder / JOB).write_text(job.model_dump_json())

        await asyncio.to_thread(write)

    async def _watch(self, record: TrainingRecord, process: ManagedProcess, file: Path) -> str:
        """Follow a training. Returns why it was ended, empty if it ended by itself."""
        follower = _Follower(file)
        loop = asyncio.get_running_loop()
        limit = self._config.timeouts.training_s
        deadline = loop.time() + limit
        ended = asyncio.create_task(process.wait())
        try:
            while True:
                await asyncio.wait([ended], timeout=POLL_S)
                progress = await asyncio.to_thread(follower.read)
                cancelled = await self._tell(record.id, progress)
                if ended.done():
                    return ""
                if cancelled:
                    return "cancelled"
                if not self._in_charge:
                    return "not in charge"
                if loop.time() > deadline:
                    return f"it was not done within {limit:g} s (timeouts.training_s)"
        finally:
            ended.cancel()

    async def _tell(self, training: str, progress: TrainingProgress) -> bool:
        """Write down how far it is; whether it was called off. The state may be away for a time."""
        try:
            record = await self._state.trainings.update(
                training, lambda r: r.model_copy(update={"progress": progress})
            )
        except StateUnavailable:
            return False
        return record.cancel

    def _result(self, folder: Path, process: ManagedProcess) -> Result:
        """
        Raises:
            DataError: there is none, or it says why.
        """
        try:
            result = Result.model_validate_json((folder / RESULT).read_bytes())
        except (OSError, ValidationError) as error:
            last = process.last_words().rpartition("\n")[2]
            raise DataError(
                f"its process ended unexpectedly ({process.returncode}): {last}"[:MAX_ERROR]
            ) from error
        if result.error:
            raise DataError(result.error)
        return result

    async def _publish(self, record: TrainingRecord, result: Result) -> None:
        """Keep the artefact as a version, live if that was asked for, and the result with it."""
        state, notes = self._state, list(result.notes)
        encoder = EncoderIdentity(*await asyncio.to_thread(encoder_identity, self._config))
        staged = self._folder / record.id / ARTEFACT
        kept = await self._until_written(
            lambda: keep_artefact(
                state,
                self._config,
                staged,
                record.composition,
                encoder,
                source="training",
                quality_weight=record.quality_weight,
                created_by=record.created_by,
                training=record.id,
                clock=self._clock,
            )
        )
        versions = {version_key(kept.name, kept.version): kept}
        if record.promote:
            await self._until_written(lambda: state.versions.put(versions))
            try:
                await self._until_written(
                    lambda: promote(state, kept.name, kept.version, encoder, self._clock)
                )
            except ComposerError as error:
                notes.append(f"not promoted: {error.message}")
        done = record.model_copy(
            update={
                "version": kept.version,
                "report": result.figures,
                "notes": tuple(notes),
            }
        )
        await self._finish(done, "succeeded", versions=versions)

    async def _finish(
        self,
        record: TrainingRecord,
        end: str,
        *,
        error: str = "",
        versions: Mapping[str, CompositionVersion] | None = None,
    ) -> None:
        """Write the end of a training, its version and the shorter queue in one transaction."""
        state = self._state
        current = await self._until_written(lambda: state.trainings.find(record.id))
        progress = current.progress if current is not None else record.progress
        if end == "succeeded":
            progress = progress.model_copy(update={"share": 1.0})
        final = record.model_copy(
            update={
                "state": end,
                "error": error[:MAX_ERROR],
                "finished_at": self._clock(),
                "progress": progress,
                "cancel": current is not None and current.cancel,
            }
        )
        await self._until_written(
            lambda: state.write(
                [
                    (state.versions, versions or {}),
                    (state.trainings, {record.id: final}),
                    (state.jobs, {record.id: None}),
                ]
            )
        )
        await self._until_written(lambda: prune_trainings(state))

    async def _until_written(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do it when the state is there: the work of an hour is not thrown away for a second."""
        while True:
            try:
                return await work()
            except StateUnavailable as error:
                self._log.warning("a training waits for the state", error=error.message)
                await asyncio.sleep(POLL_S)


class _Follower:
    """Reads the progress that a training writes, whole lines of it."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._offset = 0
        self._progress = TrainingProgress()

    def read(self) -> TrainingProgress:
        try:
            with self._file.open("rb") as stream:
                stream.seek(self._offset)
                raw = stream.read()
        except OSError:
            return self._progress
        whole = raw[: raw.rfind(b"\n") + 1]
        self._offset += len(whole)
        share, lines = self._progress.share, list(self._progress.lines)
        for line in whole.splitlines():
            step = Step.model_validate_json(line)
            share = share if step.share is None else step.share
            if step.line is not None:
                lines.append(step.line)
        self._progress = TrainingProgress(share=share, lines=tuple(lines[-MAX_LINES:]))
        return self._progress
