"""The benchmark of the event loop, with a small shop."""

from __future__ import annotations

import asyncio
import time

import pytest

from afterclick.settings import Settings
from infra.benchmarks.event_loop import EventLoopBenchmark, LoopProbe


@pytest.mark.timeout(600)
def test_every_kind_of_request_is_answered() -> None:
    figures = EventLoopBenchmark(items=2_000, users=20, requests=2).run(Settings())
    assert figures["errors"] == 0
    used_ms = [kind["loop_ms_p50"] for kind in figures["kinds"]]
    assert len(used_ms) > 20
    assert min(used_ms) > 0


def test_the_probe_reports_the_longest_callback_in_cpu_time() -> None:
    async def occupy(probe: LoopProbe) -> None:
        watch = asyncio.create_task(probe.run())
        await asyncio.sleep(0.01)
        end_s = time.thread_time() + 0.05
        while time.thread_time() < end_s:
            pass
        await asyncio.sleep(0.01)
        watch.cancel()

    probe = LoopProbe()
    asyncio.run(occupy(probe))
    assert probe.longest_s >= 0.05
