"""What sends the load: our generator, or wrk where it is installed."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable

from eval.bench.load import Load, request_body

_GRACE_S = 30.0

# wrk counts a status of 400 or more as an error; its latencies are in microseconds.
_WRK_SCRIPT = """
wrk.method = "POST"
wrk.headers["content-type"] = "application/json"
wrk.body = [==[{body}]==]
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    '\\n{{"requests": %d, "seconds": %f, "errors": %d, "p50": %f, "p95": %f, "p99": %f}}\\n',
    summary.requests, summary.duration / 1e6, e.connect + e.read + e.write + e.status + e.timeout,
    latency:percentile(50), latency:percentile(95), latency:percentile(99)))
end
"""

Generator = Callable[[str, int, float, bool], Load]
"""URL, connections, seconds and whether answers are streamed, to what came of it."""


def own(url: str, connections: int, seconds: float, stream: bool) -> Load:
    """`eval.bench.load` in a process of its own."""
    command = [sys.executable, "-m", "eval.bench.load", url]
    command += ["--connections", str(connections), "--seconds", str(seconds)]
    output = _run([*command, "--stream"] if stream else command, seconds)
    return Load(**json.loads(output))


def wrk(url: str, connections: int, seconds: float, stream: bool) -> Load:
    """wrk with one thread, for whole seconds; it has no warm-up, and can't tell a stream cut short
    from a whole one."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(_WRK_SCRIPT.format(body=request_body(stream).decode()))
        script.flush()
        duration = f"{max(1, round(seconds))}s"
        command = ["wrk", "-t1", f"-c{connections}", f"-d{duration}", "-s", script.name]
        output = _run([*command, f"{url}/v1/chat/completions"], seconds)
    result = json.loads(output.splitlines()[-1])
    return Load(
        requests=result["requests"],
        sent=result["requests"],
        errors=result["errors"],
        rps=result["requests"] / result["seconds"],
        p50_ms=result["p50"] / 1000,
        p95_ms=result["p95"] / 1000,
        p99_ms=result["p99"] / 1000,
    )


GENERATORS: dict[str, Generator] = {"own": own, "wrk": wrk}


def _run(command: list[str], seconds: float) -> str:
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        timeout=seconds + _GRACE_S,
        check=True,
    ).stdout
