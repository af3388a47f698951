"""Every Redis key, named once. The part in braces is the cluster hash tag: one call, one slot.

{u:<user>}:history                zset    state.HistoryEntry → event time ms, the newest `history_length`
{u:<user>}:ledger                 zset    event id → packed position that first applied it
{u:<user>}:items                  set     items with a positive action: "this user's first time here?"
{p:<topic>:<partition>}:position  string  offset of the last applied record
{p:<topic>:<partition>}:counts    hash    item → interactions of positive weight, exact, all time
{p:<topic>:<partition>}:uniques   hash    item → users with a positive action, exact, all time
{p:<topic>:<partition>}:trends    hash    item → packed decayed sums (trends.Trend)
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Keys:
    """The keys of one installation. `prefix` lets several share a server."""

    prefix: str = ""

    def user(self, user_id: str) -> str:
        return f"{self.prefix}{{u:{user_id}}}"

    def history(self, user_id: str) -> str:
        return f"{self.user(user_id)}:history"

    def ledger(self, user_id: str) -> str:
        return f"{self.user(user_id)}:ledger"

    def items(self, user_id: str) -> str:
        return f"{self.user(user_id)}:items"

    def partition(self, topic: str, partition: int) -> str:
        return f"{self.prefix}{{p:{topic}:{partition}}}"

    def position(self, topic: str, partition: int) -> str:
        return f"{self.partition(topic, partition)}:position"

    def counts(self, topic: str, partition: int) -> str:
        return f"{self.partition(topic, partition)}:counts"

    def uniques(self, topic: str, partition: int) -> str:
        return f"{self.partition(topic, partition)}:uniques"

    def trends(self, topic: str, partition: int) -> str:
        return f"{self.partition(topic, partition)}:trends"
