"""`python -m eval.mixer.bench`: what a mixer costs inside vLLM, beside the bare base and one stock
LoRA adapter, all in one run.

Every server is started alone, warmed up, and asked for the same number of tokens by 1, 8 and 32
streams at once. Figures are answer tokens a second.
"""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import torch

from composer.config import load_config
from experts.engines.embedded.adapters import read_adapter
from experts.engines.embedded.weights import prepare_smollm2
from experts.mixer.checkpoint import save_mixture
from experts.mixer.mixture import compose
from experts.mixer.spec import GateSpec
from experts.mixer.vllm_plugin.checkpoint import write_vllm_checkpoint

ADAPTERS = Path(__file__).parents[2] / "experts" / "demo" / "adapters"
EXPERTS = ("extract", "maths", "sql")
STREAMS = (1, 8, 32)
GOALS = {"base": dict.fromkeys(STREAMS, 0.7), "one adapter": {1: 1.7, 8: 2.0, 32: 2.0}}
START_S = 600.0
STOP_S = 20.0
PROMPT = "Tell a long story about a river, a mill and the people who live there."


@asynccontextmanager
async def server(python: Path, model: Path, work: Path, *more: str) -> AsyncIterator[str]:
    """A vLLM server of `model` under the name `served`; yields its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--served-model-name", "served", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--dtype", "bfloat16", "--max-model-len", "1024", "--shutdown-timeout", "5", *more]
    env = os.environ | {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "2"}
    # A server is told apart from its children by its session, which is ended as a whole.
    with (work / "vllm.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            *command, stdout=log, stderr=log, env=env, cwd=work, start_new_session=True
        )
    try:
        await _until_ready(url, process, work / "vllm.log")
        yield url
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), STOP_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


async def _until_ready(url: str, process: asyncio.subprocess.Process, log: Path) -> None:
    deadline = time.monotonic() + START_S
    async with aiohttp.ClientSession() as session:
        while time.monotonic() < deadline and process.returncode is None:
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(f"{url}/health") as response:
                    if response.status == 200:
                        return
            await asyncio.sleep(0.5)
    written = await asyncio.to_thread(log.read_text)
    raise SystemExit(f"vLLM did not start; the end of its log:\n{written[-3000:]}")


async def speed(url: str, model: str, streams: int, tokens: int) -> float:
    """Answer tokens a second of so many streams at once."""
    timeout = aiohttp.ClientTimeout(total=1200)
    async with aiohttp.ClientSession(url, timeout=timeout) as session:

        async def ask(number: int) -> None:
            body = {
                "model": model,
                "prompt": f"{number}. {PROMPT}",
                "max_tokens": tokens,
                "ignore_eos": True,
                "temperature": 0,
            }
            async with session.post("/v1/completions", json=body) as response:
                if response.status != 200:
                    raise SystemExit(f"vLLM refused: {await response.text()}")
                await response.read()

        started = time.perf_counter()
        await asyncio.gather(*(ask(number) for number in range(streams)))
        return streams * tokens / (time.perf_counter() - started)


async def measure(url: str, model: str, tokens: int, rounds: int) -> dict[int, float]:
    """The median over rounds, by streams."""
    await speed(url, model, max(STREAMS), 8)
    found = {}
    for streams in STREAMS:
        speeds = sorted([await speed(url, model, streams, tokens) for _ in range(rounds)])
        found[streams] = speeds[len(speeds) // 2]
    return found


def write_mixer(base: Path, work: Path) -> Path:
    """Three of the demo's adapters under random gates: what routing decides costs the same."""
    adapters = [read_adapter(name, ADAPTERS / name) for name in EXPERTS]
    mixture = compose(adapters, gate=GateSpec(top_k=2))
    generator = torch.Generator().manual_seed(0)
    gates = {
        name: torch.randn(gate.shape, generator=generator) for name, gate in mixture.gates.items()
    }
    save_mixture(mixture.with_gates(mixture.spec.gate, gates), work / "mixer", base)
    write_vllm_checkpoint(work / "mixer", base, work / "served")
    return work / "served"


async def compare(
    python: Path, base: Path, work: Path, tokens: int, rounds: int, more: Sequence[str]
) -> dict[str, dict[int, float]]:
    lora = ("--enable-lora", "--max-lora-rank", "8", "--lora-modules", f"one={ADAPTERS / 'maths'}")
    mixer = write_mixer(base, work)
    found = {}
    async with server(python, base, work, *more) as url:
        found["base"] = await measure(url, "served", tokens, rounds)
    async with server(python, mixer, work, *more) as url:
        found["mixer"] = await measure(url, "served", tokens, rounds)
    async with server(python, base, work, *more, *lora) as url:
        found["one adapter"] = await measure(url, "one", tokens, rounds)
    return found


def table(found: dict[str, dict[int, float]]) -> str:
    lines = [f"{'tokens/s':16}" + "".join(f"{n:>10}" for n in STREAMS)]
    for name, speeds in found.items():
        lines.append(f"{name:16}" + "".join(f"{speeds[n]:>10.1f}" for n in STREAMS))
    for name, goals in GOALS.items():
        ratios = {n: found["mixer"][n] / found[name][n] for n in STREAMS}
        cells = "".join(f"{ratios[n]:>10.2f}" for n in STREAMS)
        held = all(ratios[n] >= goals[n] for n in STREAMS)
        wanted = ", ".join(f"{goal:g}" for goal in goals.values())
        lines.append(f"mixer / {name:8}{cells}   goal {wanted}: {'held' if held else 'MISSED'}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m eval.mixer.bench", description=__doc__)
    parser.add_argument("--python", type=Path, required=True, help="of vLLM's own environment")
    parser.add_argument("--tokens", type=int, default=96, help="tokens of an answer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compiled", action="store_true", help="with torch.compile")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args()
    base = prepare_smollm2(load_config(None, flags={}).cache_dir, print)
    more = () if args.compiled else ("--enforce-eager",)
    python = args.python.absolute()
    with tempfile.TemporaryDirectory(prefix="mixer-bench-") as folder:
        work = Path(folder)
        found = asyncio.run(compare(python, base, work, args.tokens, args.rounds, more))
    print(table(found))
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
