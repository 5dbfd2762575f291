"""The program of Composition of Experts against enumeration, and `coe plan` on an artefact."""

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from composer.cli import main
from composer.expert_facts import read_expert_facts
from experts.errors import ConfigError, DataError
from routers.artefact import save_artefact
from routers.category import linear_category_router
from routers.mapping import Mapping
from routers.planning import Candidate, Limits, Problem, frontier, solve
from routers.two_step import TwoStepRouter


def problem(scores: np.ndarray, sizes: list[float], based: list[bool], base_b: float) -> Problem:
    c, m = scores.shape
    return Problem(
        categories=tuple(f"c{i}" for i in range(c)),
        shares=np.full(c, 1 / c),
        candidates=tuple(
            Candidate(f"e{j}", sizes[j], sizes[j], "base" if based[j] else None, price=sizes[j])
            for j in range(m)
        ),
        scores=scores,
        errors=np.full((c, m), 0.01),
        bases={"base": (base_b, 1)},
    )


def enumerated(given: Problem, limits: Limits) -> float | None:
    """The best quality over all subsets, or None."""
    best = None
    columns = range(len(given.candidates))
    for size in range(1, len(given.candidates) + 1):
        for subset in combinations(columns, size):
            held = [given.candidates[j] for j in subset]
            shared = {c.base for c in held if c.base}
            memory = sum(c.own_b for c in held) + sum(given.bases[b][0] for b in shared)
            if limits.params_b is not None and memory > limits.params_b + 1e-9:
                continue
            if limits.max_experts is not None and size > limits.max_experts:
                continue
            if not limits.must_have <= {c.id for c in held}:
                continue
            quality = float(given.shares @ given.scores[:, subset].max(axis=1))
            best = quality if best is None else max(best, quality)
    return best


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_program_finds_what_enumeration_finds(data: st.DataObject) -> None:
    m = data.draw(st.integers(1, 6))
    c = data.draw(st.integers(1, 4))
    generator = np.random.default_rng(data.draw(st.integers(0, 1000)))
    given = problem(
        generator.random((c, m)),
        [float(x) for x in generator.integers(1, 20, m)],
        [bool(x) for x in generator.random(m) < 0.5],
        float(generator.integers(1, 10)),
    )
    limits = Limits(
        params_b=data.draw(st.one_of(st.none(), st.floats(0, 60))),
        max_experts=data.draw(st.one_of(st.none(), st.integers(1, 4))),
        must_have=frozenset(
            data.draw(st.sets(st.sampled_from([f"e{j}" for j in range(m)]), max_size=1))
        ),
    )
    plan, oracle = solve(given, limits), enumerated(given, limits)
    if oracle is None:
        assert plan is None
    else:
        assert plan is not None
        assert plan.quality == pytest.approx(oracle, abs=1e-6)
        assert plan.low <= plan.quality <= plan.high
        if limits.params_b is not None:
            assert plan.params_b <= limits.params_b + 1e-6


def test_a_shared_base_counts_once() -> None:
    given = problem(np.array([[1.0, 0.0], [0.0, 1.0]]), [1.0, 1.0], [True, True], 10.0)
    plan = solve(given, Limits(params_b=12.0))
    assert plan is not None
    assert plan.params_b == pytest.approx(12.0)
    assert plan.quality == pytest.approx(1.0)
    assert solve(given, Limits(params_b=10.0)) is None


def test_price_of_the_mean_request_is_kept() -> None:
    given = problem(np.array([[1.0, 0.5], [1.0, 0.9]]), [10.0, 1.0], [False, False], 0.0)
    plan = solve(given, Limits(max_price=6.0))
    assert plan is not None
    assert plan.mapping == {"c0": "e0", "c1": "e1"}
    assert plan.price <= 6.0


def test_gpus_are_counted_with_those_of_bases() -> None:
    given = Problem(
        ("c",),
        np.ones(1),
        (Candidate("big", 70, 70, gpus=3), Candidate("small", 1, 8, "base")),
        np.array([[0.9, 0.6]]),
        np.zeros((1, 2)),
        {"base": (7.0, 1)},
    )
    tight, wide = solve(given, Limits(gpus=2)), solve(given, Limits(gpus=3))
    assert tight is not None
    assert wide is not None
    assert (tight.experts, wide.experts) == (("small",), ("big",))


