"""The producer bench measures the real path."""

from __future__ import annotations

from afterclick.events import decode_interaction
from afterclick.settings import Settings
from ingest.bench import producer_events_per_s
from tests.ingest.test_producer import read_topic


def test_the_bench_brings_as_many_valid_events_as_asked(settings: Settings) -> None:
    assert (
        producer_events_per_s(settings, 30_000) > 5_000
    )  # a floor for any machine; the figure is in the bench
    values = [v for _, _, v in read_topic(settings.kafka.bootstrap, settings.kafka.topics.reviews)]
    assert len(values) == 30_000
    assert len({decode_interaction(value).id for value in values[:2000]}) == 2000
    assert not (settings.home / "replay").exists()
