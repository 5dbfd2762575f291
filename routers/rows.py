"""Rows of labelled task data: what one may say, and files of them, JSONL or parquet.

A row that can't be used is yielded as the `DataError` that says why, so that a reader counts it and
goes on. Files are read in pieces of bounded size.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from experts.errors import DataError, SetupError
from routers.conversation import routing_text

MAX_LINE_BYTES = 4 << 20
MAX_TEXT = 1_000_000
MAX_ROW_GROUP_BYTES = 1 << 30
BATCH_ROWS = 256
PARQUET_MAGIC = b"PAR1"

Format = Literal["jsonl", "parquet"]
Name = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f]+$")]


def _whole_number_as_text(value: object) -> object:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


class Message(BaseModel):
    model_config = ConfigDict(extra="ignore")

    role: str
    content: str = Field(max_length=MAX_TEXT)


class Row(BaseModel):
    """One line. Other fields (a check, a source, ...) are allowed and ignored.

    `tokens`, `price` (USD) and `latency` (ms) are of the answer that `score` grades. With `tie`,
    neither of `winner` and `loser` was better than the other.
    """

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)

    id: Annotated[str | None, BeforeValidator(_whole_number_as_text)] = Field(
        default=None, min_length=1, max_length=512
    )
    prompt: str | None = Field(default=None, max_length=MAX_TEXT)
    messages: list[Message] | None = Field(default=None, min_length=1, max_length=10_000)
    category: Name | None = None
    expert: Name | None = None
    score: float | None = Field(default=None, ge=0, le=1)
    tokens: float | None = Field(default=None, ge=0)
    price: float | None = Field(default=None, ge=0)
    latency: float | None = Field(default=None, ge=0)
    winner: Name | None = None
    loser: Name | None = None
    tie: bool | None = None

    @model_validator(mode="after")
    def _says_something(self) -> "Row":
        if (self.expert is None) != (self.score is None):
            raise ValueError("'expert' and 'score' belong together")
        if (self.winner is None) != (self.loser is None):
            raise ValueError("'winner' and 'loser' belong together")
        if self.winner is not None and self.winner == self.loser:
            raise ValueError("'winner' and 'loser' are the same expert")
        if self.tie and self.winner is None:
            raise ValueError("'tie' needs 'winner' and 'loser', the two that are equally good")
        if self.prompt is None and self.messages is None and self.id is None:
            raise ValueError("a line needs 'prompt', 'messages', or the 'id' of a prompt")
        return self

    @property
    def text(self) -> str | None:
        """The text to route on: the prompt, else the last thing that the user said."""
        if self.prompt is not None:
            return self.prompt
        if self.messages is None:
            return None
        return routing_text([(message.role, message.content) for message in self.messages])


def format_of(file: Path) -> Format:
    """
    Raises:
        DataError: the file can't be read.
    """
    try:
        with file.open("rb") as stream:
            return "parquet" if stream.read(len(PARQUET_MAGIC)) == PARQUET_MAGIC else "jsonl"
    except OSError as error:
        raise DataError(f"can't read {file}: {error.strerror}", param="data") from error


def read_rows(file: Path) -> Iterator[tuple[int, Row | DataError]]:
    """Rows with their numbers from 1; of a JSONL file, those of the lines.

    Raises:
        DataError: the file as a whole can't be read.
        SetupError: a parquet file, and nothing here to read it.
    """
    return _parquet_rows(file) if format_of(file) == "parquet" else _jsonl_rows(file)


def _jsonl_rows(file: Path) -> Iterator[tuple[int, Row | DataError]]:
    try:
        with file.open("rb") as stream:
            number = 0
            while line := stream.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
                    _skip_line(stream)
                if line.strip():
                    yield number, _parse(line)
    except OSError as error:
        raise DataError(f"can't read {file}: {error.strerror}", param="data") from error


def _skip_line(stream: BinaryIO) -> None:
    while (part := stream.readline(MAX_LINE_BYTES)) and not part.endswith(b"\n"):
        pass


def _parse(line: bytes) -> Row | DataError:
    if len(line) > MAX_LINE_BYTES:
        return DataError(f"the line is longer than {MAX_LINE_BYTES} bytes")
    try:
        return _row(json.loads(line))
    except UnicodeDecodeError:
        return DataError("not UTF-8")
    except (ValueError, RecursionError):
        return DataError("not JSON")


def _row(fields: Any) -> Row | DataError:
    try:
        return Row.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        return DataError(f"{where}: {message}" if where else message)


def _parquet_rows(file: Path) -> Iterator[tuple[int, Row | DataError]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise SetupError(
            f"{file.name} is parquet, and pyarrow is not installed: "
            "install expert-composer[train], or send JSONL"
        ) from error
    try:
        with pyarrow.parquet.ParquetFile(file, pre_buffer=False) as parquet:
            columns = [name for name in parquet.schema_arrow.names if name in Row.model_fields]
            _check_parquet(file, parquet, columns)
            number = 0
            for batch in parquet.iter_batches(BATCH_ROWS, columns=columns, use_threads=False):
                for fields in batch.to_pylist():
                    number += 1
                    # A missing number is null or, from other writers, not-a-number.
                    yield number, _row({k: v for k, v in fields.items() if v == v})
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise DataError(f"can't read {file.name} as parquet: {reason}", param="data") from error


def _check_parquet(file: Path, parquet: Any, columns: list[str]) -> None:
    if not columns:
        raise DataError(
            f"{file.name} has none of the columns {', '.join(sorted(Row.model_fields))}",
            param="data",
        )
    groups = range(parquet.metadata.num_row_groups)
    if any(parquet.metadata.row_group(g).total_byte_size > MAX_ROW_GROUP_BYTES for g in groups):
        raise DataError(
            f"{file.name} has a row group of more than {MAX_ROW_GROUP_BYTES} bytes: "
            "write it with smaller ones",
            param="data",
        )
