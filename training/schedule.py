"""Retrain on a schedule and after new events: the pipeline in a child process at low priority.

reads   topic  reviews, feedback: their end offsets
        json   <home>/last_training.json: the offsets of the last training
writes  json   <home>/retrain.json: afterclick.io.home.TrainingStatus
        redis  heartbeats

APScheduler runs two jobs. `train` has the interval of the clock; `count` runs every few seconds
and moves the next run of `train` to now once there are enough new events. After a failure the next
run of `train` is moved to the end of the back-off; `count` is paused until a training completes.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from multiprocessing.process import BaseProcess

import structlog
from apscheduler.schedulers.background import BackgroundScheduler

from afterclick.errors import AfterclickError, Unavailable
from afterclick.io.background import Heartbeat
from afterclick.io.heartbeats import HeartbeatWriter
from afterclick.io.home import TrainingStatus
from afterclick.io.kafka_log import KafkaLog
from afterclick.settings import Settings
from training.gate import Refused
from training.mlflow_registry import now_ms, record_failure
from training.pipeline import Pipeline
from training.workspace import LastTraining, State, lock_holder, training_lock, write_status

log = structlog.get_logger()
COUNT_INTERVAL_S = 10.0
FIRST_RETRY_S, MAX_RETRY_S = 60.0, 3600.0
REFUSALS = 3
"""Challengers refused in a row from which on each is a warning: the champion grows old."""
_RECORD_TIMEOUT_S = 300.0
"""Time limit for recording a failure in MLflow."""


@dataclass(frozen=True)
class Outcome:
    """How a training ended."""

    completed: bool
    """True if the model was published or refused by the gate, False after a failure."""
    message: str
    """The version, or the reason."""
    refused: bool = False
    """The gate kept the champion."""


Train = Callable[[str, threading.Event], Outcome]
"""Runs one training with a reason, until the event is set."""


class Retrain:
    """Retrains every `every_s` seconds and after `events` new events, one training at a time."""

    def __init__(
        self,
        settings: Settings,
        every_s: float,
        events: int,
        train: Train | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`train`: by default the pipeline in a child process. `now`: the clock."""
        self.settings, self._every_s, self._events = settings, every_s, events
        self.heartbeat = Heartbeat("schedule")
        self._train = train or ChildTraining(settings, self._beat)
        self._now = now
        self._stop = threading.Event()
        self._failures = self._refusals = 0
        self._training = False
        self.scheduler = BackgroundScheduler(
            timezone=UTC,
            job_defaults={"max_instances": 1, "coalesce": True, "misfire_grace_time": None},
        )
        self.scheduler.add_job(
            self.train,
            "interval",
            seconds=every_s,
            id="train",
            args=[""],
            next_run_time=self._in(every_s),
        )
        self.scheduler.add_job(
            self.count, "interval", seconds=COUNT_INTERVAL_S, id="count", next_run_time=self._in(0)
        )

        self.scheduler.add_job(self.beat, "interval", seconds=COUNT_INTERVAL_S, id="beat")

    def run(self, stop: threading.Event) -> None:
        """Retrain until `stop` is set; a running training is then killed and the champion stays."""
        self._write_status("waiting")
        self.beat()
        self.scheduler.start()
        try:
            with closing(HeartbeatWriter(self.settings, "retrain", [self.heartbeat])) as writer:
                writer.start()
                stop.wait()
        finally:
            self._stop.set()
            self.scheduler.shutdown(wait=True)
            self._write_status("stopped")

    def beat(self) -> None:
        """The job `beat`: the schedule runs; a training beats itself."""
        if not self._training:
            self._beat()

    def _beat(self) -> None:
        """For the supervisor by the file, for the API and health checks by Redis."""
        TrainingStatus.touch(self.settings.home)
        self.heartbeat.beat(COUNT_INTERVAL_S)

    def count(self) -> None:
        """The job `count`: run `train` now if there are enough new events."""
        if lock_holder(self.settings.home) is not None:
            return
        self._write_status("waiting")
        try:
            events = new_events(self.settings)
        except Unavailable as error:
            log.warning("cannot count new events", error=str(error))
            return
        if events >= self._events:
            reason = f"{events:,} new events"
            self.scheduler.modify_job("train", args=[reason], next_run_time=self._in(0))

    def train(self, reason: str) -> None:
        """The job `train`: run one training, then set the time of the next."""
        if self._stop.is_set():
            return
        if lock_holder(self.settings.home) is not None:  # another process trains: try again soon
            self._next(COUNT_INTERVAL_S, reason)
            return
        self.scheduler.pause_job("count")
        began = self._now()
        reason = reason or f"{self._every_s / 60:g} minutes have passed"
        log.info("retraining", reason=reason)
        self._training = True
        try:
            outcome = self._train(reason, self._stop)
        finally:
            self._training = False
        if outcome.completed:
            self._failures = 0
            self._count_refusal(outcome)
            self._next(self._every_s - (self._now() - began).total_seconds())
            self.scheduler.resume_job("count")
        elif not self._stop.is_set():
            delay_s = retry_delay_s(self._failures)
            self._failures += 1
            log.warning("training failed", reason=outcome.message, next_try_in_s=delay_s)
            self._next(delay_s, f"the last training failed: {outcome.message}")
        self._write_status("waiting", outcome.message)

    def _count_refusal(self, outcome: Outcome) -> None:
        self._refusals = self._refusals + 1 if outcome.refused else 0
        if self._refusals >= REFUSALS:
            log.warning(
                "challengers refused in a row; the champion stays",
                count=self._refusals,
                reason=outcome.message,
            )

    def _next(self, delay_s: float, reason: str = "") -> None:
        self.scheduler.modify_job("train", args=[reason], next_run_time=self._in(max(0.0, delay_s)))

    def _in(self, delay_s: float) -> datetime:
        return self._now() + timedelta(seconds=delay_s)

    def _write_status(self, state: State, last: str | None = None) -> None:
        """Write the status if it changed and no other process is training."""
        home = self.settings.home
        if lock_holder(home) is not None:
            return
        known = TrainingStatus.read(home)
        last = last or (known.last if known else None)
        if known is None or (known.state, known.last) != (state, last):
            write_status(home, state, last=last)


