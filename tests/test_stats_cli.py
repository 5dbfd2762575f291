"""`coe stats` and `coe decisions` against a running gateway."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from click.testing import CliRunner, Result

from composer.cli import main
from composer.state import Endpoint
from experts.spec import ExpertSpec
from tests.known_outcomes import known, many_known, record
from tests.small_composition import SENTENCES, Running, small_gateway

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def gateway(
    tmp_path_factory: pytest.TempPathFactory, cache_dir: Path
) -> AsyncIterator[Running]:
    """A gateway whose state holds 1,200 known outcomes, and one with a bracket in its names."""
    specs = [
        ExpertSpec(id="canned", kind="null", text="No."),
        ExpertSpec(id="other", kind="remote", engine="elsewhere"),
    ]
    endpoint = Endpoint(engine="elsewhere", base_url="http://127.0.0.1:9", state="ready")
    quality = {category: {"canned": 0.5, "other": 0.4} for category in SENTENCES}
    folder = tmp_path_factory.mktemp("cli")
    async with small_gateway(folder, cache_dir, specs, [endpoint], quality) as running:
        await record(running.state, list(many_known(1200)))
        odd = known("a", "odd [red]category", prompt="what?", failed=(("b", "no connection"),))
        await record(running.state, [odd], store_prompts=True)
        yield running


async def coe(gateway: Running, *arguments: str) -> Result:
    argv = [*arguments, "--url", gateway.url]
    runner = CliRunner(env={"COLUMNS": "200"})
    return await asyncio.to_thread(runner.invoke, main, argv)


async def test_stats_show_every_group_with_its_figures(gateway: Running) -> None:
    shown = await coe(gateway, "stats", "--last", "2h")
    assert shown.exit_code == 0, shown.output
    assert "1,201 requests" in shown.output
    for name in ("maths", "sql", "odd [red]category", "auto", "direct"):
        assert name in shown.output
    one = await coe(gateway, "stats", "--by", "composition")
    assert "auto" in one.output
    assert "maths" not in one.output
    found = json.loads((await coe(gateway, "stats", "--last", "all", "--json")).output)
    assert found["totals"]["requests"] == 1201


@pytest.mark.parametrize("last", ["yesterday", "0h", "5", "-1h", "1w"])
async def test_stats_refuse_a_duration_that_is_none(gateway: Running, last: str) -> None:
    refused = await coe(gateway, "stats", "--last", last)
    assert refused.exit_code == 2
    assert "is no duration" in refused.output


async def test_decisions_are_listed_and_shown_with_why(gateway: Running) -> None:
    listed = await coe(gateway, "decisions", "list", "--limit", "3")
    assert listed.output.count("dec-") == 3
    assert "odd [red]category" in listed.output
    view = json.loads((await coe(gateway, "decisions", "list", "--limit", "1", "--json")).output)[0]
    shown = (await coe(gateway, "decisions", "show", view["id"])).output
    for text in (view["reason"], "prompt       what?", "ruled out: it lacks: tools", "failed: no"):
        assert text in shown
    of_a = json.loads(
        (await coe(gateway, "decisions", "list", "--expert", "a", "--category", "sql", "--json"))
        .output
    )  # fmt: skip
    assert {(v["answered_by"], v["category"]) for v in of_a} == {("a", "sql")}


async def test_errors_are_one_clear_line(gateway: Running) -> None:
    unknown = await coe(gateway, "decisions", "show", "dec-nobody")
    assert (unknown.exit_code, unknown.output.count("\n")) == (1, 1)
    assert "there is no decision 'dec-nobody'" in unknown.output
    nobody = await asyncio.to_thread(
        CliRunner().invoke, main, ["stats", "--url", "http://127.0.0.1:9"]
    )
    assert (nobody.exit_code, nobody.output.count("\n")) == (1, 1)


async def start(gateway: Running, *arguments: str) -> asyncio.subprocess.Process:
    argv = [sys.executable, "-m", "composer.cli", *arguments, "--url", gateway.url]
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(
        *argv, stdout=pipe, stderr=pipe, env={**os.environ, "COLUMNS": "200"}
    )


async def test_an_export_follows_what_is_decided_until_it_is_interrupted(gateway: Running) -> None:
    process = await start(gateway, "decisions", "export", "--follow")
    assert process.stdout is not None
    async with asyncio.timeout(20):
        views = [json.loads(await process.stdout.readline()) for _ in range(1201)]
        body = {"messages": [{"role": "user", "content": SENTENCES["greeting"]}]}
        async with gateway.session.post("/v1/chat/completions", json=body) as reply:
            decision = reply.headers["x-composer-decision"]
        views.append(json.loads(await process.stdout.readline()))
        assert views[-1]["id"] == decision
        assert len({view["id"] for view in views}) == len(views)
        process.send_signal(signal.SIGINT)
        out, error = await process.communicate()
    assert (process.returncode, out, error) == (0, b"", b"")
    rest = await coe(gateway, "decisions", "export", "--cursor", views[1000]["cursor"])
    assert [json.loads(line)["id"] for line in rest.output.splitlines()] == [
        view["id"] for view in views[1001:]
    ]


async def test_watching_ends_cleanly_when_it_is_interrupted(gateway: Running) -> None:
    process = await start(gateway, "stats", "--watch", "--json")
    assert process.stdout is not None
    async with asyncio.timeout(20):
        for _ in range(2):
            assert json.loads(await process.stdout.readline())["totals"]["requests"] >= 1201
        process.send_signal(signal.SIGINT)
        _, error = await process.communicate()
    assert (process.returncode, error) == (0, b"")
