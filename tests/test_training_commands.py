"""The commands of the loop: coe datasets, coe trainings, coe compositions."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from click.testing import CliRunner, Result

from composer.cli import main
from composer.compositions import artefacts_folder
from tests.task_data import graded, jsonl
from tests.training_gateway import INCUMBENT, NEWCOMER, Trained, training_gateway

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROWS = graded(
    {
        "arithmetic": {INCUMBENT: 0.2, NEWCOMER: 0.9},
        "chat": {INCUMBENT: 0.9, NEWCOMER: 0.2},
    }
)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def running(
    tmp_path_factory: pytest.TempPathFactory, cache_dir: Path
) -> AsyncIterator[Trained]:
    async with training_gateway(tmp_path_factory.mktemp("commands"), cache_dir) as trained:
        yield trained


async def run(running: Trained, *arguments: str) -> Result:
    """Run `coe` beside the gateway that it talks to."""
    options = ["--url", running.gateway.url]
    return await asyncio.to_thread(CliRunner().invoke, main, [*arguments, *options])


async def coe(running: Trained, *arguments: str) -> str:
    """What a command prints; it must succeed."""
    result = await run(running, *arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


async def test_loop_by_commands_alone(running: Trained, tmp_path: Path) -> None:
    file = tmp_path / "outcomes.jsonl"
    file.write_bytes(jsonl(ROWS) + b"not json\n")
    told = await coe(running, "datasets", "upload", str(file), "--source", "by hand")
    assert "outcomes     80" in told
    assert "outcomes.jsonl:81: not JSON" in told
    (dataset,) = [
        record["id"]
        for record in json.loads(await coe(running, "datasets", "list", "--json"))
        if record["name"] == "outcomes.jsonl"
    ]
    assert "mean score 0.550" in await coe(running, "datasets", "show", dataset)

    told = await coe(running, "trainings", "start", "--dataset", dataset, "--wait")
    assert "succeeded" in told
    assert "category accuracy" in told
    assert "best single" in told
    (record,) = json.loads(await coe(running, "trainings", "list", "--json"))
    version = record["version"]
    assert f"coe compositions promote auto {version}" in told
    assert version in await coe(running, "trainings", "list")

    assert f"'auto' is version {version}" in await coe(
        running, "compositions", "promote", "auto", version
    )
    assert version in await coe(running, "compositions", "list")
    before = json.loads(await coe(running, "compositions", "list", "--json"))[0]["former"][0]
    assert f"'auto' is version {before}" in await coe(running, "compositions", "rollback", "auto")
    assert before in await coe(running, "compositions", "show", "auto")

    folder = artefacts_folder(running.config) / version
    told = await coe(running, "compositions", "import", str(folder), "--name", "copy")
    assert f"version            {version} of 'copy'" in told
    await coe(running, "compositions", "rm", "copy", version)
    await coe(running, "datasets", "rm", dataset)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["datasets", "show", "ds-none"], "status 404: there is no dataset 'ds-none'"),
        (["trainings", "start", "--dataset", "ds-none"], "there is no dataset 'ds-none'"),
        (["trainings", "cancel", "tr-none"], "status 404: there is no training 'tr-none'"),
        (["compositions", "rollback", "auto"], "status 409: nothing was live before"),
        (["compositions", "promote", "auto", "0"], "there is no version '0'"),
        (["compositions", "import", "."], "is no artefact"),
    ],
)
async def test_refusal_is_one_clear_line_and_code_1(
    running: Trained, arguments: list[str], message: str
) -> None:
    result = await run(running, *arguments)
    assert result.exit_code == 1
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


async def test_code_1_when_the_training_fails(running: Trained, tmp_path: Path) -> None:
    file = tmp_path / "one.jsonl"
    file.write_bytes(jsonl(ROWS[:4]))
    record = json.loads(await coe(running, "datasets", "upload", str(file), "--json"))
    result = await run(running, "trainings", "start", "--dataset", record["id"], "--wait")
    assert result.exit_code == 1
    assert "because            4 prompts are needed" in result.stdout
