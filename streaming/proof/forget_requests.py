"""Requests to forget users: made by the command line, fulfilled by it or by the stream job.

reads, writes  topic  forgotten
reads          redis  {u:<user>}:history, :forgotten, :erased, {p:<topic>:<partition>}:position
writes         redis, parquet  what streaming.proof.forget writes

A request is a record on the topic. It is open until its report is in Redis.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import redis
import structlog

from afterclick.errors import AfterclickError, StateConflict, StateLocked, Unavailable
from afterclick.io.background import BackgroundLoop
from afterclick.io.forgotten import BATCH, ForgottenLog, publish_forgotten
from afterclick.io.kafka_log import KafkaLog, OffsetRanges
from afterclick.redis_keys import Keys
from afterclick.settings import Settings
from afterclick.state import Forgetting
from streaming import positions
from streaming.connection import load_functions, redis_client
from streaming.exposures import exposed_offsets
from streaming.lease import hold_lease
from streaming.proof.forget import Forgetter, last_forgetting
from streaming.weights import weights_conflict

log = structlog.get_logger()

_WAIT_S = 120.0
_POLL_S = 0.2
_INTERVAL_S = 2.0
_RETRY_S = 60.0
_LIMIT_S = 900.0
"""One erasure that takes longer counts as frozen."""


def forget(settings: Settings, user_id: str) -> Forgetting:
    """Forget a user's events up to now: at once, or by the stream job that holds the lease.

    Raises Unavailable if Kafka or Redis does not respond, or the job has not finished in time: it
    goes on. Raises StateConflict if the state was computed with other weights.
    """
    with closing(redis_client(settings)) as client, positions.redis_errors():
        load_functions(client)
        until_ms = request_forgetting(settings, client, user_id)
        keys, lease_s = settings.redis.keys, settings.stream.lease_s
        try:
            with hold_lease(client, keys, lease_s):
                _require_weights(settings, client)
                return Forgetter(settings, client, user_id).complete(until_ms)
        except StateLocked:
            return _wait_for_job(client, keys, user_id, until_ms)


def _require_weights(settings: Settings, client: redis.Redis) -> None:
    """Raise StateConflict if the state has other weights: its events could not be retracted."""
    if conflict := weights_conflict(client, settings.redis.keys, settings.stream.signals):
        raise StateConflict(conflict)


def request_forgetting(settings: Settings, client: redis.Redis, user_id: str) -> int:
    """Publish the request; returns the event time ms up to which the user is forgotten.

    That is now, or the user's newest event or previous forgetting if that is later. Raises
    Unavailable.
    """
    keys = settings.redis.keys
    with positions.redis_errors():
        newest: Any = client.zrevrange(keys.history(user_id), 0, 0, withscores=True)
        previous: Any = client.get(keys.forgotten(user_id))
    now_ms = math.ceil(time.time() * 1000)
    until_ms = max(now_ms, int(previous or 0), *(int(score) for _, score in newest))
    publish_forgotten(settings.kafka, user_id, until_ms)
    return until_ms


def _wait_for_job(client: redis.Redis, keys: Keys, user_id: str, until_ms: int) -> Forgetting:
    deadline = time.monotonic() + _WAIT_S
    while True:
        report = last_forgetting(client, keys, user_id)
        if report and report.finished_ms is not None and report.until_ms >= until_ms:
            return report
        if time.monotonic() > deadline:
            raise Unavailable(
                "the request is stored, but the stream job has not finished it yet; "
                "it goes on: see its log"
            )
        time.sleep(_POLL_S)


class ForgettingLoop:
    """Fulfils the requests on the topic while a stream job runs, also those it finds at its start.

    A request is open until its report is in Redis; so a killed job leaves no user half forgotten.
    """

    def __init__(
        self, settings: Settings, archive_batch: Callable[[], str | None] = lambda: None
    ) -> None:
        """`archive_batch` identifies the batch that the archive query is writing, if it is."""
        self._settings, self._archive_batch = settings, archive_batch
        self._client = redis_client(settings)
        self._requests = ForgottenLog(settings.kafka)
        self._open: dict[str, int] = {}
        self._retry_at: dict[str, float] = {}
        self._loop = BackgroundLoop("forgetting", self.work, _INTERVAL_S, limit_s=_LIMIT_S)
        self.heartbeat = self._loop.heartbeat

    def start(self) -> None:
        self._loop.start()

    def close(self) -> None:
        """Stop after the step in progress, and close the connections."""
        self._loop.stop()
        self._requests.close()
        self._client.close()

    def work(self) -> None:
        """Fulfil the requests that are open now. Raises Unavailable."""
        while len(self._open) < BATCH and (requests := self._requests.read()):
            self._open |= self._unfinished(requests)
        for user_id, until_ms in list(self._open.items()):
            if self._loop.stopping:
                return
            self.heartbeat.beat()
            if time.monotonic() >= self._retry_at.get(user_id, 0.0):
                self._fulfil(user_id, until_ms)

    def _unfinished(self, requests: dict[str, int]) -> dict[str, int]:
        keys, unfinished = self._settings.redis.keys, {}
        for user_id, until_ms in requests.items():
            report = last_forgetting(self._client, keys, user_id)
            if not report or report.finished_ms is None or report.until_ms < until_ms:
                unfinished[user_id] = until_ms
        return unfinished

    def _fulfil(self, user_id: str, until_ms: int) -> None:
        """Forget one user; one that cannot be forgotten now does not hold up the others."""
        forgetter = Forgetter(self._settings, self._client, user_id)
        try:
            with positions.redis_errors():
                report = forgetter.complete(until_ms, self._settle)
        except Exception as error:  # it must not hold up other users
            unexpected = not isinstance(error, AfterclickError)
            log.warning(
                "user not forgotten yet; trying again", reason=str(error), exc_info=unexpected
            )
            self._retry_at[user_id] = time.monotonic() + _RETRY_S
            return
        self._retry_at.pop(user_id, None)
        del self._open[user_id]
        log.info("user forgotten", events=report.events, remaining=report.remaining)

    def _settle(self) -> None:
        """Wait until no query works on records that it read before. Raises Unavailable."""
        with KafkaLog(self._settings.kafka) as kafka_log:
            ranges = kafka_log.ranges(*self._settings.kafka.topics.logged)
        deadline = time.monotonic() + _WAIT_S
        batch = self._archive_batch()
        while (batch and self._archive_batch() == batch) or self._lags(ranges):
            if self._loop.stopping or time.monotonic() > deadline:
                raise Unavailable("the stream lags; the user's events are already rejected")
            time.sleep(_POLL_S)

    def _lags(self, ranges: OffsetRanges) -> bool:
        """Whether any of these records is not applied, or not counted."""
        kafka, keys = self._settings.kafka, self._settings.redis.keys
        events = {n: held for n, held in ranges.items() if n.topic in kafka.topics.interactions}
        applied = positions.applied_offsets(self._client, keys, events)
        if positions.has_unapplied(kafka, events, applied):
            return True
        return positions.has_unapplied(kafka, ranges, exposed_offsets(self._client, keys, ranges))
