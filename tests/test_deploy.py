"""What deploys Composer, checked as far as it can be without a container engine."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from composer.config import find_missing, load_config, resolve_experts
from tests.conftest import REPOSITORY

COMPOSE_FILE = REPOSITORY / "docker-compose.yml"
DOCKERFILE = (REPOSITORY / "Dockerfile").read_text()
CONFIGS = sorted((REPOSITORY / "deploy").glob("*.yaml"))
NOT_MAKE = ("apt-get ", "useradd ")
"""What has to be done before there is make, or is no part of an installation."""


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load(COMPOSE_FILE.read_text())


def steps(instruction: str) -> list[str]:
    joined = DOCKERFILE.replace("\\\n", " ")
    return re.findall(rf"^{instruction} (.*)$", joined, re.MULTILINE)


class TestCompose:
    def test_file_follows_the_compose_specification(self) -> None:
        subprocess.run(
            [
                Path(sys.executable).with_name("check-jsonschema"),
                "--builtin-schema",
                "vendor.compose-spec",
                COMPOSE_FILE,
            ],
            check=True,
            capture_output=True,
        )

    def test_dependencies_are_services_with_a_health_check(self, compose: dict[str, Any]) -> None:
        services = compose["services"]
        for name, service in services.items():
            for needed, how in service.get("depends_on", {}).items():
                assert how == {"condition": "service_healthy"}
                assert "healthcheck" in services[needed], f"{name} waits for {needed}"

    def test_profile_holds_all_that_its_services_depend_on(self, compose: dict[str, Any]) -> None:
        for profile in ("cpu", "gpu"):
            started = {
                name: service
                for name, service in compose["services"].items()
                if profile in service.get("profiles", [profile])
            }
            for name, service in started.items():
                assert set(service.get("depends_on", {})) <= set(started), name

    def test_only_the_gpu_profile_reserves_gpus(self, compose: dict[str, Any]) -> None:
        gpus = []
        for service in compose["services"].values():
            resources = service.get("deploy", {}).get("resources", {})
            for device in resources.get("reservations", {}).get("devices", []):
                assert service["profiles"] == ["gpu"]
                assert device["capabilities"] == ["gpu"]
                gpus += device["device_ids"]
        assert len(gpus) == len(set(gpus)) == 2

    def test_volumes_and_files_exist(self, compose: dict[str, Any]) -> None:
        for service in compose["services"].values():
            for volume in service.get("volumes", []):
                source = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", volume).split(":")[0]
                if source.startswith("."):
                    path = REPOSITORY / source
                    assert path.exists() or path.parent == REPOSITORY / "deploy" / "models"
                    assert volume.endswith(":ro")
                else:
                    assert source in compose["volumes"]

    def test_variables_are_explained_in_the_example(self) -> None:
        used = set(re.findall(r"\$\{(\w+)", COMPOSE_FILE.read_text()))
        explained = set(re.findall(r"^(\w+)=", (REPOSITORY / ".env.example").read_text(), re.M))
        assert used - {"VLLM_IMAGE"} == explained

    def test_no_secret_is_written_down(self, compose: dict[str, Any]) -> None:
        for service in compose["services"].values():
            for name, value in service.get("environment", {}).items():
                if "KEY" in name or "PASSWORD" in name or "TOKEN" in name:
                    assert re.fullmatch(r"\$\{\w+:-\}", value), name

    def test_redis_keeps_every_write_and_evicts_nothing(self, compose: dict[str, Any]) -> None:
        command = " ".join(compose["services"]["redis"]["command"])
        for option in ("--appendonly yes", "--appendfsync always", "--maxmemory-policy noeviction"):
            assert option in command


class TestConfigurations:
    @pytest.mark.parametrize("file", CONFIGS, ids=lambda path: path.name)
    def test_file_is_valid_and_only_lacks_what_the_operator_brings(self, file: Path) -> None:
        config = load_config(file, environ={})
        assert resolve_experts(config)
        assert config.keys_required
        missing = find_missing(config, {"VLLM_API_KEY": "some"})
        assert [line for line in missing if str(REPOSITORY / "deploy" / "data") not in line] == []

    def test_each_profile_has_one(self, compose: dict[str, Any]) -> None:
        mounted = {
            volume.split(":")[0]
            for service in compose["services"].values()
            for volume in service.get("volumes", [])
            if ":/app/composer.yaml" in volume
        }
        assert mounted == {f"./deploy/{file.name}" for file in CONFIGS}

    def test_engines_are_the_services_of_the_compose_file(self, compose: dict[str, Any]) -> None:
        config = load_config(REPOSITORY / "deploy" / "gpu.yaml", environ={})
        for engine in config.engines:
            service = compose["services"][engine.url.host]
            command = service["command"]
            assert command[command.index("--port") + 1] == str(engine.url.port)
            served = {
                spec.upstream_name
                for spec in resolve_experts(config).values()
                if spec.engine == engine.name
            }
            assert served == {command[command.index("--served-model-name") + 1]}
            assert engine.api_key_env in service["environment"]


class TestDockerfile:
    def test_steps_are_targets_of_make(self) -> None:
        made = [step for step in steps("RUN") if not step.startswith(NOT_MAKE)]
        assert len(made) >= 2
        for step in made:
            words = step.split()
            assert words[0] == "make", step
            target = words[1]
            environment = {**os.environ, "TORCH_INDEX": ""}
            result = subprocess.run(
                ["make", "--dry-run", target],
                cwd=REPOSITORY,
                env=environment,
                capture_output=True,
                text=True,
            )
            assert result.returncode == 0, result.stderr

    def test_copied_files_are_in_the_build_context(self) -> None:
        allowed = {
            line.removeprefix("!")
            for line in (REPOSITORY / ".dockerignore").read_text().splitlines()
            if line.startswith("!")
        }
        copied = {source for step in steps("COPY") for source in step.split()[:-1]}
        assert copied == allowed
        assert all((REPOSITORY / source).exists() for source in copied)

    def test_packages_that_are_imported_are_copied(self) -> None:
        included = {"composer", "routers", "experts", "gateway", "eval"}
        assert included <= {source for step in steps("COPY") for source in step.split()[:-1]}

    def test_nothing_runs_as_root(self) -> None:
        assert steps("USER") == ["composer"]
        assert DOCKERFILE.index("\nUSER ") < DOCKERFILE.index("\nCMD ")

    def test_command_is_the_same_as_without_a_container(self) -> None:
        assert steps("CMD") == ['["coe", "up"]']

    def test_no_variable_of_the_image_is_a_secret(self) -> None:
        assert not re.search(r"KEY|SECRET|TOKEN|PASSWORD", DOCKERFILE)


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_help_lists_every_target_that_is_meant_for_a_person() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: ((?:.*\\\n)*.*)$", makefile, re.MULTILINE)
    assert phony is not None
    targets = set(phony[1].replace("\\\n", " ").split())
    listed = subprocess.run(
        ["make", "help"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout
    assert {line.split()[0] for line in listed.splitlines() if line.startswith("  ")} >= targets
