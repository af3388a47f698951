"""When a training is due, and that a failed one says why."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
from mlflow.entities import Run

from afterclick.errors import AlreadyRunning, Unavailable
from afterclick.io.home import TrainingStatus
from afterclick.settings import KafkaSettings, Settings
from tests.waiting import wait_until
from training import publish, schedule
from training.backoff import Backoff
from training.lock import exclusive, holder
from training.mlflow_registry import MlflowRegistry
from training.schedule import Outcome, Retrain
from training.trained import Trained


class Clock:
    """Time goes on where it is told to."""

    now = 1e9

    def __call__(self) -> float:
        return self.now


class Scripted(Retrain):
    """Its trainings end as is said here, in no time."""

    def __init__(self, home: Path, clock: Clock, backoff: Backoff | None = None) -> None:
        super().__init__(
            Settings(home=home), every_s=100, events=1000, clock=clock, backoff=backoff
        )
        self.ends = Outcome(False, "no Parquet log")
        self.trained_at: list[float] = []

    def _train(self, reason: str, stop: threading.Event) -> Outcome:
        self.trained_at.append(self._clock())
        return self.ends


def failed_runs(settings: Settings) -> list[Run]:
    registry = MlflowRegistry(settings)
    return list(registry.client.search_runs([registry.experiment()], "tags.kind = 'failed'"))


def look_for(retrain: Scripted, clock: Clock, seconds: int) -> list[float]:
    """Look every ten seconds, and always find that it is time; when it trained, seconds after the start."""
    start, first = clock.now, len(retrain.trained_at)
    for _ in range(seconds // 10):
        retrain._last_start = 0.0
        retrain.look(threading.Event())
        clock.now += 10
    return [at - start for at in retrain.trained_at[first:]]


def send(settings: Settings, count: int) -> None:
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": settings.kafka.bootstrap})
    for n in range(count):
        producer.produce(settings.kafka.topics.feedback, b"{}", str(n).encode())
    assert producer.flush(30) == 0


def test_new_events_make_a_training_due(settings: Settings) -> None:
    retrain = Retrain(settings, every_s=3600, events=5)
    assert retrain.due() is None
    send(settings, 5)
    assert retrain.due() == "5 new events"


def test_time_makes_a_training_due(tmp_path: Path) -> None:
    clock = Clock()
    retrain = Scripted(tmp_path, clock)
    clock.now += 100
    assert retrain.due() == "the last one that went through began 100 s ago"


def test_trainings_that_fail_are_tried_again_later_and_later(tmp_path: Path) -> None:
    clock = Clock()
    retrain = Scripted(tmp_path, clock)
    assert look_for(retrain, clock, 6000) == [0, 60, 180, 420, 900, 1860, 3780]
    assert Backoff(failures=50).failed(0.0) == 3600
    # the control: without it a child every ten seconds
    assert len(look_for(Scripted(tmp_path, clock, Backoff(first_s=0)), clock, 600)) == 60


def test_after_one_that_went_through_the_next_failure_waits_a_minute_again(tmp_path: Path) -> None:
    clock = Clock()
    retrain = Scripted(tmp_path, clock)
    look_for(retrain, clock, 900)
    retrain.ends = Outcome(True, "v1")
    assert look_for(retrain, clock, 10) == [0]
    retrain.ends = Outcome(False, "no Parquet log")
    assert look_for(retrain, clock, 120) == [0, 60]


def test_one_that_failed_stays_due_by_the_clock(tmp_path: Path) -> None:
    clock = Clock()
    retrain = Scripted(tmp_path, clock)
    clock.now += 100
    assert retrain.look(threading.Event())
    retrain.ends = Outcome(True, "v1")
    clock.now += 60
    assert retrain.look(threading.Event())
    assert retrain._last_start == clock.now


def test_while_somebody_trains_no_child_begins_and_their_progress_stays(tmp_path: Path) -> None:
    clock = Clock()
    retrain = Scripted(tmp_path, clock)
    with exclusive(tmp_path, "`afterclick train`"), schedule.told(tmp_path) as tell:
        tell("fitting")
        assert look_for(retrain, clock, 60) == []
        retrain._say("stopped")
        status = TrainingStatus.read(tmp_path)
        assert status is not None
        assert (status.state, status.progress) == ("training", "fitting")
    assert look_for(retrain, clock, 10) == [0]  # the control: nobody trains


def test_a_child_that_finds_the_lock_taken_says_nothing(tmp_path: Path) -> None:
    retrain = Retrain(Settings(home=tmp_path), every_s=3600, events=5)
    with exclusive(tmp_path, "`afterclick train`"), schedule.told(tmp_path) as tell:
        tell("fitting")
        ended = retrain._train("5 new events", threading.Event())
        status = TrainingStatus.read(tmp_path)
        assert status is not None
        assert (status.state, status.progress) == ("training", "fitting")
    assert not ended.completed
    assert "`afterclick train`" in ended.how


def test_what_a_manual_training_said_last_is_kept(tmp_path: Path) -> None:
    retrain = Scripted(tmp_path, Clock())
    with exclusive(tmp_path, "`afterclick train`"), schedule.told(tmp_path) as tell:
        tell("v1 is the champion")
    assert not retrain.look(threading.Event())
    status = TrainingStatus.read(tmp_path)
    assert status is not None
    assert (status.state, status.last) == ("waiting", "v1 is the champion")


def test_without_kafka_nothing_is_due(settings: Settings) -> None:
    away = settings.model_copy(update={"kafka": KafkaSettings(bootstrap="127.0.0.1:1")})
    with pytest.raises(Unavailable):
        schedule.end_offsets(away.kafka, timeout_s=1)


@pytest.mark.slow
def test_a_training_that_fails_says_why_and_the_next_one_may_come(settings: Settings) -> None:
    send(settings, 5)  # there is no Parquet log: the ETL refuses
    stop = threading.Event()
    process = threading.Thread(target=Retrain(settings, every_s=3600, events=5).run, args=(stop,))
    process.start()

    def failed() -> bool:
        status = TrainingStatus.read(settings.home)
        return (
            status is not None
            and status.state == "waiting"
            and "no Parquet log" in (status.last or "")
        )

    try:
        wait_until(failed, timeout=240)
    finally:
        stop.set()
        process.join(30)
    assert publish.champion(settings.kafka) is None
    stopped = TrainingStatus.read(settings.home)
    assert stopped is not None
    assert stopped.state == "stopped"
    (run,) = failed_runs(settings)
    assert run.info.status == "FAILED"
    assert run.data.tags["step"] == "etl"
    assert "no Parquet log" in run.data.tags["reason"]


def test_a_training_that_hangs_is_ended_and_says_so(settings: Settings) -> None:
    short = settings.training.model_copy(update={"longest_hours": 0.2 / 3600})
    hasty = settings.model_copy(update={"training": short})
    ended = Retrain(hasty, every_s=3600, events=1)._train("1 new event", threading.Event())
    assert not ended.completed
    assert "took longer" in ended.how
    with exclusive(settings.home, "the next one"):  # its lock is gone with it
        pass
    (run,) = failed_runs(hasty)
    assert "took longer" in run.data.tags["reason"]


def test_a_killed_owner_leaves_no_lock(settings: Settings) -> None:
    hold = "import sys, time; from pathlib import Path; from training.lock import exclusive\n"
    hold += "with exclusive(Path(sys.argv[1]), 'a training'): print('held', flush=True); time.sleep(600)"
    owner = subprocess.Popen(
        [sys.executable, "-c", hold, str(settings.home)], stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    assert owner.stdout.readline() == "held\n"
    held = pytest.raises(AlreadyRunning, match=f"a training .process {owner.pid}, since 20")
    with held, exclusive(settings.home, "another"):
        pass
    assert f"process {owner.pid}" in (holder(settings.home) or "")
    owner.kill()
    owner.wait()
    assert holder(settings.home) is None
    with exclusive(settings.home, "another"):
        pass


def test_only_what_a_training_read_that_went_through_counts_as_seen(settings: Settings) -> None:
    send(settings, 3)
    assert schedule.new_events(settings) == 3
    ends = schedule.end_offsets(settings.kafka)
    settings.home.mkdir()
    Trained(version="v1", positions={place: end - 1 for place, end in ends.items()}).write(
        settings.home
    )
    assert schedule.new_events(settings) == 0
    send(settings, 2)
    assert schedule.new_events(settings) == 2
