"""Every Redis key, named once. The part in braces is the cluster hash tag: one call, one slot.

{u:<user>}:history                zset    state.HistoryEntry → event time ms, the newest `history_length`
{u:<user>}:votes                  hash    item → newest event time of each action; '' → the first's
{u:<user>}:ledger:<topic>         zset    event id → state.place that first applied it, and two flags
{u:<user>}:corrections:<topic>    hash    event id of the ledger → what it corrected (JSON)
{u:<user>}:forgotten              string  event time ms up to which the user's events are refused
{u:<user>}:forgetting             string  the same, while forgetting is not finished
{p:<topic>:<partition>}:position  string  offset of the last applied record
{p:<topic>:<partition>}:announced string  offset up to which `state-changes` is known to have the changes
{p:<topic>:<partition>}:counts    hash    item → interactions of positive weight, exact, all time
{p:<topic>:<partition>}:uniques   hash    item → users with a positive action, exact, all time
{p:<topic>:<partition>}:trends    hash    item → packed decayed sums (trends.Trend)
{p:<topic>:<partition>}:taken     set     tokens of what was taken back of forgotten users
forgotten                         set     users of whom anything is forgotten: asked for many at once
lifted                            set     items an administrator has taken out of quarantine
lease                             string  the stream job that writes this state; expires
boundary                          string  when its last batch began, or another query took over; epoch seconds
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Keys:
    """The keys of one installation. `prefix` lets several share a server."""

    prefix: str = ""

    @property
    def lease(self) -> str:
        return f"{self.prefix}lease"

    @property
    def forgotten_users(self) -> str:
        return f"{self.prefix}forgotten"

    @property
    def lifted(self) -> str:
        return f"{self.prefix}lifted"

    @property
    def boundary(self) -> str:
        return f"{self.prefix}boundary"

    def user(self, user_id: str) -> str:
        return f"{self.prefix}{{u:{user_id}}}"

    def history(self, user_id: str) -> str:
        return f"{self.user(user_id)}:history"

    def votes(self, user_id: str) -> str:
        return f"{self.user(user_id)}:votes"

    def ledger(self, user_id: str, topic: str) -> str:
        return f"{self.user(user_id)}:ledger:{topic}"

    def corrections(self, user_id: str, topic: str) -> str:
        return f"{self.user(user_id)}:corrections:{topic}"

    def forgotten(self, user_id: str) -> str:
        return f"{self.user(user_id)}:forgotten"

    def forgetting(self, user_id: str) -> str:
        return f"{self.user(user_id)}:forgetting"

    def partition(self, topic: str, partition: int) -> str:
        return f"{self.prefix}{{p:{topic}:{partition}}}"

    def position(self, topic: str, partition: int) -> str:
        return f"{self.partition(topic, partition)}:position"

    def announced(self, topic: str, partition: int) -> str:
        return f"{self.partition(topic, partition)}:announced"

    def counts(self, topic: str, partition: int) -> str:
        return f"{self.partition(topic, partition)}:counts"

    def uniques(self, topic: str, partition: int) -> str:
        return f"{self.partition(topic, partition)}:uniques"

    def trends(self, topic: str, partition: int) -> str:
        return f"{self.partition(topic, partition)}:trends"

    def taken(self, topic: str, partition: int) -> str:
        return f"{self.partition(topic, partition)}:taken"
