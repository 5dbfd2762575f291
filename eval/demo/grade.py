"""Grading the demo experts: every one answers every prompt, the checkers score the answers.

`python -m eval.demo.grade` (`make demo-scores`) writes `routers/demo/outcomes.jsonl`, the graded
outcomes that the demo's router is trained on. The engine is the one that serves them for real.
"""

import argparse
import asyncio
import json
import socket
import subprocess
import sys
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import orjson

from composer.config import demo_data_files, demo_experts_file, load_config, read_experts
from composer.dispatch import expert_body
from composer.processes import child_environment
from eval.demo.checkers import CheckError, compile_check
from experts.engines.embedded.weights import prepare_smollm2
from experts.errors import DataError
from experts.null import null_answer
from experts.registry import index_experts
from experts.spec import ExpertSpec

MAX_TOKENS = 160
CONCURRENCY = 16
START_S = 120.0
REQUEST = aiohttp.ClientTimeout(total=600)


@dataclass(frozen=True, slots=True)
class Prompt:
    id: str
    category: str
    text: str
    check: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Graded:
    """`score` in [0, 1]; `tokens` of the answer."""

    prompt: Prompt
    expert: str
    answer: str
    score: float
    tokens: int


Ask = Callable[[str], Awaitable[tuple[str, int]]]
"""Sends a prompt; gives the answer and how many tokens it has."""


def read_prompts(files: Sequence[Path] = ()) -> list[Prompt]:
    """Prompts that carry a check; without files, those that come with Composer.

    Raises:
        DataError: a file can't be read, or a line is no prompt with a category and a valid check.
    """
    shipped = [file for file in demo_data_files() if file.parent.name == "prompts"]
    return [prompt for file in files or shipped for prompt in _read_file(file)]


