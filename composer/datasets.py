"""Uploaded labelled task data: files in the state folder, each with a record of its provenance.

The data that the configuration names is listed beside them under the id `configured`, so that a
training can build on it.
"""

import asyncio
import hashlib
import os
import secrets
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from shutil import rmtree

from pydantic import BaseModel, ValidationError

from composer.config import Config, training_files
from composer.files import move_into_place
from composer.processes import child_environment
from composer.state import DatasetRecord, State
from experts.errors import Conflict, DataError, NotFound
from routers.data_summary import DataSummary

CONFIGURED = "configured"
UPLOAD_PREFIX = ".upload-"
MAX_DATASETS = 1000
CHECK_S = 300.0
READ_BYTES = 1 << 20


class CheckReport(BaseModel):
    """What a checking process prints: a summary, or why there is none."""

    summary: DataSummary | None = None
    error: str = ""


def datasets_folder(config: Config) -> Path:
    return config.state_dir / "datasets"


def new_upload(folder: Path) -> Path:
    """Where an upload is written until it is known to be whole and good."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder / f"{UPLOAD_PREFIX}{secrets.token_hex(8)}"


def clean_uploads(folder: Path) -> None:
    """Remove what uploads left behind that were cut off. Nobody may be uploading."""
    for left in folder.glob(f"{UPLOAD_PREFIX}*"):
        if left.is_dir():
            rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


async def check_files(files: Sequence[Path], timeout_s: float = CHECK_S) -> DataSummary:
    """Read files whole, in a process of its own: a gateway goes on serving meanwhile.

    Raises:
        DataError: there is no good line, or the check was not done in time.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "composer.cli", "dataset-check", *map(str, files)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=child_environment(),
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(timeout_s):
            raw = await process.stdout.read()
            await process.wait()
    except TimeoutError as error:
        raise DataError(f"the data could not be read within {timeout_s:g} s: send less") from error
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    try:
        report = CheckReport.model_validate_json(raw)
    except ValidationError as error:
        raise DataError(
            f"the data can't be read: its check ended with code {process.returncode}"
        ) from error
    if report.summary is None:
        raise DataError(report.error, param="data")
    return report.summary


async def add_dataset(
    state: State,
    config: Config,
    upload: Path,
    *,
    name: str,
    source: str,
    uploaded_by: str,
    sha256: str,
    size: int,
    clock: Callable[[], float] = time.time,
) -> DatasetRecord:
    """Check a file that was uploaded and keep it. It is on the disk when this returns.

    Raises:
        DataError: it holds no good line.
        Conflict: there are too many datasets.
    """
    if len(await state.datasets.all()) >= MAX_DATASETS:
        raise Conflict(f"there are {MAX_DATASETS} datasets already: remove some first")
    summary = await _check_upload(upload, name)
    dataset = f"ds-{secrets.token_hex(6)}"
    file = datasets_folder(config) / f"{dataset}.{summary.format}"
    record = DatasetRecord(
        id=dataset,
        name=name,
        source=source,
        file=str(file),
        uploaded_at=clock(),
        uploaded_by=uploaded_by,
        sha256=sha256,
        bytes=size,
        **asdict(summary),
    )
    await asyncio.to_thread(move_into_place, upload, file)
    await state.datasets.create(dataset, record)
    return record


async def _check_upload(upload: Path, name: str) -> DataSummary:
    """The summary of an upload, which speaks of it by the name that the client gave it."""
    try:
        summary = await check_files([upload])
    except DataError as error:
        raise DataError(error.message.replace(upload.name, name), param=error.param) from error
    lines = tuple(line.replace(upload.name, name) for line in summary.bad_lines)
    return replace(summary, bad_lines=lines)


async def remove_dataset(state: State, dataset: str) -> None:
    """
    Raises:
        NotFound: there is none of this id.
        Conflict: a training that waits or runs needs it, or it belongs to the configuration.
    """
    record = await state.datasets.get(dataset)
    if dataset == CONFIGURED:
        raise Conflict(f"'{CONFIGURED}' is the data that the configuration names: change it there")
    for job in await state.jobs.all():
        training = await state.trainings.find(job)
        if (
            training is not None
            and training.state in ("queued", "running")
            and dataset in training.datasets
        ):
            raise Conflict(
                f"training '{training.id}' needs the dataset '{dataset}': "
                "cancel it, or wait until it is done"
            )
    await state.datasets.put({dataset: None})
    await asyncio.to_thread(Path(record.file).unlink, missing_ok=True)


def files_of(record: DatasetRecord, config: Config) -> tuple[Path, ...]:
    """The files of a dataset.

    Raises:
        NotFound: a file is gone.
    """
    files = training_files(config) if record.id == CONFIGURED else (Path(record.file),)
    for file in files:
        if not file.is_file():
            raise NotFound(f"dataset '{record.id}' has lost its file {file.name}: upload it again")
    return files


async def list_configured(
    state: State, config: Config, clock: Callable[[], float] = time.time
) -> None:
    """List the data that the configuration names; none, where it names a ready artefact.

    Raises:
        DataError: the data can't be read.
    """
    if config.composition.artefact is not None:
        await state.datasets.put({CONFIGURED: None})
        return
    files = training_files(config)
    sha256, size = await asyncio.to_thread(_digest, files)
    known = await state.datasets.find(CONFIGURED)
    if known is not None and known.sha256 == sha256:
        return
    summary = await check_files(files)
    record = DatasetRecord(
        id=CONFIGURED,
        name="data of the configuration",
        source=f"composition.data of the configuration ({config.composition.name})",
        file="",
        uploaded_at=clock(),
        sha256=sha256,
        bytes=size,
        **asdict(summary),
    )
    await state.datasets.put({CONFIGURED: record})


def _digest(files: Sequence[Path]) -> tuple[str, int]:
    digest = hashlib.sha256()
    size = 0
    for file in files:
        try:
            with file.open("rb") as stream:
                while part := stream.read(READ_BYTES):
                    digest.update(part)
                    size += len(part)
        except OSError as error:
            raise DataError(f"can't read {file}: {error.strerror}", param="data") from error
    return digest.hexdigest(), size
