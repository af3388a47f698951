"""`afterclick up --replay` on a small generated shop: start, restarts of services, and stop.

The tests of this file run in order on one stack, because a start takes half a minute.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from afterclick.io.files import PRIVATE
from infra.embedded.server import free_port
from infra.stack.supervisor import GRACE_S, SERVERS_GRACE_S
from tests.waiting import PATIENCE_S, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.spark, pytest.mark.timeout(1500)]


class StackInATerminal:
    """A home folder, and `afterclick` commands in it as separate processes."""

    def __init__(self, folder: Path, jars: Path) -> None:
        self.home = folder / "home"
        self.output = folder / "up.log"
        kafka, self.api, self.console = free_port(together=2), free_port(), free_port()
        self.env = {
            **os.environ,
            "AFTERCLICK_HOME": str(self.home),
            "AFTERCLICK_JARS": str(jars),
            "AFTERCLICK_KAFKA__BOOTSTRAP": f"127.0.0.1:{kafka}",
            "AFTERCLICK_KAFKA__PARTITIONS": "2",
            "AFTERCLICK_REDIS__URL": f"redis://127.0.0.1:{free_port()}/0",
            "AFTERCLICK_SERVING__PORT": str(self.api),
            "AFTERCLICK_CONSOLE__PORT": str(self.console),
            "AFTERCLICK_UI__PORT": str(free_port()),
            "AFTERCLICK_TRAINING__MEMORY": "1g",
            "AFTERCLICK_TRAINING__RANK": "16",
            "AFTERCLICK_TRAINING__ITERATIONS": "3",
            "DATASET": str(folder / "shop"),
        }
        self.up: subprocess.Popen[bytes] | None = None
        size = ("--users", "200", "--items", "100", "--events", "4000", "--days", "120")
        self.run("data", "make", "--out", self.env["DATASET"], *size)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "infra", *arguments]
        return subprocess.run(
            command, env=self.env, capture_output=True, text=True, timeout=120, check=False
        )

    def start(self, *options: str) -> None:
        with self.output.open("wb") as output:
            command = [sys.executable, "-m", "infra", "up", *options]
            self.up = subprocess.Popen(
                command, env=self.env, stdout=output, stderr=subprocess.STDOUT
            )

    def line_with(self, words: str, timeout: float = 480.0) -> str:
        """Wait for a line of the output that matches the words."""

        def line() -> str:
            assert self.up is not None
            lines = self.output.read_text().splitlines()
            found = [line for line in lines if re.search(words, line)]
            assert found or self.up.poll() is None, "\n".join(lines[-20:])
            return found[0] if found else ""

        return wait_until(line, timeout, what=f"{words!r} in the output of `afterclick up`")

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.run("status", "--json").stdout)
        return found

    def end(self, how: signal.Signals) -> int:
        """Send a signal and return the exit code."""
        assert self.up is not None
        self.up.send_signal(how)
        return self.up.wait(PATIENCE_S)

    def processes(self) -> list[int]:
        """The processes with this home in their environment."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("AFTERCLICK_HOME") == str(self.home):
                    found.append(process.pid)
            except psutil.Error:
                continue
        return found

    def list_for(self, user: str) -> dict[str, Any]:
        return self._call(f"http://127.0.0.1:{self.api}/recommendations?user_id={user}")

    def console_state(self) -> dict[str, Any]:
        return self._call(f"http://127.0.0.1:{self.console}/admin/console")

    def control(self, path: str) -> dict[str, Any]:
        """POST to the admin console."""
        return self._call(f"http://127.0.0.1:{self.console}/admin/{path}", "POST")

    def _call(self, url: str, method: str = "GET") -> dict[str, Any]:
        json_type = {"content-type": "application/json"}
        request = urllib.request.Request(url, method=method, headers=json_type)
        with urllib.request.urlopen(request, timeout=20) as response:
            answer: dict[str, Any] = json.load(response)
            return answer


@pytest.fixture(scope="module")
def stack(jars: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StackInATerminal]:
    stack = StackInATerminal(tmp_path_factory.mktemp("stack"), jars)
    stack.start("--replay", "--rate", "5", "--retrain")
    yield stack
    if stack.up and stack.up.poll() is None:
        stack.up.kill()


def test_lists_are_served_before_and_after_the_first_training(stack: StackInATerminal) -> None:
    assert "first list" in stack.line_with("first list")
    assert "personalised" in stack.line_with("first personalised list from a model", timeout=540)


