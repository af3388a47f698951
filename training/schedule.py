"""Retrain by the clock and by the log: the pipeline in a child process, one at a time, at low priority.

reads   topic  reviews, feedback (their end offsets)
        json   <home>/trained.json: how far the last training read that went through
writes  json   <home>/retrain.json: afterclick.io.home.TrainingStatus
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import structlog
from apscheduler.schedulers.background import BackgroundScheduler
from confluent_kafka import Consumer, KafkaException, TopicPartition

from afterclick.errors import AfterclickError, Unavailable
from afterclick.io.home import TrainingStatus
from afterclick.settings import KafkaSettings, Settings
from training import failures
from training.backoff import Backoff
from training.gate import Refused
from training.lock import exclusive, holder
from training.offsets import watermarks
from training.pipeline import Pipeline
from training.trained import Trained

log = structlog.get_logger()
_LOOK_S = 10.0
_RECORD_S = 300.0
"""How long MLflow may take to note a failure."""


@dataclass(frozen=True)
class Outcome:
    """How a training ended."""

    completed: bool
    """Published, or refused by the gate; else it failed."""
    how: str
    """A version, or the reason."""


class Retrain:
    """Looks every few seconds whether a training is due, and runs it."""

    def __init__(
        self,
        settings: Settings,
        every_s: float,
        events: int,
        clock: Callable[[], float] = time.time,
        backoff: Backoff | None = None,
    ) -> None:
        self.settings, self.every_s, self.events = settings, every_s, events
        self._clock, self._backoff = clock, backoff or Backoff()
        self._last_start = clock()

    def run(self, stop: threading.Event) -> None:
        """Retrain until `stop` is set. A running training is then ended; it leaves the champion as it is."""
        scheduler = BackgroundScheduler(timezone=UTC)
        scheduler.add_job(
            lambda: self.look(stop),
            "interval",
            seconds=_LOOK_S,
            max_instances=1,
            coalesce=True,
            next_run_time=datetime.now(UTC),
        )
        self._say("waiting")
        scheduler.start()
        try:
            stop.wait()
        finally:
            scheduler.shutdown(wait=True)
            self._say("stopped")

    def look(self, stop: threading.Event) -> bool:
        """Train once if it is due and nobody else trains; whether it was."""
        if holder(self.settings.home) is not None:
            return False
        self._say("waiting")
        try:
            reason = self.due()
        except Unavailable as error:
            log.warning("cannot look for new events", error=str(error))
            return False
        if reason is None or stop.is_set():
            return False
        log.info("retraining", reason=reason)
        began = self._clock()
        ended = self._train(reason, stop)
        if ended.completed:
            self._last_start = began
            self._backoff.reset()
        elif not stop.is_set():
            wait = self._backoff.failed(self._clock())
            log.warning("training failed", reason=ended.how, next_try_in_s=wait)
        self._say("waiting", ended.how)
        return True

    def due(self) -> str | None:
        """Why a training is due now, or None; for a while after one that failed nothing is due."""
        now = self._clock()
        if not self._backoff.over(now):
            return None
        if now - self._last_start >= self.every_s:
            return f"the last one that went through began {now - self._last_start:.0f} s ago"
        fresh = new_events(self.settings)
        return f"{fresh:,} new events" if fresh >= self.events else None

    def _train(self, reason: str, stop: threading.Event) -> Outcome:
        """Run the pipeline in a child, whose memory is given back whole; returns how it ended.

        One that hangs is killed, and its lock ends with it. One that could not say how it ended is recorded
        as failed.
        """
        began_ms = failures.now_ms()
        context = multiprocessing.get_context("spawn")
        answers: multiprocessing.SimpleQueue[Outcome] = context.SimpleQueue()
        child = context.Process(
            target=_once, args=(self.settings, reason, answers), name="training"
        )
        child.start()
        late = time.monotonic() + self.settings.training.longest_hours * 3600
        while child.is_alive() and not stop.is_set() and time.monotonic() < late:
            child.join(0.2)
        hung = child.is_alive()
        if hung:
            _end(child)
        elif not answers.empty():
            return answers.get()
        if stop.is_set():
            return Outcome(False, "ended with the process")
        longest = f"took longer than {self.settings.training.longest_hours:g} h and was ended"
        ended = Outcome(False, longest if hung else f"died with exit code {child.exitcode}")
        self._record(ended.how, began_ms)
        return ended

    def _record(self, reason: str, began_ms: int) -> None:
        """Tell MLflow, from a child too, where it was when it last said something."""
        known = TrainingStatus.read(self.settings.home)
        step = known.progress if known is not None and known.state == "training" else "start"
        child = multiprocessing.get_context("spawn").Process(
            target=failures.record, args=(self.settings, step, reason, began_ms), name="record"
        )
        child.start()
        child.join(_RECORD_S)
        _end(child)

    def _say(self, state: Literal["waiting", "stopped"], last: str | None = None) -> None:
        """Say so where it is news, unless somebody trains: what they say stays."""
        home = self.settings.home
        if holder(home) is not None:
            return
        known = TrainingStatus.read(home)
        last = last or (known.last if known else None)
        if known is None or (known.state, known.last) != (state, last):
            status(state, last=last).write(home)


def _end(child: multiprocessing.process.BaseProcess) -> None:
    child.terminate()
    child.join(10)
    child.kill()
    child.join()


def status(
    state: Literal["waiting", "training", "stopped"], progress: str = "", last: str | None = None
) -> TrainingStatus:
    """What training does from this moment on."""
    since = datetime.now(UTC).isoformat(timespec="seconds")
    return TrainingStatus(state=state, since=since, progress=progress, last=last)


@contextmanager
def told(home: Path) -> Iterator[Callable[[str], None]]:
    """Say in retrain.json that a training runs, and what it does; at its end how it ended.

    A scheduler that waits beside it goes on waiting.
    """
    before, said = TrainingStatus.read(home), ""

    def tell(progress: str) -> None:
        nonlocal said
        said = progress
        status("training", progress).write(home)

    tell("begins")
    try:
        yield tell
    except BaseException as error:
        said = f"{type(error).__name__}: {error}"
        raise
    finally:
        state: Literal["waiting", "stopped"] = (
            "waiting" if before and before.state == "waiting" else "stopped"
        )
        status(state, last=said).write(home)


def new_events(settings: Settings) -> int:
    """Events on the topics that the last training that went through has not read. Raises Unavailable."""
    ends = end_offsets(settings.kafka)
    trained = Trained.read(settings.home)
    seen = trained.positions if trained is not None else {}
    return sum(max(0, end - seen.get(place, -1) - 1) for place, end in ends.items())


def end_offsets(kafka: KafkaSettings, timeout_s: float = 10.0) -> dict[str, int]:
    """topic/partition → the offset that the next event will have. Raises Unavailable."""
    consumer = Consumer({"bootstrap.servers": kafka.bootstrap, "group.id": "afterclick-training"})
    ends: dict[str, int] = {}
    try:
        for topic in kafka.topics.interactions:
            for partition in (
                consumer.list_topics(topic, timeout=timeout_s).topics[topic].partitions
            ):
                place = TopicPartition(topic, partition)
                ends[f"{topic}/{partition}"] = watermarks(consumer, place, timeout_s)[1]
    except KafkaException as error:
        raise Unavailable(f"Kafka at {kafka.bootstrap} does not answer: {error.args[0]}") from None
    finally:
        consumer.close()
    return ends


def _once(settings: Settings, reason: str, answers: multiprocessing.SimpleQueue[Outcome]) -> None:
    """The child: all steps once, then how it went."""
    os.nice(10)

    def say(progress: str) -> None:
        status("training", progress).write(settings.home)

    try:
        with exclusive(settings.home, "the retraining process"):
            say(reason)
            answers.put(Outcome(True, Pipeline(settings, say).everything()[2].version))
    except AfterclickError as error:
        answers.put(Outcome(isinstance(error, Refused), f"{type(error).__name__}: {error}"))
    except Exception as error:
        log.exception("training failed")
        answers.put(Outcome(False, f"{type(error).__name__}: {error}"))
