"""The documentation's commands, run as they stand on the pages against one real `coe up`.

A block fenced as `sh` is run, all blocks of a page in one shell, unless the line before it is
`<!-- not run: reason -->`. A block fenced as `text` right after it shows its output: every word of
it that has no digit must be in the real output. Ports are free ones instead of those on the page.
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from composer.commands import free_port
from tests.conftest import REPOSITORY
from tests.test_acceptance import Demo, start, stop

PAGES = (
    "README.md",
    *(
        f"docs/{n}.md"
        for n in (
            "prompts",
            "experts",
            "training",
            "statistics",
            "operations",
            "simulator",
            "mixers",
        )
    ),
)
NOT_RUN = re.compile(r"<!-- not run: (.+) -->")
WORD = re.compile(r"[A-Za-z][A-Za-z_'-]{3,}")

pytestmark = pytest.mark.timeout(400)


@dataclass(frozen=True)
class Block:
    """`reason` says why it is not run, `shown` the output that the page promises."""

    line: int
    code: str
    reason: str = ""
    shown: str = ""


def blocks(page: str) -> list[Block]:
    """The `sh` blocks of a page, each with what the page shows as its output."""
    found: list[Block] = []
    lines = (REPOSITORY / page).read_text().splitlines()
    number = 0
    while number < len(lines):
        kind = re.fullmatch(r"```(sh|text)", lines[number])
        if kind is None:
            number += 1
            continue
        end = lines.index("```", number)
        code = "\n".join(lines[number + 1 : end])
        marker = NOT_RUN.fullmatch(lines[number - 1])
        if kind[1] == "sh":
            found.append(Block(number + 1, code, reason=marker[1] if marker else ""))
        elif found:
            last = found.pop()
            found.append(Block(last.line, last.code, last.reason, code))
        number = end + 1
    return found


@pytest.fixture(scope="module")
def composer(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Iterator[Demo]:
    running = start(tmp_path_factory.mktemp("docs") / "state", cache_dir)
    yield running
    stop(running)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder that looks like the clone, where pages may write files."""
    clone = tmp_path_factory.mktemp("clone")
    for path in REPOSITORY.iterdir():
        if path.name not in (".composer", ".git") and not path.name.startswith(".pytest"):
            (clone / path.name).symlink_to(path)
    (clone / ".composer").mkdir()
    return clone


def script(page: str, substitutes: dict[str, str]) -> str:
    """One shell script of all blocks that are run, each announced by its line."""
    parts = ["set -e", r"""trap 'printf "\n@@ end %s\n" $?' EXIT"""]
    for block in blocks(page):
        if not block.reason:
            code = block.code
            for written, real in substitutes.items():
                code = code.replace(written, real)
            parts.append(f"printf '\\n@@ {block.line}\\n'\n{code}")
    return "\n".join(parts) + "\n"


def run(page: str, composer: Demo, folder: Path, cache_dir: Path) -> dict[int, str]:
    """Run a page; returns the output of each block by its line."""
    substitutes = {
        "http://127.0.0.1:8080": composer.url,
        "127.0.0.1:8001": f"127.0.0.1:{(port := free_port())}",
        "--port 8001": f"--port {port}",
        "$PWD/.composer/cache": str(cache_dir),
        "$PWD/.composer/state": str(composer.state),
    }
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "COMPOSER_URL": composer.url,
        "COMPOSER_CACHE_DIR": str(cache_dir),
        "COMPOSER_STATE_DIR": str(composer.state),
        "OMP_NUM_THREADS": "2",
    }
    process = subprocess.Popen(
        ["bash", "-c", script(page, substitutes)],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    # What a page starts in the background holds the pipe open: the end is a line of the script's.
    assert process.stdout is not None
    lines: list[str] = []
    try:
        for line in process.stdout:
            lines.append(line)
            if line.startswith("@@ end"):
                break
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    text = "".join(lines)
    assert text.endswith("@@ end 0\n"), f"{page} stopped after this:\n{text[-3000:]}"
    sections = re.split(r"^@@ (\d+)\n", text, flags=re.MULTILINE)
    return {int(line): output for line, output in zip(sections[1::2], sections[2::2], strict=True)}


@pytest.mark.parametrize("page", PAGES)
def test_commands_do_what_the_page_says(
    page: str, composer: Demo, folder: Path, cache_dir: Path
) -> None:
    outputs = run(page, composer, folder, cache_dir)
    for block in blocks(page):
        if block.reason or not block.shown:
            continue
        output = outputs[block.line]
        missing = [word for word in WORD.findall(block.shown) if word not in output]
        assert missing == [], f"{page}:{block.line} does not say {missing}:\n{output}"


@pytest.mark.parametrize("page", PAGES)
def test_most_of_a_page_is_run(page: str) -> None:
    found = blocks(page)
    assert found
    assert sum(bool(block.reason) for block in found) <= len(found) / 2 + 1


@pytest.mark.parametrize("page", [*PAGES, "ARCHITECTURE.md", "docs/api.md", "docs/encoder.md"])
def test_links_lead_somewhere(page: str) -> None:
    text = (REPOSITORY / page).read_text()
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if not target.startswith(("http://", "https://")):
            assert ((REPOSITORY / page).parent / target).exists(), f"{page} links to {target}"


@pytest.mark.parametrize("page", PAGES)
def test_lines_are_short_enough_to_read(page: str) -> None:
    text = re.sub(r"```.*?```", "", (REPOSITORY / page).read_text(), flags=re.DOTALL)
    long = [line for line in text.splitlines() if len(line) > 105 and not line.startswith("|")]
    assert long == []