def test_status_reports_services_with_memory_and_progress(stack: StackInATerminal) -> None:
    stack.line_with("training: model")
    personalised = "first personalised list from a model"

    def complete() -> dict[str, Any] | None:
        found = stack.status()  # up to a second old
        read = found["figures"]["log_events"] >= 3500 and personalised in found["milestones"]
        return found if read else None

    found = wait_until(complete)
    parts = {part["name"]: part for part in found["parts"]}
    assert set(parts) == {"kafka", "valkey", "serve", "console", "stream", "ui", "retrain"}
    assert {part["state"] for part in parts.values()} == {"ready"}
    assert all(part["memory_mib"] > 1 for part in parts.values())
    assert found["figures"]["model_version"]
    reached = found["milestones"]
    assert reached["kafka ready"] <= reached["serve ready"] <= reached["first list"]
    assert reached["log"] <= reached[personalised]
    assert found["pid"] == stack.up.pid if stack.up else False


def test_a_second_start_is_rejected_and_changes_nothing(stack: StackInATerminal) -> None:
    before = stack.status()["parts"]
    second = stack.run("up")
    assert second.returncode == 5
    assert second.stderr.count("\n") == 1
    assert "a stack runs already" in second.stderr
    after = stack.status()["parts"]
    assert [part["pid"] for part in after] == [part["pid"] for part in before]


def test_a_killed_service_is_restarted(stack: StackInATerminal) -> None:
    killed = next(part["pid"] for part in stack.status()["parts"] if part["name"] == "serve")
    os.kill(killed, signal.SIGKILL)
    stack.line_with("serve ended with code -9; restart in")

    def again() -> bool:
        part = next(part for part in stack.status()["parts"] if part["name"] == "serve")
        return bool(part["restarts"] == 1 and part["state"] == "ready" and part["pid"] != killed)

    wait_until(again, every=1.0, what="the API is ready again")
    assert stack.list_for("unknown")["items"]


def test_a_stream_job_killed_from_the_dashboard_restarts_without_loss(
    stack: StackInATerminal,
) -> None:
    killed = next(part["pid"] for part in stack.status()["parts"] if part["name"] == "stream")
    assert str(killed) in stack.control("faults/stream")["done"]
    stack.line_with("stream ended with code -9; restart in")
    stack.control("reconcile")

    def ended() -> dict[str, Any] | None:
        job: dict[str, Any] = stack.console_state()["jobs"]["reconcile"]
        return job if job["state"] != "running" else None

    job = wait_until(ended, 180, every=1.0, what="the recount")
    assert job["state"] == "done", job
    assert job["answer"]["differences"] == 0
    assert job["answer"]["behind"] == 0
    active = {"running", "done"}
    wait_until(lambda: stack.console_state()["replay"]["state"] in active, what="the replay")


def test_ctrl_c_stops_every_process_within_ten_seconds(stack: StackInATerminal) -> None:
    stack.line_with("training: model")
    assert len(stack.processes()) > 5
    assert stack.end(signal.SIGINT) == 0
    assert GRACE_S + SERVERS_GRACE_S < 10
    wait_until(lambda: not stack.processes(), every=0.5, what="every process is gone")
    assert stack.status()["running"] is False


def test_only_the_owner_reads_the_home_folder(stack: StackInATerminal) -> None:
    paths = [path for path in (stack.home, *stack.home.rglob("*")) if not path.is_symlink()]
    assert len(paths) > 100
    assert [str(path) for path in paths if path.stat().st_mode & PRIVATE] == []


def test_a_restarted_stack_continues_the_replay_with_its_model(stack: StackInATerminal) -> None:
    stack.start("--replay", "--rate", "5")
    assert ": 0 reviews before" in stack.line_with("history: ")
    assert "continues with model" in stack.line_with("training: ")
    assert "personalised" in stack.line_with("first personalised list from a model")


def test_a_killed_supervisor_leaves_no_process(stack: StackInATerminal) -> None:
    assert len(stack.processes()) > 5
    stack.end(signal.SIGKILL)
    wait_until(lambda: not stack.processes(), every=0.5, what="every child is gone")


def test_down_stops_the_stack_from_another_shell(stack: StackInATerminal) -> None:
    stack.start()
    stack.line_with("serve ready")
    answer = stack.run("down")
    assert answer.returncode == 0
    assert "stopped the stack" in answer.stdout
    assert stack.up is not None
    assert stack.up.wait(PATIENCE_S) == 0
    wait_until(lambda: not stack.processes(), every=0.5, what="every process is gone")
