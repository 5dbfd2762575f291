"""The versions that install together are written down, all of them."""

import re
from importlib import metadata

import pytest

from tests.conftest import REPOSITORY

OWN = {"expert-composer", "pip", "setuptools", "wheel"}


def listed(file: str) -> dict[str, str]:
    pins = re.findall(r"^([A-Za-z0-9._-]+)==(\S+)$", (REPOSITORY / file).read_text(), re.MULTILINE)
    names = [plain(name) for name, _ in pins]
    assert len(names) == len(set(names)), f"{file} names a package twice"
    return {plain(name): version for name, version in pins}


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_installed_package_is_pinned_at_its_version() -> None:
    pinned = listed("constraints.txt") | listed("requirements-weights.txt")
    installed = {
        plain(package.name): package.version.partition("+")[0]
        for package in metadata.distributions()
    }
    strays = {
        f"{name}=={version}"
        for name, version in installed.items()
        if name not in OWN and pinned.get(name) != version
    }
    assert strays == set()


@pytest.mark.parametrize("file", ["constraints.txt", "constraints-providers.txt"])
def test_pins_are_exact(file: str) -> None:
    lines = (REPOSITORY / file).read_text().splitlines()
    assert [x for x in lines if x and not x.startswith("#") and "==" not in x] == []
