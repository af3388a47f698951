"""A second stream job on the same state is refused; without lease and fence both would count."""

from __future__ import annotations

import pytest
import redis

from afterclick.errors import StateLocked
from streaming import lease
from streaming.apply import Applier
from streaming.connection import NodeConnection, load_functions
from streaming.job import function_library
from tests.streaming.builders import event, log_of, plan, stored

LOG = log_of([event(item=f"item-{n}", event_id=str(n)) for n in range(10)])


@pytest.mark.parametrize("protected", [True, False])
def test_two_jobs_on_one_state(redis_url: str, protected: bool) -> None:
    the_plan = plan(redis_url, fence=protected)
    appliers = [Applier(the_plan, NodeConnection(redis_url)) for _ in range(2)]
    with redis.Redis.from_url(redis_url) as client:
        load_functions(client, function_library())
        key = the_plan.keys.lease
        with lease.held(client, key, 10):
            if protected:
                with (
                    pytest.raises(StateLocked, match="another stream job"),
                    lease.held(client, key, 10),
                ):
                    pass
            for applier in appliers:  # even if the lease were lost, the fence would hold
                list(applier.apply("reviews", 0, LOG))
        assert stored(client, the_plan.keys, ["alice"]).counts.total() == (10 if protected else 20)
