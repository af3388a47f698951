"""Count the lists, clicks and purchases of the users of experiments, from the log.

reads          topic  impressions, state-changes
reads, writes  sql    experiments, experiment_users, experiment_progress

A user takes part from the first list they were shown. Their clicks and conversions count for `days`
days from then on, whatever list they name, also after the experiment was stopped.

Every API process counts; what it counts is written in one transaction with the positions in the
log, and only if no other process has advanced them since they were read. So a record counts once,
whichever process counts it and whenever it fails. `state-changes` repeats events after a restart
of the stream and is read by the position of the event itself; duplicates of an event id are marked.

An impression may reach the log after the reaction to it: its producer tries for 30 s. So a reaction
counts `settle_s` after it was logged, when all impressions before it are in SQL.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

import structlog
from confluent_kafka import Message
from sqlalchemy import Connection, bindparam, case, select, update

from afterclick import events
from afterclick.errors import BadEvent
from afterclick.events import Action, ImpressionEvent
from afterclick.io.background import BackgroundLoop
from afterclick.io.kafka_log import KafkaLog, OffsetRange, OffsetRanges
from afterclick.settings import Settings
from afterclick.state import StateChange
from serving.control.erasure import UserEraser
from serving.control.experiments import read_experiments
from serving.control.store import Database, experiment_progress, experiments, insert_into
from serving.control.store import experiment_users as table

log = structlog.get_logger()
SETTLE_S: Final = 35.0
INTERVAL_S: Final = 2.0
BATCH: Final = 2000
"""Records of a partition that are counted in one transaction."""
CLOCK_SKEW_S: Final = 60.0
"""Reading starts this long before the oldest experiment: the clocks of machines differ."""
_TIMEOUT_S = 5.0
USERS_PER_QUERY: Final = 5000
_PARTICIPANTS = select(
    table.c.experiment, table.c.user_id, table.c.first_shown, experiments.c.days
).join(experiments, experiments.c.name == table.c.experiment)
_ADD_REACTIONS = (
    update(table)
    .where(
        table.c.experiment == bindparam("in_experiment"), table.c.user_id == bindparam("of_user")
    )
    .values(
        clicks=table.c.clicks + bindparam("more_clicks"),
        purchases=table.c.purchases + bindparam("more_purchases"),
    )
)


@dataclass(frozen=True)
class Progress:
    """How far the log is counted."""

    version: int
    positions: Mapping[str, int]
    """topic/partition → the first offset that is not counted; also of the interaction topics, by
    the positions in their changes."""
    counted_until: datetime | None

    @classmethod
    def read(cls, connection: Connection) -> Progress:
        row = connection.execute(select(experiment_progress)).one()
        return cls(row.version, row.positions, row.counted_until)

    def save(self, connection: Connection) -> bool:
        """Replace the progress this one was made from; False where another process has."""
        changed = connection.execute(
            update(experiment_progress)
            .where(experiment_progress.c.version == self.version)
            .values(
                version=self.version + 1,
                positions=dict(self.positions),
                counted_until=self.counted_until,
            )
        )
        return bool(changed.rowcount)

    def after(self, records: Iterable[Message]) -> Progress:
        """With these records counted."""
        positions = dict(self.positions)
        for record in records:
            positions[f"{record.topic()}/{record.partition()}"] = (record.offset() or 0) + 1
        return replace(self, positions=positions)


class Exposure(NamedTuple):
    """The lists that a user of an arm was shown."""

    arm: str
    first: datetime
    lists: int = 1
    fallback_lists: int = 0

    def merge(self, other: Exposure) -> Exposure:
        lists, fallbacks = self.lists + other.lists, self.fallback_lists + other.fallback_lists
        return Exposure(self.arm, min(self.first, other.first), lists, fallbacks)


class ExperimentCounter:
    """Counts in a background thread while an experiment is running or users are followed."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        settle_s: float = SETTLE_S,
        eraser: UserEraser | None = None,
        starts_when: Callable[[], bool] = lambda: True,
    ) -> None:
        """`starts_when`: the users that `eraser` forgets are known, so that none is counted."""
        self._eraser, self._starts_when = eraser or UserEraser(), starts_when
        kafka, self._conversions = settings.kafka, settings.stream.signals.conversions
        self._topics, self._database, self._settle_s = kafka.topics, database, settle_s
        self._log = KafkaLog(kafka, _TIMEOUT_S)
        self._loop = BackgroundLoop("experiment-counts", self._work, min(INTERVAL_S, settle_s))
        self.heartbeat = self._loop.heartbeat
        self._starts: dict[str, int] = {}
        self._started_for: datetime | None = None
        """Creation of the oldest experiment that `_starts` belongs to."""

    def start(self) -> None:
        self._loop.start()

    def stop(self) -> None:
        """Stop after the batch in progress, and close the connection."""
        self._loop.stop()
        self._log.close()

    def _work(self) -> None:
        while not self._loop.stopping and self._starts_when() and self.count():
            self.heartbeat.beat()

    def count(self) -> bool:
        """Count one batch; whether more may wait. Raises Unavailable."""
        self._database.upgrade()
        with self._database.begin() as connection:
            progress = Progress.read(connection)
            counted = [e for e in read_experiments(connection) if e.counts_at(events.now())]
        if not counted:
            return False
        settled = events.now() - timedelta(seconds=self._settle_s)
        topics = self._topics
        ranges = self._log.ranges(topics.impressions, topics.state_changes, *topics.interactions)
        self._find_starts(counted[0].created, ranges)
        progress = self._within(progress, ranges)
        impressions = self._read(topics.impressions, progress, ranges)
        if impressions:
            self._count_impressions(progress, impressions)
            return True
        return self._count_reactions(
            progress, self._read(topics.state_changes, progress, ranges), settled
        )

    def _find_starts(self, oldest: datetime, ranges: OffsetRanges) -> None:
        """Find the records from the oldest experiment on, once for each."""
        if self._started_for == oldest:
            return
        since = oldest - timedelta(seconds=CLOCK_SKEW_S)
        topics = (self._topics.impressions, self._topics.state_changes)
        ours = {partition: span for partition, span in ranges.items() if partition.topic in topics}
        starts = self._log.starts(ours, since)
        self._starts = {str(partition): offset for partition, offset in starts.items()}
        self._started_for = oldest

    def _within(self, progress: Progress, ranges: OffsetRanges) -> Progress:
        """Not before the oldest experiment, nor after the end of a log that was created again."""
        positions = {
            name: min(max(progress.positions.get(name, 0), self._starts.get(name, 0)), span.end)
            for name, span in ((str(partition), span) for partition, span in ranges.items())
        }
        return replace(progress, positions=positions)

    def _read(self, topic: str, progress: Progress, ranges: OffsetRanges) -> list[Message]:
        """The next records of a topic."""
        batch = {}
        for partition, span in ranges.items():
            if partition.topic == topic:
                begin = max(progress.positions[str(partition)], span.begin)
                batch[partition] = OffsetRange(begin, min(begin + BATCH, span.end))
        return list(self._log.read(batch))

    def _count_impressions(self, progress: Progress, records: Sequence[Message]) -> None:
        with self._eraser.writing, self._database.begin() as connection:
            exposures = exposures_of(records, self._eraser.is_forgotten)
            if progress.after(records).save(connection):
                add_exposures(connection, exposures)

    def _count_reactions(
        self, progress: Progress, records: Sequence[Message], settled: datetime
    ) -> bool:
        """Count the reactions that were logged before `settled`; whether more may wait."""
        read = settled_changes(records, settled.timestamp() * 1000)
        positions, new = dict(progress.positions), []
        for _, change in read:
            source = f"{change.topic}/{change.partition}" if change else ""
            if change and change.offset >= positions.get(source, 0):
                positions[source] = change.offset + 1
                new.append(change)
        more = len(read) == len(records) > 0
        until = progress.counted_until if more else settled
        progress = replace(progress, positions=positions, counted_until=until)
        with self._database.begin() as connection:
            if progress.after([record for record, _ in read]).save(connection):
                counted = [change for change in new if change.effect.counts]
                add_reactions(connection, counted, self._conversions)
        return more


