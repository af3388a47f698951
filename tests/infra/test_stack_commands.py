"""Commands: one line per error, exit codes, JSON output."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from infra.cli import app
from infra.cli.output import one_line_errors
from infra.embedded.server import free_port


class Answer(NamedTuple):
    """The exit code and the output of a command."""

    returncode: int
    stdout: str
    stderr: str


Command = Callable[..., Answer]


@pytest.fixture
def afterclick(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Command:
    """Runs a command in this process, with its own home, free ports and further variables."""
    own = {
        "AFTERCLICK_HOME": str(tmp_path),
        "AFTERCLICK_KAFKA__BOOTSTRAP": f"127.0.0.1:{free_port(together=2)}",
        "AFTERCLICK_REDIS__URL": f"redis://127.0.0.1:{free_port()}/0",
        "AFTERCLICK_SERVING__PORT": str(free_port()),
        "AFTERCLICK_UI__PORT": str(free_port()),
    }

    def run(*arguments: str, **env: str) -> Answer:
        for name, value in (own | env).items():
            monkeypatch.setenv(name, value)
        capfd.readouterr()
        with pytest.raises(SystemExit) as end, one_line_errors():
            app(arguments)
        return Answer(int(end.value.code or 0), *capfd.readouterr())

    return run


def test_status_without_a_stack_has_exit_code_1(afterclick: Command) -> None:
    answer = afterclick("status")
    assert answer.returncode == 1
    assert "no stack runs" in answer.stdout
    assert json.loads(afterclick("status", "--json").stdout)["running"] is False


def test_down_without_a_stack_does_nothing(afterclick: Command) -> None:
    answer = afterclick("down")
    assert answer.returncode == 0
    assert "no stack runs" in answer.stdout


def test_doctor_passes_on_a_machine_that_runs_the_tests(afterclick: Command, jars: Path) -> None:
    answer = afterclick("doctor", "--json", AFTERCLICK_JARS=str(jars))
    findings = {finding["name"]: finding for finding in json.loads(answer.stdout)["findings"]}
    for name in ("Python", "Java", "packages", "jars", "ports", "Chromium"):
        assert findings[name]["well"], findings[name]


def test_doctor_shows_how_to_fix_a_failure(afterclick: Command, tmp_path: Path) -> None:
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", 0))
        squatter.listen()
        taken = str(squatter.getsockname()[1])
        env = {"AFTERCLICK_UI__PORT": taken, "AFTERCLICK_JARS": str(tmp_path), "PATH": "/nowhere"}
        answer = afterclick("doctor", "--json", **env, JAVA_HOME="")
    findings = {finding["name"]: finding for finding in json.loads(answer.stdout)["findings"]}
    assert answer.returncode == 1
    assert taken in findings["ports"]["found"]
    assert "JAVA_HOME" in findings["Java"]["remedy"]
    assert "afterclick jars" in findings["jars"]["remedy"]
    assert "apt-get install chromium" in findings["Chromium"]["remedy"]


def test_up_with_a_taken_port_is_one_line_and_starts_nothing(
    afterclick: Command, tmp_path: Path
) -> None:
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", 0))
        squatter.listen()
        answer = afterclick("up", AFTERCLICK_SERVING__PORT=str(squatter.getsockname()[1]))
    assert answer.returncode == 3
    assert answer.stderr.count("\n") == 1
    assert "(the API) is in use" in answer.stderr
    assert not (tmp_path / "kafka").exists()


def test_up_with_a_missing_dataset_is_rejected_before_anything_starts(
    afterclick: Command, tmp_path: Path
) -> None:
    answer = afterclick("up", "--replay", DATASET=str(tmp_path / "absent"))
    assert answer.returncode == 2
    assert "no such file" in answer.stderr
    assert "Traceback" not in answer.stderr
    assert not (tmp_path / "kafka").exists()


@pytest.mark.parametrize(
    ("variable", "value"),
    [("AFTERCLICK_STREAM__TRIGGER", "often"), ("AFTERCLICK_SERVING__PORT", "http")],
)
def test_a_wrong_setting_is_named_in_one_line(
    afterclick: Command, variable: str, value: str
) -> None:
    answer = afterclick("status", **{variable: value})
    assert answer.returncode == 2
    assert answer.stderr.count("\n") == 1
    assert variable in answer.stderr
