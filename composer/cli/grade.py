"""`coe grade`: graded outcomes of an expert, by checking its answers."""

import asyncio
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from composer.cli.options import announce, gateway_option

if TYPE_CHECKING:
    from eval.demo.grade import Graded, Prompt


@click.command("grade")
@click.argument("expert")
@gateway_option
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="File for the graded outcomes, as JSONL to train on.",
)
@click.option(
    "--prompts",
    "files",
    type=click.Path(path_type=Path, dir_okay=False),
    multiple=True,
    help="JSONL of prompts with checks; may be given many times. Default: the demo's.",
)
@click.option("--category", "categories", multiple=True, help="Only these; many times.")
@click.option("--max-tokens", type=click.IntRange(1, 100_000), default=160, show_default=True)
@click.option("--concurrency", type=click.IntRange(1, 256), default=8, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="The mean scores as JSON.")
def command(
    expert: str,
    url: str,
    out: Path,
    files: tuple[Path, ...],
    categories: tuple[str, ...],
    max_tokens: int,
    concurrency: int,
    as_json: bool,
) -> None:
    """Let EXPERT answer prompts that come with a check, and write how well it did.

    The answers are greedy and come through the gateway. What is written holds the prompts too, so
    it is a dataset of its own: `coe datasets upload`.

    \b
    Example:
      coe grade brief --category facts --category summary --out brief.jsonl
    """
    from eval.demo.grade import read_prompts
    from experts.errors import DataError

    prompts = read_prompts(files)
    if unknown := sorted(set(categories) - {prompt.category for prompt in prompts}):
        raise DataError(f"there are no prompts of category '{unknown[0]}'")
    chosen = [prompt for prompt in prompts if not categories or prompt.category in categories]
    graded = asyncio.run(_grade(url, expert, chosen, max_tokens, concurrency, show=not as_json))
    try:
        out.write_text("".join(json.dumps(_row(one)) + "\n" for one in graded))
    except OSError as error:
        raise DataError(f"can't write {out}: {error.strerror}") from error
    means = _means(graded)
    if as_json:
        announce(json.dumps(means, indent=2))
        return
    for category, mean in means.items():
        announce(f"{category:<16} {mean:.3f}")
    announce(f"{len(graded)} outcomes of '{expert}' in {out}")


async def _grade(
    url: str,
    expert: str,
    prompts: Sequence["Prompt"],
    max_tokens: int,
    concurrency: int,
    *,
    show: bool,
) -> list["Graded"]:
    """
    Raises:
        GatewayError: the expert did not answer.
    """
    import aiohttp
    from rich.console import Console
    from rich.progress import Progress

    from composer.cli.client import TIMEOUT, GatewayError, post
    from eval.demo.grade import grade_answers

    address = f"{url.rstrip('/')}/v1/chat/completions"

    async with aiohttp.ClientSession(timeout=TIMEOUT) as session:

        async def ask(text: str) -> tuple[str, int]:
            body: dict[str, Any] = {
                "model": expert,
                "messages": [{"role": "user", "content": text}],
                "max_tokens": max_tokens,
                "temperature": 0,
            }
            answer, _ = await post(session, address, body)
            content = answer["choices"][0]["message"]["content"] or ""
            return content, answer.get("usage", {}).get("completion_tokens", 0)

        console = Console(stderr=True)
        hidden = not (show and console.is_terminal)
        with Progress(console=console, transient=True, disable=hidden) as bar:
            task = bar.add_task(f"asking {expert}", total=len(prompts))
            try:
                return await grade_answers(
                    prompts,
                    expert,
                    ask,
                    concurrency=concurrency,
                    on_graded=lambda _: bar.advance(task),
                )
            except* GatewayError as errors:
                first = errors.exceptions[0]
                while isinstance(first, BaseExceptionGroup):
                    first = first.exceptions[0]
                raise first from None


def _row(graded: "Graded") -> dict[str, Any]:
    prompt = graded.prompt
    return {
        "id": prompt.id,
        "prompt": prompt.text,
        "category": prompt.category,
        "expert": graded.expert,
        "score": round(graded.score, 4),
        "tokens": graded.tokens,
    }


def _means(graded: Sequence["Graded"]) -> dict[str, float]:
    scores: dict[str, list[float]] = defaultdict(list)
    for one in graded:
        scores[one.prompt.category].append(one.score)
        scores["all"].append(one.score)
    return {category: round(sum(found) / len(found), 4) for category, found in scores.items()}
