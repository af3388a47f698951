"""When a training is due, how a failed one is retried, and what its child process leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import redis
from mlflow.entities import Run
from structlog.testing import capture_logs

from afterclick.errors import AlreadyRunning, Unavailable
from afterclick.io.heartbeats import read_heartbeats
from afterclick.io.home import TrainingStatus
from afterclick.io.kafka_log import KafkaLog
from afterclick.settings import KafkaSettings, Settings
from tests.streaming.stream_process import environment
from tests.waiting import wait_until
from training import publish, schedule
from training.mlflow_registry import MlflowRegistry
from training.schedule import ChildTraining, Outcome, Retrain
from training.workspace import (
    LastTraining,
    lock_holder,
    report_progress,
    training_lock,
)

EVERY_S = 7200.0
DONE, FAILED = Outcome(True, "v1"), Outcome(False, "no event archive")


class Clock:
    """A clock that the test sets."""

    now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


class Script:
    """Trainings with the results that the test sets."""

    def __init__(self) -> None:
        self.outcome = FAILED
        self.reasons: list[str] = []

    def __call__(self, reason: str, stop: threading.Event) -> Outcome:
        self.reasons.append(reason)
        return self.outcome


class Fixture:
    """A schedule with a script and a clock, not started: the test runs its jobs."""

    def __init__(self, settings: Settings) -> None:
        self.clock, self.script = Clock(), Script()
        self.retrain = Retrain(
            settings, every_s=EVERY_S, events=5, train=self.script, now=self.clock
        )

    @property
    def due_in_s(self) -> float:
        """Seconds until the next run of the job `train`."""
        return (self.next_run("train") - self.clock.now).total_seconds()  # type: ignore[operator]

    def next_run(self, job: str) -> datetime | None:
        found: datetime | None = self.retrain.scheduler.get_job(job).next_run_time
        return found

    def train(self, outcome: Outcome, after_s: float = 0.0) -> float:
        """Run the job `train` at a time; returns the seconds until its next run."""
        self.clock.now += timedelta(seconds=after_s)
        self.script.outcome = outcome
        self.retrain.train("")
        return self.due_in_s


@pytest.fixture
def scheduled(tmp_path: Path) -> Fixture:
    return Fixture(Settings(home=tmp_path))


def failed_runs(settings: Settings) -> list[Run]:
    registry = MlflowRegistry(settings)
    return list(registry.client.search_runs([registry.experiment()], "tags.kind = 'failed'"))


def send(settings: Settings, count: int) -> None:
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": settings.kafka.bootstrap})
    for n in range(count):
        producer.produce(settings.kafka.topics.feedback, b"{}", str(n).encode())
    assert producer.flush(30) == 0


def status_of(home: Path) -> tuple[str, str, str | None]:
    status = TrainingStatus.read(home)
    assert status is not None
    return status.state, status.progress, status.last


def test_a_training_is_due_after_the_interval(scheduled: Fixture) -> None:
    assert scheduled.due_in_s == EVERY_S
    assert scheduled.train(DONE, after_s=EVERY_S) == EVERY_S
    assert scheduled.script.reasons == ["120 minutes have passed"]


def test_the_schedule_beats_between_trainings_and_a_training_by_itself(tmp_path: Path) -> None:
    def beats() -> bool:
        os.utime(TrainingStatus.path(tmp_path), (0, 0))
        retrain.beat()
        return TrainingStatus.is_fresh(tmp_path)

    def train(_: str, __: threading.Event) -> Outcome:
        during.append(beats())
        return DONE

    during: list[bool] = []
    retrain = Retrain(Settings(home=tmp_path), every_s=EVERY_S, events=5, train=train)
    TrainingStatus(state="waiting", since="now").write(tmp_path)
    assert beats()
    retrain.train("")
    assert during == [False]  # a training that hangs has no heartbeat
    assert beats()


_RETRAIN = """
import threading
from afterclick.settings import Settings
from training.schedule import Retrain
retrain = Retrain(Settings(), 7200.0, 10**9)
retrain.heartbeat.limit_s = 1.0
retrain.run(threading.Event())
"""


def test_a_suspended_retrainer_is_frozen_until_it_goes_on(settings: Settings) -> None:
    """The control: while it runs, it is not."""
    process = subprocess.Popen([sys.executable, "-c", _RETRAIN], env=environment(settings))
    with redis.Redis.from_url(settings.redis.url) as client:

        def states() -> list[tuple[str, bool]]:
            loops = read_heartbeats(client, settings.redis.keys)
            return [(loop.name, loop.frozen) for loop in loops]

        try:
            wait_until(lambda: states() == [("retrain/schedule", False)])
            process.send_signal(signal.SIGSTOP)
            wait_until(lambda: states() == [("retrain/schedule", True)])
            process.send_signal(signal.SIGCONT)
            wait_until(lambda: states() == [("retrain/schedule", False)])
        finally:
            process.kill()
            process.wait()


def test_refusals_in_a_row_are_a_warning(scheduled: Fixture) -> None:
    refused = Outcome(True, "Refused: inferior to the champion", refused=True)
    with capture_logs() as lines:
        for outcome in (refused, refused, DONE, refused, refused):
            scheduled.train(outcome)
        assert [line for line in lines if line["log_level"] == "warning"] == []
        scheduled.train(refused)
    (warning,) = (line for line in lines if line["log_level"] == "warning")
    assert (warning["count"], warning["reason"]) == (3, refused.message)


def test_enough_new_events_make_a_training_due(settings: Settings) -> None:
    scheduled = Fixture(settings)
    send(settings, 4)
    scheduled.retrain.count()
    assert scheduled.due_in_s == EVERY_S
    send(settings, 1)
    scheduled.retrain.count()
    assert scheduled.due_in_s == 0
    assert scheduled.retrain.scheduler.get_job("train").args[0] == "5 new events"


def test_failed_trainings_are_retried_with_doubling_delays(scheduled: Fixture) -> None:
    delays = [scheduled.train(FAILED) for _ in range(8)]
    assert delays == [60, 120, 240, 480, 960, 1920, 3600, 3600]
    assert schedule.retry_delay_s(50) == 3600
    assert scheduled.next_run("count") is None  # new events do not shorten the delay
    assert "no event archive" in scheduled.retrain.scheduler.get_job("train").args[0]


def test_a_completed_training_resets_the_delay_and_counts_events_again(scheduled: Fixture) -> None:
    scheduled.train(FAILED)
    scheduled.train(FAILED)
    assert scheduled.train(DONE) == EVERY_S
    assert scheduled.next_run("count") is not None
    assert scheduled.train(FAILED) == 60


def test_a_stopped_schedule_starts_no_training(scheduled: Fixture) -> None:
    stop = threading.Event()
    stop.set()
    scheduled.retrain.run(stop)
    scheduled.retrain.train("")
    assert scheduled.script.reasons == []


def test_while_another_process_trains_none_starts_and_its_status_stays(
    tmp_path: Path, scheduled: Fixture
) -> None:
    with (
        training_lock(tmp_path, "`afterclick train`"),
        report_progress(tmp_path) as report,
    ):
        report("fitting")
        assert scheduled.train(DONE) == schedule.COUNT_INTERVAL_S
        scheduled.retrain.count()
        assert scheduled.script.reasons == []
        assert status_of(tmp_path) == ("training", "fitting", None)
    scheduled.train(DONE)  # the control: no other process trains
    assert len(scheduled.script.reasons) == 1


def test_a_child_that_finds_the_lock_taken_leaves_the_status(tmp_path: Path) -> None:
    with (
        training_lock(tmp_path, "`afterclick train`"),
        report_progress(tmp_path) as report,
    ):
        report("fitting")
        outcome = ChildTraining(Settings(home=tmp_path))("5 new events", threading.Event())
        assert status_of(tmp_path) == ("training", "fitting", None)
    assert not outcome.completed
    assert "`afterclick train`" in outcome.message


def test_the_outcome_of_a_manual_training_stays_in_the_status(settings: Settings) -> None:
    scheduled = Fixture(settings)
    with (
        training_lock(settings.home, "`afterclick train`"),
        report_progress(settings.home) as report,
    ):
        report("v1 is the champion")
    scheduled.retrain.count()
    assert status_of(settings.home) == ("waiting", "", "v1 is the champion")


def test_without_kafka_no_training_is_due(tmp_path: Path) -> None:
    down = Settings(home=tmp_path, kafka=KafkaSettings(bootstrap="127.0.0.1:1"))
    with pytest.raises(Unavailable):
        schedule.new_events(down)
    scheduled = Fixture(down)
    scheduled.retrain.count()
    assert scheduled.due_in_s == EVERY_S


def test_the_running_schedule_trains_again_after_new_events(settings: Settings) -> None:
    send(settings, 5)
    script = Script()
    script.outcome = DONE
    stop = threading.Event()
    process = threading.Thread(
        target=Retrain(settings, every_s=EVERY_S, events=5, train=script).run, args=(stop,)
    )
    process.start()
    try:
        wait_until(lambda: script.reasons)
        wait_until(lambda: status_of(settings.home)[2] == "v1")
    finally:
        stop.set()
        process.join(30)
    assert script.reasons[0] == "5 new events"
    assert status_of(settings.home)[0] == "stopped"


@pytest.mark.slow
def test_a_training_that_fails_records_its_reason_and_step(settings: Settings) -> None:
    outcome = ChildTraining(settings)("5 new events", threading.Event())  # without an archive
    assert not outcome.completed
    assert "no event archive" in outcome.message
    assert publish.champion(settings.kafka) is None
    assert lock_holder(settings.home) is None
    (run,) = failed_runs(settings)
    assert run.info.status == "FAILED"
    assert run.data.tags["step"] == "etl"
    assert "no event archive" in run.data.tags["reason"]


def test_a_training_that_hangs_is_killed_and_recorded(settings: Settings) -> None:
    short = settings.training.model_copy(update={"max_hours": 0.2 / 3600})
    hasty = settings.model_copy(update={"training": short})
    outcome = ChildTraining(hasty)("1 new event", threading.Event())
    assert not outcome.completed
    assert "took longer" in outcome.message
    with training_lock(settings.home, "the next one"):  # the lock ended with the process
        pass
    (run,) = failed_runs(hasty)
    assert "took longer" in run.data.tags["reason"]


def test_a_killed_process_leaves_no_lock(settings: Settings) -> None:
    hold = (
        "import sys, time; from pathlib import Path; from training.workspace import training_lock\n"
    )
    hold += "with training_lock(Path(sys.argv[1]), 'a training'): print('held', flush=True); "
    hold += "time.sleep(600)"
    owner = subprocess.Popen(
        [sys.executable, "-c", hold, str(settings.home)], stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    assert owner.stdout.readline() == "held\n"
    taken = pytest.raises(AlreadyRunning, match=f"a training .process {owner.pid}, since 20")
    with taken, training_lock(settings.home, "another"):
        pass
    assert f"process {owner.pid}" in (lock_holder(settings.home) or "")
    owner.kill()
    owner.wait()
    assert lock_holder(settings.home) is None
    with training_lock(settings.home, "another"):
        pass


def test_only_events_that_no_decided_training_has_read_are_new(settings: Settings) -> None:
    send(settings, 3)
    assert schedule.new_events(settings) == 3
    with KafkaLog(settings.kafka) as kafka:
        ranges = kafka.ranges(*settings.kafka.topics.interactions)
    positions = {f"{topic}/{number}": r.end - 1 for (topic, number), r in ranges.items()}
    LastTraining(version="v1", positions=positions).write(settings.home)
    assert schedule.new_events(settings) == 0
    send(settings, 2)
    assert schedule.new_events(settings) == 2
