"""The experiment on mixers: its tasks, its grading, its intervals, and all of it on a tiny base."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from eval.mixer.answers import grade, normal
from eval.mixer.figures import averaged, interval
from eval.mixer.report import table
from eval.mixer.run import Experiment, Plan
from eval.mixer.tasks import Task, smoke_tasks
from experts.mixer.training.data import by_domain
from experts.mixer.training.loop import Recipe
from experts.mixer.training.tasks import load_base
from tests.mixer_tasks import examples, save_base_with_words

TINY = Plan(
    experts=Recipe(steps=40, rate=2e-2),
    router=Recipe(steps=6, rate=2e-2),
    vectors=Recipe(steps=4, rate=2e-2),
    sizes=(16,),
    seeds=(0, 1),
    rank=4,
)


def letters(texts: Sequence[str]) -> np.ndarray:
    """Unit vectors of how often each letter occurs: enough to tell the two tasks apart."""
    counts = np.array([[text.count(chr(97 + n)) for n in range(26)] for text in texts], np.float32)
    unit: np.ndarray = counts / np.linalg.norm(counts, axis=1, keepdims=True)
    return unit


def test_the_whole_experiment_leaves_a_table_and_goes_on_where_it_was(tmp_path: Path) -> None:
    base = load_base(save_base_with_words(tmp_path / "base"), "float32")
    tasks = [
        Task(name, tuple(rows), tuple(rows[:8])) for name, rows in by_domain(examples()).items()
    ]
    held_out = [Task("other", (), tuple(examples()[:6]))]
    lines: list[str] = []
    for _ in range(2):
        lines.clear()
        Experiment(
            base, tasks, TINY, tmp_path / "out", lines.append, held_out, every_task=True
        ).run(letters)
    assert not [line for line in lines if "step" in line or " s)" in line]
    told = table(tmp_path / "out")
    for method in (
        "oracle adapter",
        "Arrow",
        "GLIDER",
        "mixer 16 printed seed 1",
        "one big adapter",
    ):
        assert f"| {method} |" in told
    assert "## mixer 16 described" in told
    assert "GLIDER minus PHATGOOSE" in told
    adapters = [line for line in told.splitlines() if line.startswith(("| colours", "| numbers"))]
    assert len(adapters) == 2


def test_an_answer_is_compared_by_its_first_line() -> None:
    assert normal(" 'Positive'.\nBecause ...") == "positive"
    assert normal("") == ""
    assert normal("a  b ") == "a b"


def test_the_bare_base_is_graded_in_the_order_of_the_tests(tmp_path: Path) -> None:
    base = load_base(save_base_with_words(tmp_path / "base"), "float32")
    graded = grade(base, None, examples())
    assert len(graded) == len(examples())
    assert set(graded) <= {0, 1}


def test_an_interval_is_paired() -> None:
    first = {"a": [1, 1, 0, 1] * 20, "b": [1, 0] * 40}
    centre, low, high = interval(first, first)
    assert (centre, low, high) == (0.0, 0.0, 0.0)
    worse = {name: [0] * len(scores) for name, scores in first.items()}
    centre, low, high = interval(first, worse)
    assert centre == pytest.approx(0.625)
    assert 0.4 < low < centre < high < 0.9
    assert averaged([first, worse])["b"][:2] == [0.5, 0.0]


def test_smoke_tasks_hold_tests_that_are_not_trained_on() -> None:
    for task in smoke_tasks():
        assert len(task.test) == 24
        assert len(task.train) >= 60
        assert not {e.prompt for e in task.test} & {e.prompt for e in task.train}
