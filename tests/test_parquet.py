"""Parquet as labelled task data: the same rows as JSONL, and nothing worse than a refusal."""

import json
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experts.errors import DataError
from routers import rows
from routers.data_summary import summarise
from routers.dataset import read_task_data

ROWS = [
    {"id": "1", "prompt": "2+2?", "category": "maths", "expert": "x", "score": 1.0, "tokens": 4},
    {"id": "1", "expert": "y", "score": 0.25, "tokens": 12, "price": 0.5, "latency": 80.0},
    {"messages": [{"role": "user", "content": "hello"}], "category": "chat"},
    {"id": "1", "winner": "x", "loser": "y"},
    {"prompt": "tied", "winner": "x", "loser": "z", "tie": True},
]


def as_parquet(folder: Path, found: list[dict[str, object]], **options: object) -> Path:
    file = folder / "data.parquet"
    pq.write_table(pa.Table.from_pylist(found), file, **options)
    return file


def as_jsonl(folder: Path, found: list[dict[str, object]]) -> Path:
    file = folder / "data.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in found))
    return file


def with_all_columns() -> list[dict[str, object]]:
    """`Table.from_pylist` takes its columns from the first row."""
    return [{**dict.fromkeys(key for row in ROWS for key in row), **row} for row in ROWS]


def test_parquet_says_what_jsonl_says_when_the_rows_are_the_same(tmp_path: Path) -> None:
    one = read_task_data([as_parquet(tmp_path, with_all_columns())])
    other = read_task_data([as_jsonl(tmp_path, ROWS)])
    assert (one.ids, one.texts, one.categories) == (other.ids, other.texts, other.categories)
    assert one.texts == ("2+2?", "hello", "tied")
    np.testing.assert_array_equal(one.scores, other.scores)
    for data in (one, other):
        assert data.preferences.experts == ("x", "y", "z")
        assert data.preferences.prompts.tolist() == [0, 2]
        assert data.preferences.ties.tolist() == [False, True]
        assert data.n_bad == 0


def test_numbers_that_are_null_or_not_a_number_are_missing(tmp_path: Path) -> None:
    table = pa.table({"prompt": ["a", "b", "c"], "expert": ["x", None, "x"],
                      "score": [0.5, float("nan"), 1.5]})  # fmt: skip
    pq.write_table(table, tmp_path / "data.parquet")
    data = read_task_data([tmp_path / "data.parquet"])
    assert data.texts == ("a", "b")
    assert np.isnan(data.scores[1]).all()
    assert str(data.bad_lines[0]) == (
        "data.parquet:3: score: Input should be less than or equal to 1"
    )


def test_rows_are_read_to_the_end_when_they_are_many_batches(tmp_path: Path) -> None:
    found: list[dict[str, object]] = [{"id": i, "prompt": f"p{i}"} for i in range(1000)]
    data = read_task_data([as_parquet(tmp_path, found, row_group_size=300)])
    assert data.ids == tuple(str(i) for i in range(1000))


def test_file_without_a_known_column_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none of the columns category, expert"):
        read_task_data([as_parquet(tmp_path, [{"question": "?"}])])


def test_row_group_that_is_too_large_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "MAX_ROW_GROUP_BYTES", 1000)
    with pytest.raises(DataError, match="row group"):
        read_task_data([as_parquet(tmp_path, [{"prompt": "x" * 2000}])])


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_damaged_parquet_is_read_or_refused_but_never_crashes(
    tmp_path_factory: pytest.TempPathFactory, draw: st.DataObject
) -> None:
    whole = bytearray(as_parquet(tmp_path_factory.mktemp("d"), with_all_columns()).read_bytes())
    cut = draw.draw(st.integers(0, len(whole)))
    for _ in range(3):
        whole[draw.draw(st.integers(4, len(whole) - 1))] ^= draw.draw(st.integers(0, 255))
    damaged = tmp_path_factory.mktemp("d") / "damaged.parquet"
    damaged.write_bytes(bytes(whole[:cut]) if cut % 2 else bytes(whole))
    with suppress(DataError):
        read_task_data([damaged])


def test_summary_counts_prompts_outcomes_and_preferences_and_keeps_the_means(
    tmp_path: Path,
) -> None:
    file = as_jsonl(
        tmp_path, [*ROWS, {"prompt": 3}, {"id": "elsewhere", "expert": "x", "score": 0}]
    )
    summary = summarise([file])
    assert summary.n_prompts == 3
    assert summary.n_outcomes == 3
    assert summary.n_preferences == 2
    assert summary.categories == {"chat": 1, "maths": 1}
    assert summary.experts == {"x": 2, "y": 1, "z": 0}
    assert summary.means["x"] == {"score": 0.5, "tokens": 4.0}
    assert summary.means["y"] == {"score": 0.25, "tokens": 12.0, "price": 0.5, "latency": 80.0}
    assert summary.n_bad == 1
    assert "data.jsonl:6: prompt" in summary.bad_lines[0]


def test_summary_gives_up_early_when_nothing_is_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("routers.dataset.MAX_BAD_AT_START", 30)
    (tmp_path / "garbage").write_bytes(b"x\n" * 50)
    with pytest.raises(DataError, match="garbage:20: not JSON; and 10 more"):
        summarise([tmp_path / "garbage"])
