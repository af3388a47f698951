"""Dead letters: how many per topic, and the newest.

reads   topic  <topic>.dlq
"""

from __future__ import annotations

from typing import Any

from confluent_kafka import Message

from afterclick.io.kafka_log import KafkaLog
from afterclick.settings import KafkaSettings
from afterclick.topics import dlq

TIMEOUT_S = 5.0
NEWEST = 10
PREVIEW = 200
"""Characters shown of a record."""


class DeadLetterReader:
    """Reads the dead-letter topics. Every method blocks, and raises Unavailable."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._topics = settings.topics.interactions
        self._log = KafkaLog(settings, TIMEOUT_S)
        self.close = self._log.close

    def counts(self) -> dict[str, int]:
        """Dead letters per topic of interactions."""
        return {
            topic: sum(len(offsets) for offsets in self._log.ranges(dlq(topic)).values())
            for topic in self._topics
        }

    def newest(self, n: int = NEWEST) -> list[dict[str, Any]]:
        """Up to `n` per topic, newest first."""
        letters = [letter for topic in self._topics for letter in self._log.last(dlq(topic), n)]
        letters.sort(key=lambda letter: -letter.timestamp()[1])
        return [_row(letter) for letter in letters]


def _row(letter: Message) -> dict[str, Any]:
    return {
        "topic": letter.topic(),
        "offset": letter.offset(),
        "headers": {str(header[0]): _text(header[1]) for header in letter.headers() or ()},
        "value": _text(letter.value())[:PREVIEW],
    }


def _text(raw: bytes | str | None) -> str:
    return raw.decode(errors="replace") if isinstance(raw, bytes) else raw or ""
