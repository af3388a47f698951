"""Topics: each named once, with what keeps it or cleans it."""

from __future__ import annotations

from afterclick.settings import KafkaSettings
from afterclick.topics import DAY_MS, MAX_RECORD_BYTES, Topics, dlq


def test_interactions_and_dead_letters_are_kept_as_long_as_the_settings_say() -> None:
    topics = KafkaSettings(partitions=6).topics
    by_name = {topic.name: topic for topic in topics.all()}
    for name in topics.interactions:
        assert by_name[name].partitions == 6
        assert by_name[name].config == {
            "cleanup.policy": "delete",
            "retention.ms": str(90 * DAY_MS),
            "message.timestamp.type": "LogAppendTime",
            "max.message.bytes": str(MAX_RECORD_BYTES),
        }
        assert by_name[dlq(name)].partitions == 1
        assert by_name[dlq(name)].config["retention.ms"] == str(30 * DAY_MS)
    unlimited = KafkaSettings(retention_days=0, dlq_days=0).topics
    assert {topic.retention_ms for topic in unlimited.all()[:4]} == {-1}


def test_the_catalogue_and_the_models_are_compacted() -> None:
    by_name = {topic.name: topic for topic in Topics().all()}
    compacted = {"cleanup.policy": "compact", "max.message.bytes": str(MAX_RECORD_BYTES)}
    assert by_name["items"].config == by_name["models"].config == compacted
    assert by_name["state-changes"].config["retention.ms"] == str(DAY_MS)


def test_a_prefix_separates_installations() -> None:
    one = {topic.name for topic in Topics("a-").all()}
    two = {topic.name for topic in Topics("b-").all()}
    assert not one & two
    assert len(one) == len(Topics("a-").all())
    assert all(name.startswith("a-") for name in one)
