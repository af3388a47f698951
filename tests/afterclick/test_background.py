"""Work that repeats in a thread."""

from __future__ import annotations

import threading

from afterclick.errors import Unavailable
from afterclick.io.background import BackgroundLoop
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