def exposures_of(
    records: Iterable[Message], is_forgotten: Callable[[str, int], bool] = lambda *_: False
) -> dict[tuple[str, str], Exposure]:
    """Experiment and user → the lists shown, of impressions that belong to an experiment."""
    exposures: dict[tuple[str, str], Exposure] = {}
    for record in records:
        value = record.value() or b""
        if b'"experiment"' not in value:
            continue
        try:
            event = events.decode(value)
        except BadEvent as error:
            log.warning("invalid impression", offset=record.offset(), error=str(error))
            continue
        if not isinstance(event, ImpressionEvent) or event.data.experiment is None:
            continue
        shown = event.data
        if is_forgotten(shown.user_id, event.time_ms):
            continue
        key = (event.data.experiment, shown.user_id)
        exposure = Exposure(
            shown.arm or "", _moment(event.time_ms), fallback_lists=int(bool(shown.fallback))
        )
        exposures[key] = exposures[key].merge(exposure) if key in exposures else exposure
    return exposures


def settled_changes(
    records: Iterable[Message], until_ms: float
) -> list[tuple[Message, StateChange | None]]:
    """The records of each partition before its first event logged after `until_ms`; None for what
    is no state change."""
    read: list[tuple[Message, StateChange | None]] = []
    unsettled: set[int | None] = set()
    for record in records:
        if record.partition() in unsettled:
            continue
        try:
            change = StateChange.decode(record.value() or b"")
        except BadEvent as error:
            log.warning("invalid state change", offset=record.offset(), error=str(error))
            read.append((record, None))
            continue
        if change.log_ms > until_ms:
            unsettled.add(record.partition())
        else:
            read.append((record, change))
    return read


