"""Commands as processes: one line per error, exit codes, JSON output."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from infra.embedded.server import free_port


def afterclick(home: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command with its own home and free ports."""
    own = {
        "AFTERCLICK_HOME": str(home),
        "AFTERCLICK_KAFKA__BOOTSTRAP": f"127.0.0.1:{free_port(together=2)}",
        "AFTERCLICK_REDIS__URL": f"redis://127.0.0.1:{free_port()}/0",
        "AFTERCLICK_SERVING__PORT": str(free_port()),
        "AFTERCLICK_UI__PORT": str(free_port()),
    }
    command = [sys.executable, "-m", "infra", *arguments]
    return subprocess.run(
        command,
        env={**os.environ, **own, **env},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_status_without_a_stack_has_exit_code_1(tmp_path: Path) -> None:
    answer = afterclick(tmp_path, "status")
    assert answer.returncode == 1
    assert "no stack runs" in answer.stdout
    assert json.loads(afterclick(tmp_path, "status", "--json").stdout)["running"] is False


def test_down_without_a_stack_does_nothing(tmp_path: Path) -> None:
    answer = afterclick(tmp_path, "down")
    assert answer.returncode == 0
    assert "no stack runs" in answer.stdout


def test_doctor_passes_on_a_machine_that_runs_the_tests(tmp_path: Path, jars: Path) -> None:
    answer = afterclick(tmp_path, "doctor", "--json", AFTERCLICK_JARS=str(jars))
    findings = {finding["name"]: finding for finding in json.loads(answer.stdout)["findings"]}
    for name in ("Python", "Java", "packages", "jars", "ports", "Chromium"):
        assert findings[name]["well"], findings[name]


def test_doctor_shows_how_to_fix_a_failure(tmp_path: Path) -> None:
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", 0))
        squatter.listen()
        taken = str(squatter.getsockname()[1])
        env = {"AFTERCLICK_UI__PORT": taken, "AFTERCLICK_JARS": str(tmp_path), "PATH": "/nowhere"}
        answer = afterclick(tmp_path, "doctor", "--json", **env, JAVA_HOME="")
    findings = {finding["name"]: finding for finding in json.loads(answer.stdout)["findings"]}
    assert answer.returncode == 1
    assert taken in findings["ports"]["found"]
    assert "JAVA_HOME" in findings["Java"]["remedy"]
    assert "afterclick jars" in findings["jars"]["remedy"]
    assert "apt-get install chromium" in findings["Chromium"]["remedy"]


def test_up_with_a_taken_port_is_one_line_and_starts_nothing(tmp_path: Path) -> None:
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", 0))
        squatter.listen()
        answer = afterclick(tmp_path, "up", AFTERCLICK_SERVING__PORT=str(squatter.getsockname()[1]))
    assert answer.returncode == 3
    assert answer.stderr.count("\n") == 1
    assert "(the API) is in use" in answer.stderr
    assert not (tmp_path / "kafka").exists()


def test_up_with_a_missing_dataset_is_rejected_before_anything_starts(tmp_path: Path) -> None:
    answer = afterclick(tmp_path, "up", "--replay", DATASET=str(tmp_path / "absent"))
    assert answer.returncode == 2
    assert "no such file" in answer.stderr
    assert "Traceback" not in answer.stderr
    assert not (tmp_path / "kafka").exists()


@pytest.mark.parametrize(
    ("variable", "value"),
    [("AFTERCLICK_STREAM__TRIGGER", "often"), ("AFTERCLICK_SERVING__PORT", "http")],
)
def test_a_wrong_setting_is_named_in_one_line(tmp_path: Path, variable: str, value: str) -> None:
    answer = afterclick(tmp_path, "status", **{variable: value})
    assert answer.returncode == 2
    assert answer.stderr.count("\n") == 1
    assert variable in answer.stderr
