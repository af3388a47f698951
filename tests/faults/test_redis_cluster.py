"""The stream and its proofs refuse a Redis Cluster, on which they could not be exact."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import redis
from redis.exceptions import RedisClusterException

from afterclick.errors import BadInput
from afterclick.settings import Settings
from infra.embedded.server import ValkeyServer
from streaming.apply import Applier
from streaming.connection import ClusterConnection, load_functions
from streaming.job import run
from streaming.lease import Lease, renew_lease
from streaming.proof.forget_requests import forget
from streaming.proof.rebuild import rebuild
from streaming.proof.reconcile import reconcile
from tests.streaming.builders import apply_config, event, log_of
from tests.waiting import wait_until


class ClusterNode(ValkeyServer):
    """The only node of a cluster."""

    def command(self) -> Sequence[str | Path]:
        return [*super().command(), "--cluster-enabled", "yes"]


@pytest.fixture(scope="module")
def cluster_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    node = ClusterNode(tmp_path_factory.mktemp("cluster"))
    node.start()
    with redis.Redis.from_url(node.address) as client:
        client.execute_command("CLUSTER ADDSLOTSRANGE", "0", "16383")
        wait_until(lambda: client.cluster("info")["cluster_state"] == "ok", 60)
    yield node.address
    node.kill()


def start(settings: Settings) -> None:
    run(settings, threading.Event())


@pytest.mark.parametrize(
    "command", [start, rebuild, reconcile, lambda settings: forget(settings, "alice")]
)
def test_a_cluster_is_refused_before_anything_is_written(
    cluster_url: str, settings: Settings, command: Callable[[Settings], object]
) -> None:
    servers = settings.redis.model_copy(update={"url": cluster_url, "cluster": True})
    with pytest.raises(BadInput, match=r"AFTERCLICK_REDIS__CLUSTER.*one server"):
        command(settings.model_copy(update={"redis": servers}))
    with redis.Redis.from_url(cluster_url) as client:
        assert client.dbsize() == 0


def test_on_a_cluster_no_write_could_check_the_lease(cluster_url: str) -> None:
    """The control: what the stream would do without the refusal."""
    config = apply_config(cluster_url)
    with redis.RedisCluster.from_url(cluster_url) as client:
        load_functions(client)
        lease = Lease(config.keys.lease, "owner")
        renew_lease(client, lease, 60)
        config = apply_config(cluster_url, keys=config.keys, lease=lease)
        applier = Applier(config, ClusterConnection(cluster_url))
        with pytest.raises(RedisClusterException, match="slot"):
            list(applier.apply("reviews", 0, log_of([event()])))
