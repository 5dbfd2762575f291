"""`coe grade`: graded outcomes of an expert behind a running gateway."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from composer.state import Endpoint
from experts.spec import ExpertSpec
from routers.dataset import read_task_data
from tests.faulty import faulty_server
from tests.small_composition import Running, small_gateway

QUALITY = {"greeting": {"speaker": 0.9}, "weather": {"speaker": 0.9}}
PROMPTS = [
    {"id": "a", "category": "names", "prompt": "who?", "check": {"kind": "contains", "any": ["I"]}},
    {"id": "b", "category": "names", "prompt": "hm?", "check": {"kind": "contains", "any": ["x"]}},
    {"id": "c", "category": "other", "prompt": "so?", "check": {"kind": "contains", "any": ["I"]}},
]

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def running(
    tmp_path_factory: pytest.TempPathFactory, cache_dir: Path
) -> AsyncIterator[Running]:
    specs = [
        ExpertSpec(id="speaker", kind="remote", engine="elsewhere"),
        ExpertSpec(id="broken", kind="remote", engine="elsewhere", served_name="error-500"),
    ]
    async with faulty_server() as server:
        engine = Endpoint(engine="elsewhere", base_url=server.url, state="ready")
        folder = tmp_path_factory.mktemp("grade")
        async with small_gateway(folder, cache_dir, specs, [engine], QUALITY) as gateway:
            yield gateway


async def grade(running: Running, *arguments: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "composer.cli", "grade", *arguments, "--url", running.url),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    return process.returncode or 0, output.decode()


def prompts_file(folder: Path, rows: list[dict[str, object]]) -> str:
    file = folder / "prompts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


async def test_outcomes_are_a_dataset_when_the_expert_answers(
    running: Running, tmp_path: Path
) -> None:
    out = tmp_path / "outcomes.jsonl"
    file = prompts_file(tmp_path, PROMPTS)
    code, output = await grade(running, "speaker", "--prompts", file, "--out", str(out), "--json")
    assert code == 0, output
    assert json.loads(output) == {"names": 0.5, "other": 1.0, "all": 0.6667}
    data = read_task_data([out])
    assert data.texts == ("who?", "hm?", "so?")
    assert data.categories == ("names", "names", "other")
    assert data.experts == ("speaker",)
    assert data.scores[:, 0].tolist() == [1, 0, 1]


async def test_only_the_categories_asked_for_are_graded(running: Running, tmp_path: Path) -> None:
    out = tmp_path / "outcomes.jsonl"
    arguments = ["speaker", "--prompts", prompts_file(tmp_path, PROMPTS), "--out", str(out)]
    assert (await grade(running, *arguments, "--category", "other"))[0] == 0
    assert read_task_data([out]).ids == ("c",)
    code, output = await grade(running, *arguments, "--category", "nothing")
    assert (code, output) == (1, "Error: there are no prompts of category 'nothing'\n")


async def test_nothing_is_written_when_the_expert_fails(running: Running, tmp_path: Path) -> None:
    out = tmp_path / "outcomes.jsonl"
    file = prompts_file(tmp_path, PROMPTS)
    code, output = await grade(running, "broken", "--prompts", file, "--out", str(out))
    assert code == 1
    assert output.startswith("Error: status 503"), output
    assert output.count("\n") == 1
    assert not out.exists()


async def test_line_is_told_when_a_prompt_has_no_valid_check(
    running: Running, tmp_path: Path
) -> None:
    file = prompts_file(tmp_path, [*PROMPTS, {**PROMPTS[0], "check": {"kind": "magic"}}])
    out = str(tmp_path / "outcomes.jsonl")
    code, output = await grade(running, "speaker", "--prompts", file, "--out", out)
    assert code == 1
    assert output.startswith(f"Error: {file}:4: unknown check kind 'magic'"), output
