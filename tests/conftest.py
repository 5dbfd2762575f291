"""What tests share: where things are cached, and what must be installed."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def cache_dir() -> Path:
    """Models and exports are made once and shared by all runs."""
    folder = Path(os.environ.get("COMPOSER_CACHE_DIR", REPOSITORY / ".composer" / "cache"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def need_program() -> Callable[[str], str]:
    """Path of a program that a Debian package brings; without it a skip, and a failure in CI."""

    def need(name: str) -> str:
        path = shutil.which(name)
        if path is not None:
            return path
        reason = f"{name} is not installed (.ci/run installs it)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)

    return need