def _read_file(file: Path) -> Iterator[Prompt]:
    try:
        lines = file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"can't read {file}: {error}") from error
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            prompt = Prompt(row["id"], row["category"], row["prompt"], row["check"])
            compile_check(prompt.check)
        except CheckError as error:
            raise DataError(f"{file}:{number}: {error}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            message = "a line needs 'id', 'category', 'prompt' and 'check'"
            raise DataError(f"{file}:{number}: {message}") from error
        yield prompt


@contextmanager
def engine(model: Path, served: Sequence[str], threads: int | None = None) -> Iterator[str]:
    """A real embedded engine for as long as the context lasts; yields its base URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    argv = [sys.executable, "-m", "experts.engines.embedded"]
    argv += ["--model", str(model), "--host", "127.0.0.1", "--port", str(port)]
    argv += ["--max-running", str(CONCURRENCY), "--log-level", "warning"]
    argv += [part for name in served for part in ("--serve", name)]
    argv += ["--threads", str(threads)] if threads is not None else []
    process = subprocess.Popen(argv, env=child_environment(), start_new_session=True)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def grade(url: str, prompts: Sequence[Prompt], spec: ExpertSpec) -> list[Graded]:
    """Greedy answers of one expert to all prompts, scored; in the order of the prompts."""
    if spec.kind == "null":
        text = orjson.loads(null_answer(spec))["choices"][0]["message"]["content"]
        return [Graded(p, spec.id, text, compile_check(p.check)(text), 0) for p in prompts]
    async with aiohttp.ClientSession(timeout=REQUEST) as session:
        await _until_ready(session, url)
        return await grade_answers(prompts, spec.id, lambda text: _ask(session, url, spec, text))


async def grade_answers(
    prompts: Sequence[Prompt],
    expert: str,
    ask: Ask,
    *,
    concurrency: int = CONCURRENCY,
    on_graded: Callable[[Graded], None] = lambda graded: None,
) -> list[Graded]:
    """An expert's answers to all prompts, scored; in the order of the prompts. What `ask` raises
    ends it."""
    slots = asyncio.Semaphore(concurrency)

    async def one(prompt: Prompt) -> Graded:
        async with slots:
            answer, tokens = await ask(prompt.text)
        scored = await asyncio.to_thread(compile_check(prompt.check), answer)
        graded = Graded(prompt, expert, answer, scored, tokens)
        on_graded(graded)
        return graded

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(prompt)) for prompt in prompts]
    return [task.result() for task in tasks]


async def _ask(
    session: aiohttp.ClientSession, url: str, spec: ExpertSpec, text: str
) -> tuple[str, int]:
    payload: dict[str, Any] = {
        "messages": [{"role": "user", "content": text}],
        "max_tokens": MAX_TOKENS,
        "temperature": 0,
    }
    async with session.post(
        f"{url}/v1/chat/completions",
        data=expert_body(spec, payload),
        headers={"content-type": "application/json"},
        raise_for_status=True,
    ) as reply:
        body = await reply.json()
    return body["choices"][0]["message"]["content"] or "", body["usage"]["completion_tokens"]


async def _until_ready(session: aiohttp.ClientSession, url: str) -> None:
    async with asyncio.timeout(START_S):
        while True:
            try:
                async with session.get(f"{url}/health") as reply:
                    if reply.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.2)


def merge(file: Path, graded: Sequence[Graded]) -> None:
    """Write outcomes, replacing those of the same experts and keeping the others'."""
    fresh = {g.expert for g in graded}
    kept = []
    if file.exists():
        kept = [
            row
            for row in map(json.loads, file.read_text().splitlines())
            if row["expert"] not in fresh
        ]
    rows = kept + [
        {"id": g.prompt.id, "expert": g.expert, "score": round(g.score, 4), "tokens": g.tokens}
        for g in graded
    ]
    rows.sort(key=lambda row: (row["id"], row["expert"]))
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def table(file: Path, prompts: Sequence[Prompt]) -> str:
    """Mean score of each expert in each category."""
    category = {p.id: p.category for p in prompts}
    scores: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in map(json.loads, file.read_text().splitlines()):
        scores[category[row["id"]], row["expert"]].append(row["score"])
        scores["all", row["expert"]].append(row["score"])
    experts = sorted({expert for _, expert in scores})
    lines = ["category".ljust(14) + "".join(expert.rjust(10) for expert in experts)]
    for name in [*sorted(set(category.values())), "all"]:
        cells = []
        for expert in experts:
            values = scores[name, expert]
            cells.append(f"{sum(values) / len(values):.2f}" if values else "-")
        lines.append(name.ljust(14) + "".join(cell.rjust(10) for cell in cells))
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Grade the named experts (all by default) and print the table."""
    parser = argparse.ArgumentParser(prog="python -m eval.demo.grade", description=__doc__)
    parser.add_argument("--experts", nargs="*", help="only these; the others' scores stay")
    parser.add_argument("--model", type=Path, help="base model folder instead of the packaged one")
    parser.add_argument("--answers", type=Path, help="also write the answers, as JSONL")
    parser.add_argument("--out", type=Path, default=demo_data_files()[-1])
    parser.add_argument("--threads", type=int)
    args = parser.parse_args(arguments)
    specs = index_experts(read_experts(demo_experts_file()))
    chosen = [specs[name] for name in args.experts or specs]
    model = args.model or prepare_smollm2(load_config().cache_dir, print)
    prompts = read_prompts()
    served = [
        s.id if s.adapter is None else f"{s.id}={s.adapter}" for s in chosen if s.kind != "null"
    ]
    graded: list[Graded] = []
    with engine(model, served or ["general"], args.threads) as url:
        for spec in chosen:
            print(f"grading {spec.id} on {len(prompts)} prompts", flush=True)
            graded += asyncio.run(grade(url, prompts, spec))
            merge(args.out, graded)
    if args.answers is not None:
        lines = (
            {"id": g.prompt.id, "expert": g.expert, "score": g.score, "answer": g.answer}
            for g in graded
        )
        args.answers.write_text("".join(json.dumps(line) + "\n" for line in lines))
    print(table(args.out, prompts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
