"""Work that repeats in a thread."""

from __future__ import annotations

import threading

from structlog.testing import capture_logs

from afterclick.errors import Unavailable
from afterclick.io.background import BackgroundLoop, HeartbeatMonitor
from tests.waiting import wait_until


def test_work_repeats_until_it_is_stopped() -> None:
    calls: list[int] = []
    loop = BackgroundLoop("count", lambda: calls.append(1), 0.001)
    loop.start()
    wait_until(lambda: len(calls) > 2)
    loop.stop()
    seen = len(calls)
    assert not any(thread.name == "count" for thread in threading.enumerate())
    assert len(calls) == seen


def test_without_an_interval_only_wake_repeats_it() -> None:
    calls: list[int] = []
    loop = BackgroundLoop("count", lambda: calls.append(1))
    loop.start()
    wait_until(lambda: len(calls) == 1)
    loop.wake()
    wait_until(lambda: len(calls) == 2)
    loop.stop()
    assert len(calls) == 2


def test_the_work_chooses_its_next_call() -> None:
    calls: list[int] = []

    def work() -> float:
        calls.append(1)
        return 0.001

    loop = BackgroundLoop("count", work)
    loop.start()
    wait_until(lambda: len(calls) > 2)
    loop.stop()


def test_an_error_does_not_end_the_loop() -> None:
    calls: list[int] = []

    def work() -> None:
        calls.append(1)
        raise Unavailable("Redis") if len(calls) == 1 else RuntimeError("a mistake")

    loop = BackgroundLoop("failing", work, 0.001)
    loop.start()
    for n in range(1, 4):
        wait_until(lambda n=n: len(calls) >= n)  # type: ignore[misc]
        loop.wake()
    loop.stop()


def test_pending_work_is_written_after_the_stop() -> None:
    calls: list[bool] = []
    loop = BackgroundLoop("write", lambda: calls.append(loop.stopping), final_run=True)
    loop.start()
    wait_until(lambda: len(calls) == 1)
    loop.stop()
    assert calls == [False, True]


def test_a_loop_that_never_started_can_be_stopped() -> None:
    BackgroundLoop("idle", lambda: None).stop()


def test_a_frozen_loop_is_logged_once_and_when_it_goes_on() -> None:
    hold, calls = threading.Event(), list[int]()

    def work() -> None:
        calls.append(1)
        if len(calls) == 3:
            hold.wait(60)

    frozen = BackgroundLoop("frozen", work, 0.001, limit_s=0.1)
    idle = BackgroundLoop("idle", lambda: None, limit_s=0.1)  # the control: it waits for `wake`
    never = BackgroundLoop("never", work, 0.001, limit_s=0.1)
    monitor = HeartbeatMonitor([loop.heartbeat for loop in (frozen, idle, never)])
    for loop in (frozen, idle):
        loop.start()
    wait_until(lambda: [beat.name for beat in monitor.frozen()] == ["frozen"])
    with capture_logs() as lines:
        monitor.check()
        monitor.check()
        hold.set()
        wait_until(lambda: not monitor.frozen())
        monitor.check()
    assert [(line["event"], line["loop"]) for line in lines] == [
        ("loop frozen", "frozen"),
        ("loop goes on", "frozen"),
    ]
    frozen.stop()
    idle.stop()
    assert {beat.age_s for beat in monitor.heartbeats} == {0}
