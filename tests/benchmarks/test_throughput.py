"""The producer benchmark sends valid, distinct events by the path of a replay."""

from __future__ import annotations

from afterclick.events import decode_interaction
from afterclick.settings import Settings
from infra.benchmarks.throughput import producer_events_per_s
from tests.ingest.test_producer import read_topic


def test_the_producer_benchmark_delivers_the_requested_number_of_events(settings: Settings) -> None:
    assert producer_events_per_s(settings, 30_000) > 0
    values = [v for _, _, v in read_topic(settings.kafka.bootstrap, settings.kafka.topics.reviews)]
    assert len(values) == 30_000
    assert len({decode_interaction(value).id for value in values[:2000]}) == 2000
    assert not (settings.home / "replay").exists()
