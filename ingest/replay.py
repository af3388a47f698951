"""Replay a dataset as a stream of events in event-time order at a given speed.

reads   file   a sorted dataset (ingest.sorting), <home>/replay/control.json
        topic  items, the ids
writes  topic  reviews (and feedback for rows with another action)
        topic  items, for those without metadata
        file   <home>/replay/progress.json, clock.json, status.json

An interrupted replay resumes at the first undelivered row. Rows sent twice keep their event ids, so
they do not change the state.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import structlog

from afterclick.arrays import Int64Array
from afterclick.errors import AfterclickError, BadInput
from afterclick.events import DATASET_SOURCE, Item
from afterclick.io.home import (
    DONE,
    FAILED,
    PAUSED,
    RUNNING,
    STOPPED,
    ReplayControl,
    ReplayHold,
    ReplayStatus,
)
from afterclick.io.kafka_log import read_compacted_keys
from afterclick.settings import Settings
from ingest.items import item_messages
from ingest.producer import CHUNK, Encoder, EventProducer
from ingest.replay_control import (
    Pace,
    ReplayFiles,
    parse_pace,
    spread_days,
)
from ingest.sorting import SortedDataset

log = structlog.get_logger()
TICK_S = 0.2
IDLE_S = 0.01


@dataclass(frozen=True)
class ReplayOptions:
    """Rows and speed of a replay."""

    pace: Pace = field(default_factory=Pace)
    rebased: bool = False
    """Shift event times so that the dataset ends at the time of its first replay."""
    from_ms: int | None = None
    """Skip events before this (original) event time."""
    until_ms: int | None = None
    """Skip events from this (original) event time on."""
    limit: int | None = None
    """Send at most this many events."""
    restart: bool = False
    """Ignore earlier progress and start at the first row."""


@dataclass(frozen=True)
class Summary:
    """Outcome of a replay. `remaining` rows of its selection are still unsent."""

    state: str
    dataset: str
    sent: int
    remaining: int
    started_at_row: int
    seconds: float
    events_per_s: float
    first_event_ms: int | None
    last_event_ms: int | None
    shift_ms: int
    rows: int
    bad_lines: int


def replay(
    data: SortedDataset,
    settings: Settings,
    options: ReplayOptions,
    *,
    on_status: Callable[[ReplayStatus], None] = lambda status: None,
    stopping: Callable[[], bool] = lambda: False,
) -> Summary:
    """Send due rows until all are delivered or `stopping()` returns True.

    Raises Unavailable if Kafka stays down too long, AlreadyRunning if another process replays from
    this home.
    """
    files = ReplayFiles(settings.home)
    with files.lock():
        run = _Replay(data, settings, options, files, on_status)
        try:
            return run.go(stopping)
        except AfterclickError:
            run.report(FAILED)
            raise


class _Replay:
    """State of one running replay."""

    def __init__(
        self,
        data: SortedDataset,
        settings: Settings,
        options: ReplayOptions,
        files: ReplayFiles,
        on_status: Callable[[ReplayStatus], None],
    ) -> None:
        topics = settings.kafka.topics
        self.data, self.options, self.files, self.on_status = data, options, files, on_status
        self.producer = EventProducer(settings.kafka)
        self.producer.require(topics.reviews, topics.feedback)
        self.catalogue = read_compacted_keys(settings.kafka, topics.items)
        self.items_topic = topics.items
        self.key = _progress_key(data, self.producer.cluster_id, topics.reviews, options)
        self.shift = self._shift()
        self.encoder = Encoder(
            f"{DATASET_SOURCE}{data.manifest.name}", topics.reviews, topics.feedback, self.shift
        )
        self.first_row = 0 if options.restart else files.next_row(self.key)
        self.total, self.span_ms = _measure(data, options, self.first_row)
        self.watch = _Stopwatch()
        self.pace, self.pace_began = options.pace, 0.0
        self.control = ReplayControl()
        self.rate = _RateMeter()
        self.sent = 0
        self.row = self.saved = self.first_row
        self.first_event: int | None = None
        self.event_ms = data.manifest.first_ms
        self._ticked = 0.0

    def go(self, stopping: Callable[[], bool]) -> Summary:
        """Send all selected rows."""
        ReplayControl().write(self.files.home)
        # rows below first_row are already delivered; the producer continues counting from there
        self.producer.delivered = self.first_row
        state = DONE
        with self.producer:
            for row, batch in _limited(
                _select(self.data, self.options, self.first_row), self.options.limit
            ):
                self.row = row
                if not self._send_batch(batch, stopping):
                    state = STOPPED
                    break
        self.report(state)
        return self._summary(state)

    def _send_batch(self, batch: pa.RecordBatch, stopping: Callable[[], bool]) -> bool:
        times = batch["time_ms"].to_numpy()
        paced = spread_days(times)
        start = 0
        while start < len(batch):
            self._tick()
            if stopping():
                return False
            running_s = self.watch.seconds() - self.pace_began
            due = 0 if self.watch.paused else self.pace.due(paced[start:], running_s)
            if not due:
                self.producer.poll(IDLE_S)
                continue
            count = min(due, CHUNK)
            self._send_rows(batch[start : start + count])
            start += count
            self.event_ms = int(times[start - 1])
        return True

    def _send_rows(self, rows: pa.RecordBatch) -> None:
        if self.first_event is None:
            self.first_event = rows["time_ms"][0].as_py()
        self._send_new_items(rows)
        for topic, messages in self.encoder.encode(rows):
            self.row += len(messages)
            self.producer.send(topic, messages, self.row)
        self.sent += len(rows)
        self.pace.count_sent(len(rows))

    def _send_new_items(self, rows: pa.RecordBatch) -> None:
        """Add items of the dataset that have no metadata to the catalogue, if there is one.

        Lists show only items of the catalogue.
        """
        if not self.catalogue:
            return
        ids = {item_id.encode() for item_id in rows["item_id"].unique().to_pylist()}
        new = sorted(ids - self.catalogue)
        self.catalogue |= ids
        items = (Item(item_id=item_id.decode()) for item_id in new)
        for messages in item_messages(items, f"{DATASET_SOURCE}{self.data.manifest.name}"):
            self.producer.send(self.items_topic, messages, self.row)

    def _tick(self) -> None:
        """Every TICK_S: read the control file, save the progress, publish the status."""
        now = time.monotonic()
        if now - self._ticked < TICK_S:
            return
        self._ticked = now
        control = ReplayControl.read(self.files.home) or ReplayControl()
        self.watch.pause(control.state == PAUSED or ReplayHold.is_fresh(self.files.home))
        self._change_pace(control)
        self.report(PAUSED if self.watch.paused else RUNNING)

    def _change_pace(self, control: ReplayControl) -> None:
        """Apply the requested speed; an invalid one changes nothing."""
        if control.speed is None and control.rate is None:
            return
        control = control.model_copy(update={"state": RUNNING})
        if control == self.control:
            return
        self.control = control
        try:
            self.pace = parse_pace(control.speed or "max", control.rate)
        except BadInput as error:
            log.warning("invalid pace ignored", error=str(error))
            return
        self.pace_began = self.watch.seconds()

    def report(self, state: str) -> None:
        """Save the delivered position and publish the status."""
        if self.producer.delivered != self.saved:
            self.saved = self.producer.delivered
            self.files.save_next_row(self.key, self.saved, self.event_ms)
        rate = self.rate.update(self.sent, self.watch.seconds())
        status = ReplayStatus(
            state=state,
            dataset=self.data.manifest.name,
            sent=self.sent,
            delivered=max(0, self.producer.delivered - self.row + self.sent),
            total=self.total,
            rate=round(rate, 1),
            event_time_ms=self.event_ms + self.shift,
            shift_ms=self.shift,
            eta_s=self._eta(rate),
            kafka_away=self.producer.unreachable,
            updated_ms=time.time_ns() // 1_000_000,
            pace=str(self.pace),
        )
        status.write(self.files.home)
        self.on_status(status)

    def _eta(self, rate: float) -> float | None:
        left = self.total - self.sent
        share = left / self.total if self.total else 0.0
        paced = self.pace.seconds_for(left, int(self.span_ms * share))
        if paced is None and rate:
            paced = left / rate
        return None if paced is None else round(paced, 1)

    def _shift(self) -> int:
        if not self.options.rebased:
            return 0
        now_ms = time.time_ns() // 1_000_000
        return self.files.shift_ms(
            self.data.manifest.fingerprint, now_ms - self.data.manifest.last_ms
        )

    def _summary(self, state: str) -> Summary:
        seconds = self.watch.seconds()
        return Summary(
            state=state,
            dataset=self.data.manifest.name,
            sent=self.sent,
            remaining=self.total - self.sent,
            started_at_row=self.first_row,
            seconds=round(seconds, 3),
            events_per_s=round(self.sent / seconds, 1) if seconds else 0.0,
            first_event_ms=self.first_event,
            last_event_ms=self.event_ms if self.sent else None,
            shift_ms=self.shift,
            rows=self.data.manifest.rows,
            bad_lines=self.data.manifest.bad,
        )


class _Stopwatch:
    """Running time in seconds, excluding pauses."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._before = 0.0
        self.paused = False

    def pause(self, paused: bool) -> None:
        if paused and not self.paused:
            self._before = self.seconds()
        elif self.paused and not paused:
            self._started = time.monotonic()
        self.paused = paused

    def seconds(self) -> float:
        return self._before if self.paused else self._before + time.monotonic() - self._started