def retry_delay_s(failures: int) -> float:
    """Seconds until the next try after `failures` earlier ones in a row: doubles up to a bound."""
    return min(FIRST_RETRY_S * 2.0 ** min(failures, 30), MAX_RETRY_S)


def new_events(settings: Settings) -> int:
    """Events that the last training has not read. Raises Unavailable."""
    last = LastTraining.read(settings.home)
    positions = last.positions if last is not None else {}
    with KafkaLog(settings.kafka) as kafka:
        ranges = kafka.ranges(*settings.kafka.topics.interactions)
    return sum(
        max(0, offsets.end - positions.get(f"{topic}/{partition}", -1) - 1)
        for (topic, partition), offsets in ranges.items()
    )


class ChildTraining:
    """Runs the pipeline in a child process, so that its memory is freed at the end.

    A training that exceeds `max_hours` is killed. A child that dies without an outcome is recorded
    as a failed run.
    """

    def __init__(self, settings: Settings, beat: Callable[[], None] = lambda: None) -> None:
        """`beat` is called several times a second while the child runs."""
        self._settings, self._beat = settings, beat
        self._context = multiprocessing.get_context("spawn")

    def __call__(self, reason: str, stop: threading.Event) -> Outcome:
        """Run one training; kills it when `stop` is set."""
        began_ms = now_ms()
        outcomes: multiprocessing.SimpleQueue[Outcome] = self._context.SimpleQueue()
        child = self._context.Process(
            target=_run_pipeline, args=(self._settings, reason, outcomes), name="training"
        )
        child.start()
        hours = self._settings.training.max_hours
        deadline = time.monotonic() + hours * 3600
        while child.is_alive() and not stop.is_set() and time.monotonic() < deadline:
            child.join(0.2)
            self._beat()
        hung = child.is_alive()
        if hung:
            _kill(child)
        elif not outcomes.empty():
            return outcomes.get()
        if stop.is_set():
            return Outcome(False, "stopped with the scheduler")
        message = (
            f"took longer than {hours:g} h and was killed"
            if hung
            else f"died with exit code {child.exitcode}"
        )
        self._record(message, began_ms)
        return Outcome(False, message)

    def _record(self, reason: str, began_ms: int) -> None:
        """Record the failure in MLflow, in a child too; the step is the last reported progress."""
        status = TrainingStatus.read(self._settings.home)
        step = status.progress if status is not None and status.state == "training" else "start"
        child = self._context.Process(
            target=record_failure, args=(self._settings, step, reason, began_ms), name="record"
        )
        child.start()
        deadline = time.monotonic() + _RECORD_TIMEOUT_S
        while child.is_alive() and time.monotonic() < deadline:
            child.join(1.0)
            self._beat()
        _kill(child)


def _kill(child: BaseProcess) -> None:
    child.terminate()
    child.join(10)
    child.kill()
    child.join()


def _run_pipeline(
    settings: Settings, reason: str, outcomes: multiprocessing.SimpleQueue[Outcome]
) -> None:
    """The child process: every step once."""
    os.nice(10)

    def report(progress: str) -> None:
        write_status(settings.home, "training", progress)

    try:
        with training_lock(settings.home, "the retraining process"):
            report(reason)
            version = Pipeline(settings, report).run_all()[2].version
            outcomes.put(Outcome(True, version))
    except AfterclickError as error:
        refused = isinstance(error, Refused)
        outcomes.put(Outcome(refused, f"{type(error).__name__}: {error}", refused))
    except Exception as error:
        log.exception("training failed")
        outcomes.put(Outcome(False, f"{type(error).__name__}: {error}"))
