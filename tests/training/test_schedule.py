"""When a training is due, and that a failed one says why."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest

from afterclick.errors import AlreadyRunning, Unavailable
from afterclick.home import TrainingStatus
from afterclick.settings import KafkaSettings, Settings
from tests.training import shop
from tests.waiting import wait_until
from training import publish, schedule
from training.lock import exclusive
from training.schedule import Retrain


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


def test_time_makes_a_training_due(settings: Settings) -> None:
    retrain = Retrain(settings, every_s=0.2, events=1000)
    time.sleep(0.3)
    assert retrain.due() is not None


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
        return status is not None and status.state == "waiting" and "no Parquet log" in (status.last or "")

    try:
        wait_until(failed, timeout=240)
    finally:
        stop.set()
        process.join(30)
    assert publish.champion(settings.kafka) is None
    stopped = TrainingStatus.read(settings.home)
    assert stopped is not None
    assert stopped.state == "stopped"


def test_a_training_that_hangs_is_ended_and_says_so(settings: Settings) -> None:
    short = settings.training.model_copy(update={"longest_hours": 0.2 / 3600})
    hasty = settings.model_copy(update={"training": short})
    outcome = Retrain(hasty, every_s=3600, events=1)._train(threading.Event())
    assert "took longer" in outcome
    with exclusive(settings.home, "the next one"):  # its lock is gone with it
        pass


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
    owner.kill()
    owner.wait()
    with exclusive(settings.home, "another"):
        pass


def test_the_log_that_was_read_counts_as_seen(settings: Settings) -> None:
    assert schedule.new_events(settings) == 0
    shop.write_log(settings.archive, [shop.event("u", "a")])
    send(settings, 3)
    assert schedule.new_events(settings) == 3