def add_exposures(connection: Connection, exposures: Mapping[tuple[str, str], Exposure]) -> None:
    """Add lists shown; the earliest is a user's first."""
    if not exposures:
        return
    insert = insert_into(connection, table)
    new, old = insert.excluded, table.c
    upsert = insert.on_conflict_do_update(
        index_elements=["experiment", "user_id"],
        set_={
            "first_shown": case(
                (new.first_shown < old.first_shown, new.first_shown), else_=old.first_shown
            ),
            "lists": old.lists + new.lists,
            "fallback_lists": old.fallback_lists + new.fallback_lists,
        },
    )
    rows = [
        {
            "experiment": experiment,
            "user_id": user_id,
            "arm": exposure.arm,
            "first_shown": exposure.first,
            "lists": exposure.lists,
            "fallback_lists": exposure.fallback_lists,
            "clicks": 0,
            "purchases": 0,
        }
        for (experiment, user_id), exposure in exposures.items()
    ]
    connection.execute(upsert, rows)


def add_reactions(
    connection: Connection, changes: Iterable[StateChange], conversions: Container[Action]
) -> None:
    """Add clicks and conversions of users who were shown a list at most `days` days before.

    The column of conversions is `purchases`, the default conversion.
    """
    by_user: dict[str, list[StateChange]] = {}
    for change in changes:
        counted = change.action is Action.CLICK or change.action in conversions
        if counted and not change.is_copy:
            by_user.setdefault(change.user_id, []).append(change)
    user_ids = sorted(by_user)
    rows = []
    for begin in range(0, len(user_ids), USERS_PER_QUERY):
        of_users = table.c.user_id.in_(user_ids[begin : begin + USERS_PER_QUERY])
        for user in connection.execute(_PARTICIPANTS.where(of_users)):
            until = user.first_shown + timedelta(days=user.days)
            actions = Counter(
                change.action
                for change in by_user[user.user_id]
                if user.first_shown <= _moment(change.time_ms) < until
            )
            if actions:
                rows.append(
                    {
                        "in_experiment": user.experiment,
                        "of_user": user.user_id,
                        "more_clicks": actions[Action.CLICK],
                        "more_purchases": sum(
                            count for action, count in actions.items() if action in conversions
                        ),
                    }
                )
    if rows:
        connection.execute(_ADD_REACTIONS, rows)


def _moment(time_ms: int) -> datetime:
    return datetime.fromtimestamp(time_ms / 1000, UTC)