def test_worth_is_what_a_plan_loses_without_the_expert() -> None:
    given = problem(np.array([[0.9, 0.2, 0.5], [0.1, 0.8, 0.6]]), [1, 1, 1], [False] * 3, 0.0)
    [plan] = frontier(given, [2], Limits())
    assert plan.worth["e0"] == pytest.approx(plan.quality - (0.5 + 0.8) / 2)


def test_quality_never_falls_with_the_budget() -> None:
    generator = np.random.default_rng(3)
    given = problem(generator.random((5, 6)), [3, 7, 9, 12, 2, 5], [False] * 6, 0.0)
    plans = frontier(given, [2, 5, 10, 20, 40], Limits())
    assert [plan.quality for plan in plans] == sorted(plan.quality for plan in plans)


def test_must_have_expert_that_is_unknown_is_refused() -> None:
    given = problem(np.ones((1, 1)), [1], [False], 0.0)
    with pytest.raises(DataError, match="nobody"):
        solve(given, Limits(must_have=frozenset(["nobody"])))


@pytest.fixture
def artefact(tmp_path: Path) -> Path:
    """Three experts of known size, and one of unknown size."""
    facts = tmp_path / "experts.yaml"
    facts.write_text(
        yaml.safe_dump(
            [
                {"id": "small", "params_b": 7, "price_out_per_mtok": 0.1},
                {"id": "big", "params_b": 70, "price_out": 0.9},
                {"id": "mid@host", "params_b": 27, "instruction": "Write code."},
                {"id": "closed", "params_b": None},
            ]
        )
    )
    specs = read_expert_facts(facts)
    table = np.array([[0.4, 0.9, 0.6, 0.95], [0.8, 0.7, 0.6, 0.95]])
    router = TwoStepRouter(
        linear_category_router(
            ("a", "b"),
            np.eye(2, 4, dtype=np.float32),
            np.zeros(2, np.float32),
            np.eye(4, dtype=np.float32),
        ),
        Mapping(("a", "b"), ("small", "big", "mid@host", "closed"), table, table.mean(axis=0)),
    )
    report = {"evidence": {"shares": [0.5, 0.5], "scored": [[50] * 4, [50] * 4]}}
    save_artefact(tmp_path / "a", router, name="auto", encoder="e", specs=specs, report=report)
    return tmp_path / "a"


def test_plan_command_shows_the_frontier_and_who_is_left_out(
    artefact: Path, tmp_path: Path
) -> None:
    page = tmp_path / "frontier.html"
    result = CliRunner().invoke(
        main,
        ["plan", "--artifact", str(artefact), "--budgets", "7,77", "--json", "--figure", str(page)],
    )
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [plan["experts"] for plan in found["frontier"]] == [["small"], ["small", "big"]]
    assert found["frontier"][1]["quality"] == pytest.approx(0.85)
    assert found["left_out"] == ["closed"]
    assert "What each budget buys" in page.read_text()


@pytest.mark.parametrize("budgets", ["x", "", "-1", "nan"])
def test_budgets_that_are_none_are_refused(artefact: Path, budgets: str) -> None:
    result = CliRunner().invoke(
        main, ["plan", "--artifact", str(artefact), "--budgets", f"{budgets},"]
    )
    assert result.exit_code == 2


def test_budget_too_small_for_anybody_is_told(artefact: Path) -> None:
    result = CliRunner().invoke(main, ["plan", "--artifact", str(artefact), "--budgets", "1"])
    assert result.exit_code == 1
    assert "no budget allows a plan" in result.output


def test_wrong_expert_fact_is_told_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "experts.yaml"
    file.write_text("- id: fine\n- id: wrong\n  params_b: -1\n")
    with pytest.raises(ConfigError, match=r"experts.yaml:2: params_b"):
        read_expert_facts(file)
