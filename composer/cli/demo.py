"""`coe demo`: everything on this machine, and one prompt per category sent through it."""

import asyncio
import json
import sys
import textwrap
import time
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from composer.cli.options import announce, load, server_options
from composer.cli.running import run_until_stopped

if TYPE_CHECKING:
    import aiohttp

    from composer.config import Config

MAX_TOKENS = 80


@dataclass(frozen=True, slots=True)
class Shown:
    """One prompt's answer and how it came about; times in milliseconds."""

    answer: str
    expert: str
    category: str
    probability: float
    reason: str
    route_ms: float
    answer_ms: float


@click.command("demo")
@server_options
@click.option("--check", is_flag=True, help="Stop after the prompts; exit 1 if one failed.")
def command(config_file: Path | None, host: str | None, port: int | None, check: bool) -> None:
    """Run everything, send one prompt per category through HTTP, and go on serving until Ctrl-C.

    \b
    Example:
      coe demo
      coe demo --check
    """
    from composer.logs import configure_logs

    config = load(config_file, host=host, port=port)
    config = config.model_copy(
        update={"log": config.log.model_copy(update={"requests": False, "level": "warning"})}
    )
    configure_logs(config.log.level, "console", "supervisor")
    sys.exit(run_until_stopped(_demo(config, check)))


async def _demo(config: "Config", check: bool) -> int:
    import aiohttp

    from composer.cli.client import TIMEOUT
    from composer.supervisor import Supervisor

    started = time.monotonic()
    async with Supervisor(config, announce) as supervisor:
        await supervisor.wait_ready()
        announce(f"ready after {time.monotonic() - started:.1f} s")
        async with aiohttp.ClientSession(timeout=TIMEOUT) as session:
            failed = await _show_all(session, supervisor.url, _prompts())
        if check:
            return 1 if failed else 0
        announce(f"\nComposer answers at {supervisor.url}/v1 (Ctrl-C stops it)")
        await asyncio.Event().wait()
    return 0


def _prompts() -> list[dict[str, str]]:
    """One prompt per category, none of which the router was trained on."""
    text = resources.files("routers").joinpath("demo/showcase.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


async def _show_all(
    session: "aiohttp.ClientSession", url: str, prompts: Iterable[dict[str, str]]
) -> int:
    """Send each prompt and print what came back; returns how many failed."""
    from composer.cli.client import GatewayError

    failed = total = 0
    for prompt in prompts:
        total += 1
        announce(f"\n[{prompt['category']}] {_short(prompt['prompt'])}")
        try:
            shown = await _send(session, url, prompt["prompt"])
        except GatewayError as error:
            failed += 1
            announce(f"  FAILED: {error.message}")
            continue
        if not shown.answer.strip():
            failed += 1
            announce("  FAILED: the answer is empty")
            continue
        announce(
            textwrap.indent(_short(shown.answer, 400), "  | ", lambda _: True)
            + f"\n  expert {shown.expert}, category {shown.category} ({shown.probability:.2f}), "
            f"routing {shown.route_ms:.1f} ms, answering {shown.answer_ms:.0f} ms"
            f"\n  why: {shown.reason}"
        )
    announce(f"\n{total - failed} of {total} prompts answered")
    return failed


async def _send(session: "aiohttp.ClientSession", url: str, prompt: str) -> Shown:
    """One prompt through the gateway, with the reason of its decision asked for."""
    from composer.cli.client import post

    body: dict[str, Any] = {
        "model": "auto",
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": MAX_TOKENS,
        "temperature": 0,
        "composer": {"explain": True},
    }
    start = time.perf_counter()
    answer, headers = await post(session, f"{url}/v1/chat/completions", body)
    elapsed = (time.perf_counter() - start) * 1000
    route_ms = float(headers["x-composer-route-ms"])
    return Shown(
        answer=answer["choices"][0]["message"]["content"] or "",
        expert=headers["x-composer-expert"],
        category=headers["x-composer-category"],
        probability=float(headers["x-composer-category-probability"]),
        reason=headers["x-composer-reason"],
        route_ms=route_ms,
        answer_ms=elapsed - route_ms,
    )


def _short(text: str, width: int = 160) -> str:
    text = text.strip()
    return text if len(text) <= width else text[: width - 1].rstrip() + "…"
