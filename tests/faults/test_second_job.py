"""A second stream job on the same state is rejected; without lease and fence both count."""

from __future__ import annotations

import pytest
import redis

from afterclick.errors import StateLocked
from streaming.apply import Applier
from streaming.connection import NodeConnection, load_functions
from streaming.fault_points import FaultPoints
from streaming.lease import hold_lease
from tests.streaming.builders import apply_config, event, log_of, stored

LOG = log_of([event(item=f"item-{n}", event_id=str(n)) for n in range(10)])


@pytest.mark.parametrize("protected", [True, False])
def test_two_jobs_on_one_state(redis_url: str, protected: bool) -> None:
    config = apply_config(redis_url, faults=FaultPoints(fence=protected))
    appliers = [Applier(config, NodeConnection(redis_url)) for _ in range(2)]
    with redis.Redis.from_url(redis_url) as client:
        load_functions(client)
        keys = config.keys
        with hold_lease(client, keys, 10):
            if protected:
                with (
                    pytest.raises(StateLocked, match="another stream job"),
                    hold_lease(client, keys, 10),
                ):
                    pass
            for applier in appliers:  # the fence holds even without the lease
                list(applier.apply("reviews", 0, LOG))
        assert stored(client, config.keys, ["alice"]).counts.total() == (10 if protected else 20)
