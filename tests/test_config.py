"""Configuration: where a value comes from, and how a wrong one is told."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from composer.cli import main
from composer.config import load_config, resolve_experts
from experts.errors import ConfigError

EXPERTS = """\
engines:
  - {name: one, kind: embedded}
experts:
  - {id: general, kind: model, engine: one}
"""


def write(folder: Path, text: str) -> Path:
    file = folder / "composer.yaml"
    file.write_text(text)
    return file


def test_defaults_are_the_demo_when_there_is_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config(environ={})
    assert (config.host, config.port) == ("127.0.0.1", 8080)
    experts = resolve_experts(config)
    assert {"model", "lora", "prompt", "null"} == {spec.kind for spec in experts.values()}
    assert sum(spec.kind == "lora" for spec in experts.values()) >= 3


def test_flags_override_environment_which_overrides_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, "port: 1001\nlog: {level: error}\n")
    environ = {"COMPOSER_PORT": "1002", "COMPOSER_LOG__REQUESTS": "false", "COMPOSER_OTHER": "x"}
    assert load_config(file, environ={}).port == 1001
    config = load_config(file, environ=environ)
    assert (config.port, config.log.level, config.log.requests) == (1002, "error", False)
    assert load_config(file, environ=environ, flags={"port": 1003, "host": None}).port == 1003


def test_relative_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, "state_dir: mine\ncomposition: {data: [a.jsonl]}\n")
    config = load_config(file, environ={})
    assert config.state_dir == tmp_path / "mine"
    assert config.composition.data == (tmp_path / "a.jsonl",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("port: 8080\nhost: [\n", "composer.yaml:3"),
        ("port: 8080\nlogs: {}\n", "composer.yaml:2: logs: Extra inputs"),
        ("log:\n  level: loud\n", "composer.yaml:2: log.level"),
        ("port: many\n", "composer.yaml:1: port"),
        (
            "engines:\n  - {name: one, kind: embedded}\n  - {name: one, kind: embedded}\n",
            "engine 'one' is defined twice",
        ),
        (
            "engines:\n  - {name: one, kind: embedded}\nexperts:\n  - {id: a, kind: lora}\n",
            "composer.yaml:4: experts.0: an expert of kind 'lora' needs 'base'",
        ),
        ("host: 0.0.0.0\nauth: {required: false}\n", "beyond loopback"),
        ("- a\n- b\n", "a mapping of settings is expected"),
    ],
)
def test_wrong_value_is_told_with_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, text), environ={})
    assert message in caught.value.message


@pytest.mark.parametrize(
    ("expert", "message"),
    [
        ("{id: general, kind: model, engine: one}", "defined twice"),
        ("{id: b, kind: prompt, base: absent, system_prompt: x}", "register the base first"),
        ("{id: b, kind: model, engine: absent}", "names engine 'absent'"),
        ("{id: b, kind: lora, base: canned, adapter: x}", "can't stand on"),
    ],
)
def test_experts_that_do_not_fit_together_are_refused(
    tmp_path: Path, expert: str, message: str
) -> None:
    text = EXPERTS + f'  - {{id: canned, kind: "null", text: x}}\n  - {expert}\n'
    with pytest.raises(ConfigError, match=message):
        resolve_experts(load_config(write(tmp_path, text), environ={}))


class TestCommand:
    def run(self, *arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(main, list(arguments))
        return result.exit_code, result.output

    def test_check_exits_0_when_the_file_is_good(self, tmp_path: Path) -> None:
        code, output = self.run("config", "check", "--config", str(write(tmp_path, EXPERTS)))
        assert (code, output.strip()) == (0, "good: 1 experts on 1 engines")

    def test_check_exits_1_with_file_and_line_when_it_is_not(self, tmp_path: Path) -> None:
        code, output = self.run(
            "config", "check", "--config", str(write(tmp_path, "port: x\nhosts: y\n"))
        )
        assert code == 1
        assert "composer.yaml:1: port" in output
        assert "composer.yaml:2: hosts" in output

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("composition: {data: [absent.jsonl]}", "there is no file"),
            ("composition: {artefact: absent}", "there is no artefact in"),
            (
                EXPERTS + "  - {id: l, kind: lora, base: general, adapter: absent}",
                "no adapter folder",
            ),
            (EXPERTS.replace("kind: embedded", "kind: embedded, model: absent"), "no model folder"),
            (
                EXPERTS.replace("embedded", 'remote, url: "http://x", api_key_env: ABSENT_KEY'),
                "ABSENT_KEY is not set",
            ),
            (
                EXPERTS.replace("engines:", "engines:\n  - {name: idle, kind: embedded}"),
                "no expert stands on engine 'idle'",
            ),
        ],
    )
    def test_check_finds_what_this_machine_lacks(
        self, tmp_path: Path, text: str, message: str
    ) -> None:
        code, output = self.run("config", "check", "--config", str(write(tmp_path, text)))
        assert code == 1
        assert message in output

    def test_environment_is_blamed_for_its_own_values(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("COMPOSER_PORT", "abc")
        code, output = self.run("config", "check", "--config", str(write(tmp_path, "port: 1\n")))
        assert code == 1
        assert "environment or flag: port" in output

    def test_show_masks_the_password_of_the_state(self, tmp_path: Path) -> None:
        file = write(tmp_path, "redis_url: redis://:hunter2@localhost/0\n")
        code, output = self.run("config", "show", "--config", str(file))
        assert code == 0
        assert "hunter2" not in output
