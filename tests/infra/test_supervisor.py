"""The supervisor with small processes as services: they crash, hang, or ignore SIGTERM."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import pytest

from afterclick.errors import Unavailable
from afterclick.io.background import HEARTBEAT_LIMIT_S
from infra.embedded.process import Process
from infra.stack.services import ManagedService, State
from infra.stack.supervisor import Supervisor
from tests.waiting import PATIENCE_S, wait_until

SLEEPS = "import time; print('ready', flush=True); time.sleep(600)"
CRASHES = "print('ready', flush=True); raise SystemExit('on purpose')"
WRITES = """
import time
print('ready', flush=True)
while True:
    print('x' * 1000, flush=True)
    time.sleep(0.001)
"""
IGNORES_SIGTERM = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);" + SLEEPS
HAS_CHILD = (
    "import subprocess; subprocess.Popen(['sleep', '599.25'], start_new_session=False);" + SLEEPS
)


class Small:
    """A stack of one server and one application, each a line of Python."""

    def __init__(self, folder: Path, server: str = SLEEPS, application: str = SLEEPS) -> None:
        self.notes: list[str] = []
        self.server = self._service(folder, "server", server, essential=True)
        self.application = self._service(folder, "application", application)
        self.supervisor = Supervisor([self.server], [self.application], self.notes.append)

    def _service(
        self, folder: Path, name: str, script: str, essential: bool = False
    ) -> ManagedService:
        process = Process(name, [sys.executable, "-c", script], folder / f"{name}.log")
        return ManagedService(
            name, process, lambda: process.log_contains("ready"), essential=essential
        )

    async def until(self, condition: str, timeout_s: float = PATIENCE_S) -> None:
        """Wait for a note with these words, then stop the stack."""
        deadline = time.monotonic() + timeout_s
        while not any(condition in note for note in self.notes):
            assert time.monotonic() < deadline, self.notes
            await asyncio.sleep(0.02)
        self.supervisor.stop()

    def run_until(self, condition: str) -> None:
        asyncio.run(
            self.supervisor.run(lambda: self.notes.append("between"), lambda: self.until(condition))
        )


def test_applications_start_once_the_servers_are_ready(tmp_path: Path) -> None:
    small = Small(tmp_path)
    small.run_until("application ready")
    assert small.notes[:3] == ["server ready", "between", "application ready"]


def test_the_first_time_that_each_service_is_ready_is_a_milestone(tmp_path: Path) -> None:
    small = Small(tmp_path)
    small.run_until("application ready")
    milestones = dict(small.supervisor.milestones)
    assert list(milestones) == ["server ready", "application ready"]
    small.supervisor.reached("server ready")
    assert small.supervisor.milestones == milestones, "the first time counts"
    assert 0 <= milestones["server ready"] <= milestones["application ready"]


def test_every_process_has_ended_after_the_stop(tmp_path: Path) -> None:
    small = Small(tmp_path)
    small.run_until("application ready")
    assert not small.server.process.running
    assert not small.application.process.running
    assert small.application.state is State.STOPPED


def test_a_crashed_service_is_restarted_and_noted(tmp_path: Path) -> None:
    small = Small(tmp_path, application=CRASHES)
    small.run_until("restart in 1.0 s")
    assert small.application.restarts == 2
    assert any("application ended with code 1; restart in 0.5 s" in note for note in small.notes)


def test_a_service_without_heartbeats_is_noted_until_they_return(tmp_path: Path) -> None:
    small, age_s = Small(tmp_path), [HEARTBEAT_LIMIT_S + 1]
    small.application.heartbeat_s = lambda: age_s[-1]

    async def recover() -> None:
        while "application is frozen" not in " ".join(small.notes):
            await asyncio.sleep(0.02)
        record = small.application.record()
        assert (record.frozen, record.heartbeat_s) == (True, HEARTBEAT_LIMIT_S + 1)
        age_s.append(HEARTBEAT_LIMIT_S - 1)
        await small.until("application goes on")

    asyncio.run(small.supervisor.run(lambda: None, recover))
    assert sum("frozen" in note for note in small.notes) == 1
    assert not small.server.record().frozen


def test_the_log_of_a_running_service_is_bounded(tmp_path: Path) -> None:
    small, old = Small(tmp_path, application=WRITES), tmp_path / "application.old.log"
    small.application.process.log_bytes = 10_000

    async def rotations() -> None:
        async with asyncio.timeout(PATIENCE_S):
            for _ in range(3):
                while not old.exists():
                    await asyncio.sleep(0.02)
                assert old.stat().st_size > 10_000
                old.unlink()
        small.supervisor.stop()

    asyncio.run(small.supervisor.run(lambda: None, rotations))
    assert small.application.restarts == 0, "it writes on into the emptied file"


def test_without_its_server_the_stack_does_not_start(tmp_path: Path) -> None:
    small = Small(tmp_path, server="raise SystemExit('no room')")
    with pytest.raises(Unavailable, match=r"server ended with code 1[\s\S]*no room"):
        small.run_until("never")
    assert small.application.state is State.STOPPED
    assert "between" not in small.notes


def test_a_service_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    small = Small(tmp_path, server=IGNORES_SIGTERM, application=IGNORES_SIGTERM)
    small.run_until("application ready")
    stopping = small.notes.index("stopping")
    assert small.notes[stopping:] == ["stopping", "stopped: every process has ended"]
    assert not small.application.process.running


def test_the_children_of_a_service_end_with_it(tmp_path: Path) -> None:
    import psutil

    small = Small(tmp_path, application=HAS_CHILD)
    small.run_until("application ready")

    def left() -> list[psutil.Process]:
        return [
            p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", "599.25"]
        ]

    wait_until(lambda: not left(), what="the child has ended")


def test_a_failing_command_reports_the_end_of_its_log(tmp_path: Path) -> None:
    small = Small(tmp_path)
    failing = Process(
        "job", [sys.executable, "-c", "raise SystemExit('the disk is full')"], tmp_path / "job"
    )

    async def run() -> None:
        try:
            await small.supervisor.command(failing)
        finally:
            small.supervisor.stop()

    with pytest.raises(Unavailable, match=r"job failed with code 1.*the disk is full"):
        asyncio.run(small.supervisor.run(lambda: None, run))
