"""One owner of the lease writes at a time; a dead one is replaced at once, if it is known to be."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import redis

from afterclick.errors import StateLocked
from afterclick.settings import Settings
from streaming.apply import Applier
from streaming.connection import NodeConnection, load_functions
from streaming.lease import NO_LEASE, Lease, check_lease, hold_lease, renew_lease
from streaming.positions import applied_offsets, log_ranges
from tests.streaming.builders import apply_config, event, log_of, stored
from tests.streaming.stream_process import StreamProcess, produce
from tests.waiting import wait_until

LOG = log_of([event(item=f"item-{n}", event_id=str(n)) for n in range(10)])


def owner_with(owner: str, **changes: str) -> str:
    """The owner with other parts."""
    names = ("host", "pid", "machine", "start", "token")
    return "/".join((dict(zip(names, owner.split("/"), strict=True)) | changes).values())


@pytest.fixture
def own(client: redis.Redis, settings: Settings) -> str:
    """An owner of this process, which has released its lease."""
    with hold_lease(client, settings.redis.keys, 10) as lease:
        pass
    assert client.get(lease.key) is None
    return lease.owner


def ended_process() -> str:
    with subprocess.Popen(["true"]) as process:
        pass
    return str(process.pid)


@pytest.mark.parametrize("changes", [lambda: {"start": "1"}, lambda: {"pid": ended_process()}])
def test_a_dead_process_of_this_machine_is_replaced_at_once(
    client: redis.Redis, settings: Settings, own: str, changes: Callable[[], dict[str, str]]
) -> None:
    """A later process may have its id, as in a container, whose first process has id 1."""
    keys = settings.redis.keys
    client.set(keys.lease, owner_with(own, **changes()), px=60_000)
    with hold_lease(client, keys, 10) as lease:
        check_lease(client, lease)
        with pytest.raises(StateLocked, match="another stream job"), hold_lease(client, keys, 10):
            pass


@pytest.mark.parametrize("machine", ["other", ""])
def test_a_host_of_the_same_name_keeps_its_lease(
    client: redis.Redis, settings: Settings, own: str, machine: str
) -> None:
    """Its process has an id that no process has here."""
    holder = owner_with(own, pid=ended_process(), machine=machine)
    assert holder.startswith(f"{socket.gethostname()}/")
    client.set(settings.redis.keys.lease, holder, px=60_000)
    with (
        pytest.raises(StateLocked, match="another stream job"),
        hold_lease(client, settings.redis.keys, 1),
    ):
        pass
    assert client.get(settings.redis.keys.lease) == holder.encode()


@pytest.mark.parametrize("lost", ["taken", "expired"])
@pytest.mark.parametrize("fenced", [True, False], ids=["fenced", "control"])
def test_a_job_without_its_lease_changes_nothing(redis_url: str, lost: str, fenced: bool) -> None:
    config = apply_config(redis_url)
    lease = Lease(config.keys.lease, "owner")
    config = apply_config(redis_url, keys=config.keys, lease=lease if fenced else NO_LEASE)
    applier = Applier(config, NodeConnection(redis_url))
    with redis.Redis.from_url(redis_url) as client:
        load_functions(client)
        renew_lease(client, lease, 60)
        list(applier.apply("reviews", 0, LOG[:5]))
        if lost == "taken":
            client.set(lease.key, "another", px=60_000)
            with pytest.raises(StateLocked, match="another"):
                renew_lease(client, lease, 60)
        else:
            client.delete(lease.key)
        before = client.dump(config.keys.ledger("alice", "reviews"))
        if fenced:
            with pytest.raises(redis.ResponseError, match="LEASE"):
                list(applier.apply("reviews", 0, LOG[5:]))
            assert client.dump(config.keys.ledger("alice", "reviews")) == before
        else:
            list(applier.apply("reviews", 0, LOG[5:]))
        assert stored(client, config.keys, ["alice"]).counts.total() == (5 if fenced else 10)


@pytest.mark.spark
@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_suspended_job_ends_once_another_has_its_lease(
    client: redis.Redis, settings: Settings, tmp_path: Path
) -> None:
    stream, keys = StreamProcess(settings, tmp_path / "stream.log"), settings.redis.keys
    produce(settings, [event(event_id="before")])
    stream.start(AFTERCLICK_STREAM__LEASE_S="1", AFTERCLICK_STREAM__TRIGGER="real-time")
    stream.wait_applied()
    assert stream.popen
    job = psutil.Process(stream.popen.pid)
    family = [job, *job.children(recursive=True)]
    for process in family:
        process.suspend()
    wait_until(lambda: client.get(keys.lease) is None, 60, what="the lease to expire")
    with hold_lease(client, keys, 60):
        produce(settings, [event(item="later", event_id="later")])
        for process in family:
            process.resume()
        assert stream.popen.wait(120) == StateLocked.exit_code
        assert "took the lease" in stream.output()
        applied = applied_offsets(client, keys, log_ranges(settings.kafka))
        assert sum(offset + 1 for offset in applied.values()) == 1
