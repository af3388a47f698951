"""Resent events are counted once, malformed records do not stop the stream."""

from __future__ import annotations

from afterclick.settings import Settings
from infra.benchmarks.faults.fault_case import MALFORMED, events, produce
from streaming.proof.dead_letters import read_dead_letters
from streaming.proof.reconcile import reconcile
from tests.serving.mini_stream import MiniStream
from tests.serving.running import Running


def test_a_click_sent_three_times_is_counted_once_and_without_its_id_three_times(
    settings: Settings,
) -> None:
    with Running(settings) as api, MiniStream(settings):
        for n in range(20):
            for _ in range(3):
                api.feedback("kept", f"item-{n}", event_id=f"click-{n}")
        report = reconcile(settings, wait_s=30)
        assert (report.differences, report.counted_in_state, report.duplicates) == (0, 20, 40)
        for n in range(20):
            for _ in range(3):
                api.feedback("control", f"item-{n}")
        assert reconcile(settings, wait_s=30).counted_in_state == 20 + 60


def test_ten_kinds_of_malformed_records_become_dead_letters_and_the_lag_returns_to_0(
    settings: Settings,
) -> None:
    rows = list(events(300, 0))
    for n, value in enumerate(MALFORMED):
        rows.insert(n * 20, ("poison", value))
    with MiniStream(settings):
        produce(settings, rows)
        report = reconcile(settings, wait_s=30)
    assert (report.differences, report.behind, report.poison) == (0, 0, len(MALFORMED))
    assert {letter.value for letter in read_dead_letters(settings.kafka)} == set(MALFORMED)
    assert len(set(MALFORMED)) == 10
