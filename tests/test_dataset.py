"""Labelled task data: what is read, what is reported, what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experts.errors import DataError
from routers.dataset import read_task_data


def write(folder: Path, *lines: object, name: str = "data.jsonl") -> Path:
    file = folder / name
    file.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines))
    return file


def test_rows_that_share_an_id_are_one_prompt_when_they_stand_in_two_files(tmp_path: Path) -> None:
    prompts = write(tmp_path, {"id": "p", "prompt": "2+2?", "category": "maths"}, name="a.jsonl")
    outcomes = write(
        tmp_path,
        {"id": "p", "expert": "x", "score": 1},
        {"id": "p", "expert": "y", "score": 0.25},
        name="b.jsonl",
    )
    data = read_task_data([outcomes, prompts])
    assert data.texts == ("2+2?",)
    assert data.categories == ("maths",)
    assert data.scores.tolist() == [[1.0, 0.25]]
    assert data.bad_lines == ()


def test_rows_without_id_are_one_prompt_when_they_share_the_text(tmp_path: Path) -> None:
    data = read_task_data(
        [
            write(
                tmp_path,
                {"prompt": "hi", "expert": "x", "score": 1},
                {"prompt": "hi", "expert": "x", "score": 0},
                {"prompt": "hi", "category": "chat"},
            )
        ]
    )
    assert data.scores.tolist() == [[0.5]]
    assert data.categories == ("chat",)


def test_missing_scores_are_nan_and_never_zero(tmp_path: Path) -> None:
    data = read_task_data(
        [
            write(
                tmp_path,
                {"id": "1", "prompt": "a", "expert": "x", "score": 0.5},
                {"id": "2", "prompt": "b", "expert": "y", "score": 0.5},
            )
        ]
    )
    assert np.isnan(data.scores).tolist() == [[False, True], [True, False]]


def test_routing_text_is_the_last_user_message_when_messages_are_given(tmp_path: Path) -> None:
    messages = [
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "answer"},
        {"role": "user", "content": "second"},
    ]
    data = read_task_data([write(tmp_path, {"messages": messages, "category": "c"})])
    assert data.texts == ("second",)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{not json", "not JSON"),
        ('"text"', "valid dictionary"),
        ({"prompt": "p", "expert": "x"}, "belong together"),
        ({"prompt": "p", "expert": "x", "score": 1.5}, "less than or equal to 1"),
        ('{"prompt": "p", "expert": "x", "score": NaN}', "score"),
        ({"prompt": "  ", "category": "c"}, "prompt is empty"),
        ({"prompt": "p", "category": "a\r\nb"}, "category"),
        ({"prompt": 3}, "valid string"),
        ({"category": "c"}, "needs 'prompt'"),
        ({"id": "1", "prompt": "other", "category": "c"}, "differs"),
        ('{"prompt": "p", "score": ' + "9" * 5000 + "}", ""),
        ('{"prompt": "' + "x" * (5 << 20) + '"}', "longer than"),
    ],
)
def test_bad_line_is_reported_with_its_number_and_the_good_ones_are_kept(
    tmp_path: Path, line: object, reason: str
) -> None:
    data = read_task_data([write(tmp_path, {"id": "1", "prompt": "good", "category": "c"}, line)])
    assert data.texts == ("good",)
    assert [bad.number for bad in data.bad_lines] == [2]
    assert reason in data.bad_lines[0].reason


def test_contradicting_category_is_reported(tmp_path: Path) -> None:
    file = write(tmp_path, {"prompt": "p", "category": "a"}, {"prompt": "p", "category": "b"})
    data = read_task_data([file])
    assert data.categories == ("a",)
    assert "contradicts" in data.bad_lines[0].reason


def test_outcomes_without_a_prompt_are_reported(tmp_path: Path) -> None:
    file = write(
        tmp_path, {"id": "gone", "expert": "x", "score": 1}, {"prompt": "p", "category": "c"}
    )
    assert "no prompt in any file" in read_task_data([file]).bad_lines[0].reason


def test_refused_when_no_line_is_good(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not JSON"):
        read_task_data([write(tmp_path, "garbage")])


def test_refused_when_a_file_is_absent(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="can't read"):
        read_task_data([tmp_path / "absent.jsonl"])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=80), max_size=8))
def test_any_bytes_are_read_or_refused_but_never_crash(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]
) -> None:
    file = tmp_path_factory.mktemp("fuzz") / "data.jsonl"
    file.write_bytes(b"\n".join(lines) + b'\n{"prompt": "good"}\n')
    assert "good" in read_task_data([file]).texts