class _RateMeter:
    """Events per second, exponentially smoothed over a few seconds."""

    def __init__(self) -> None:
        self._count, self._at, self._rate = 0, 0.0, 0.0

    def update(self, count: int, seconds: float) -> float:
        elapsed = seconds - self._at
        if elapsed > 0.05:
            latest = (count - self._count) / elapsed
            keep = np.exp(-elapsed / 2.0) if self._at else 0.0
            self._rate = float(keep * self._rate + (1 - keep) * latest)
            self._count, self._at = count, seconds
        return self._rate


def _progress_key(data: SortedDataset, cluster: str, topic: str, options: ReplayOptions) -> str:
    start = "" if options.from_ms is None else f"@{options.from_ms}"
    return f"{data.manifest.fingerprint}{start}>{cluster}/{topic}"


def _select(
    data: SortedDataset, options: ReplayOptions, first_row: int
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield the selected rows with the row number of the first of each batch."""
    row = 0
    for batch in data.batches():
        times = batch["time_ms"].to_numpy()
        begin = max(first_row - row, _index_at(times, options.from_ms, 0))
        end = _index_at(times, options.until_ms, len(times))
        if begin < end:
            yield row + begin, batch[begin:end]
        elif options.until_ms is not None and end < len(times):
            return
        row += len(times)


def _index_at(times: Int64Array, time_ms: int | None, default: int) -> int:
    return default if time_ms is None else int(np.searchsorted(times, time_ms, side="left"))


def _limited(
    batches: Iterator[tuple[int, pa.RecordBatch]], limit: int | None
) -> Iterator[tuple[int, pa.RecordBatch]]:
    left = limit
    for row, batch in batches:
        if left is not None:
            batch = batch[:left]
            left -= len(batch)
        if len(batch):
            yield row, batch
        if left == 0:
            return


def _measure(data: SortedDataset, options: ReplayOptions, first_row: int) -> tuple[int, int]:
    """Number of rows to send and the event time they span, in ms."""
    count, first, last = 0, None, 0
    for _, batch in _limited(_select(data, options, first_row), options.limit):
        count += len(batch)
        first = batch["time_ms"][0].as_py() if first is None else first
        last = batch["time_ms"][-1].as_py()
    return count, last - (first or 0) if count else 0
