"""Failure detection for Kafka: known to be down within fractions of a second, not after a timeout.

An adaptive failure detector: an acknowledgement that takes ten times its usual latency triggers a
probe. A Kafka that is slow but answers the probe is waited for.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from confluent_kafka import KafkaException

from serving.state.history import PROBE_INTERVAL_S, CircuitBreaker

_LATE = 10
"""Times the usual latency."""
_SMOOTHING = 0.05


@dataclass(frozen=True)
class AckTimeouts:
    """Seconds around acknowledgements by Kafka."""

    ack_s: float = 2.0
    """How long a request waits before it answers 503."""
    doubt_s: float = 0.1
    """Probe Kafka if an ack takes longer than max(this, 10 x its usual latency)."""
    probe_s: float = 0.15
    """How long Kafka may take to answer a probe: max(this, 10 x the usual latency)."""
    usual_s: float = 0.05
    """Assumed latency before the first ack, which is slow."""


class KafkaHealth:
    """`check` belongs to the thread that polls the producer, the rest to the event loop."""

    def __init__(self, probe: Callable[[float], None], timeouts: AckTimeouts) -> None:
        """`probe(timeout_s)` raises KafkaException if Kafka does not answer in time."""
        self._probe, self._timeouts = probe, timeouts
        self._breaker = CircuitBreaker("Kafka")
        self._usual_s = timeouts.usual_s
        self._disconnected = False
        self._probed_at = 0.0

    @property
    def down(self) -> bool:
        """Whether Kafka is known to be down."""
        return self._breaker.open

    def acknowledged(self, latency_s: float) -> None:
        """Kafka acknowledged a record."""
        self._breaker.on_success()
        self._usual_s += _SMOOTHING * (latency_s - self._usual_s)

    def failed(self, error: Exception) -> None:
        """A record was not acknowledged."""
        self._breaker.on_failure(error)

    def disconnected(self) -> None:
        """All connections were lost; idle ones may have been closed by the broker."""
        self._disconnected = True

    def check(self, oldest_at: float | None) -> KafkaException | None:
        """Probe if in doubt; the error if Kafka is down.

        `oldest_at` is when the oldest record without acknowledgement was sent (time.monotonic).
        """
        now = time.monotonic()
        late_s = self._late_s(self._timeouts.doubt_s)
        overdue = oldest_at is not None and now - oldest_at > late_s
        interval_s = PROBE_INTERVAL_S if self.down else late_s
        due = (self.down or overdue) and now - self._probed_at > interval_s
        if not (self._disconnected or due):
            return None
        self._disconnected = False
        try:
            self._probe(self._late_s(self._timeouts.probe_s))
        except KafkaException as error:
            self._breaker.trip(error)
            return error
        finally:
            self._probed_at = time.monotonic()
        if self.down:
            self._breaker.on_success()
        return None

    def _late_s(self, least_s: float) -> float:
        return min(max(least_s, _LATE * self._usual_s), self._timeouts.ack_s)
