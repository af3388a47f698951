"""Every Redis key, named once. The part in braces names the user or the partition.

History, votes, ledgers and corrections of a user expire together, some time after the last event.

{u:<user>}:history                zset    state.HistoryEntry → event time ms, newest only
{u:<user>}:votes                  hash    item → newest event and trusted time of each action; '' →
                                          trusted time of the user's first event, log time of the
                                          newest
{u:<user>}:ledger:<topic>         zset    event id → state.pack_offset of its position, plus flags
{u:<user>}:corrections:<topic>    hash    event id of the ledger → its compensations (JSON)
{u:<user>}:forgotten              string  event time ms up to which the user's events are rejected
{u:<user>}:forgetting             string  the same, until forgetting has finished, and the offsets
                                          up to which the archive had the user's events
{u:<user>}:erased                 string  the last complete forgetting (state.Forgetting)
{u:<user>}:impression:<id>        hash    a list that the user was shown, and the reactions that
                                          joined it (streaming/exposures.lua); expires
{p:<topic>:<partition>}:exposed   string  offset up to which lists and reactions are counted
{p:<topic>:<partition>}:exposures:<day>
                                  hash    afterclick.exposures.Cell.field → its count; expires
{p:<topic>:<partition>}:position  string  applied offset: that of the last applied record
{p:<topic>:<partition>}:announced string  published offset: `state-changes` is complete up to it
{p:<topic>:<partition>}:attempt   string  offset and epoch ms of the record that a worker began with
{p:<topic>:<partition>}:counts    hash    item → interactions, exact, all time: events of positive
                                          weight, and reviews with stars
{p:<topic>:<partition>}:uniques   hash    item → users with a positive action, exact, all time
{p:<topic>:<partition>}:ratings   hash    item with reviews with stars → exact counts
                                          (state.StarCounts)
{p:<topic>:<partition>}:trends    hash    item → packed decayed sums (trends.Trend)
{p:<topic>:<partition>}:retracted hash    token of a forgetting → offset up to which the user's
                                          events are retracted; '0': the counts of lists
forgotten                         set     users with a forgotten past, for checks of many users
removed                           zset    items removed because the catalogue lacks them → when,
                                          epoch seconds; the newest only
lifted                            set     items approved by an administrator: never in quarantine
topics                            hash    topic → id of the topic that the applied offsets refer to
aside                             set     positions of records at which a partition stalled
weights                           string  weights that the state was computed with (JSON)
models                            zset    model version → when an API last used it, epoch seconds
archived                          hash    topic/partition → offset of its last archived record
lease                             string  owner of the stream job that writes this state; expires
running                           string  the lease's owner once its queries run; expires
heartbeats                        hash    process → when each of its loops is due, and the age from
                                          which it counts as frozen (JSON)
boundary                          string  start of the last batch or hand-over, epoch seconds
"""

from __future__ import annotations

from collections.abc import Iterable
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
    def topic_ids(self) -> str:
        return f"{self.prefix}topics"

    @property
    def set_aside(self) -> str:
        return f"{self.prefix}aside"

    @property
    def removed_items(self) -> str:
        return f"{self.prefix}removed"

    @property
    def weights(self) -> str:
        return f"{self.prefix}weights"

    @property
    def models_in_use(self) -> str:
        return f"{self.prefix}models"

    @property
    def archived(self) -> str:
        return f"{self.prefix}archived"

    @property
    def approved(self) -> str:
        return f"{self.prefix}lifted"

    @property
    def running(self) -> str:
        return f"{self.prefix}running"

    @property
    def heartbeats(self) -> str:
        return f"{self.prefix}heartbeats"

    @property
    def last_batch_at(self) -> str:
        return f"{self.prefix}boundary"

    def user(self, user_id: str) -> str:
        return f"{self.prefix}{{u:{user_id}}}"

    def history(self, user_id: str) -> str:
        return f"{self.user(user_id)}:history"

    def votes(self, user_id: str) -> str:
        return f"{self.user(user_id)}:votes"

    def ledger(self, user_id: str, topic: str) -> str:
        return f"{self.user(user_id)}:ledger:{topic}"

    def compensations(self, user_id: str, topic: str) -> str:
        return f"{self.user(user_id)}:corrections:{topic}"

    def forgotten(self, user_id: str) -> str:
        return f"{self.user(user_id)}:forgotten"

    def forgetting(self, user_id: str) -> str:
        return f"{self.user(user_id)}:forgetting"

    def erased(self, user_id: str) -> str:
        return f"{self.user(user_id)}:erased"

    def impression(self, user_id: str, impression_id: str) -> str:
        return f"{self.user(user_id)}:impression:{impression_id}"

    def state_of_user(self, user_id: str, topics: Iterable[str]) -> list[str]:
        """What the user's events have changed."""
        per_topic = [key(user_id, t) for t in topics for key in (self.ledger, self.compensations)]
        return [self.history(user_id), self.votes(user_id), *per_topic]

    def state_of_partition(self, topic: str, partition: int) -> list[str]:
        """What the partition's records have changed."""
        offsets = (self.applied_offset, self.published_offset)
        totals = (self.counts, self.uniques, self.ratings, self.trends)
        return [key(topic, partition) for key in (*offsets, *totals)]

    def partition(self, topic: str, partition: int) -> str:
        return f"{self.prefix}{{p:{topic}:{partition}}}"

    def applied_offset(self, topic: str, partition: int) -> str:
        return f"{self.partition(topic, partition)}:position"

    def published_offset(self, topic: str, partition: int) -> str:
        return f"{self.partition(topic, partition)}:announced"

    def attempt(self, topic: str, partition: int) -> str:
        return f"{self.partition(topic, partition)}:attempt"

    def counts(self, topic: str, partition: int) -> str:
        return f"{self.partition(topic, partition)}:counts"

    def uniques(self, topic: str, partition: int) -> str:
        return f"{self.partition(topic, partition)}:uniques"

    def ratings(self, topic: str, partition: int) -> str:
        return f"{self.partition(topic, partition)}:ratings"

    def trends(self, topic: str, partition: int) -> str:
        return f"{self.partition(topic, partition)}:trends"

    def exposed_offset(self, topic: str, partition: int) -> str:
        return f"{self.partition(topic, partition)}:exposed"

    def exposures(self, topic: str, partition: int, day: str) -> str:
        return f"{self.partition(topic, partition)}:exposures:{day}"

    def retractions(self, topic: str, partition: int) -> str:
        return f"{self.partition(topic, partition)}:retracted"
