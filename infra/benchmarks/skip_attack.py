"""Skips by fake accounts on one item of the list of new visitors: does it lose its rank?

Each account first has an undo, which has no weight, dated a year back. The control believes such
dates: its accounts are established.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from afterclick.arrays import Int64Array
from afterclick.events import Action
from afterclick.quarantine import QuarantineLimits
from afterclick.settings import StreamSettings
from afterclick.trends import DAY_MS
from infra.benchmarks.harness import Figures
from infra.benchmarks.trend_attack import BACKDATED_DAYS, TrendMoment, votes_of
from training.event_log import EventLog
from training.interactions import Interactions

SKIPS = 1_000
VOTES = 60.0
"""The attacked item is the one whose trend over the longest half-life is next to this."""


@dataclass(frozen=True)
class SkipAttack:
    """Skips on an item, at the end of the log before a moment."""

    moment: TrendMoment
    item: int
    skips: int = SKIPS

    @classmethod
    def of(cls, moment: TrendMoment) -> SkipAttack:
        """An attack on an eligible item with about VOTES votes."""
        distance = np.abs(moment.votes[:, -1] - VOTES)
        return cls(moment, int(np.where(moment.split.eligible, distance, np.inf).argmin()))

    def events(self, guards: bool) -> EventLog:
        """With guards, accounts are as old as the log says; without, as the events say."""
        end_ms = self.moment.split.cut_ms - 1
        first = self._rows(Action.UNDO, end_ms - BACKDATED_DAYS * int(DAY_MS))
        if guards:
            first = replace(first, trusted_ms=np.full(len(first), end_ms))
        return first.merged(self._rows(Action.SKIP, end_ms))

    def _rows(self, action: Action, time_ms: int) -> EventLog:
        weight, past = StreamSettings().weights[action], self.moment.past
        rows = Interactions(
            user_ids=np.concatenate([past.user_ids, [f"fake-{n}" for n in range(self.skips)]]),
            item_ids=past.item_ids,
            user=len(past.user_ids) + np.arange(self.skips, dtype=np.int32),
            item=np.full(self.skips, self.item, np.int32),
            time_ms=np.full(self.skips, time_ms),
            weight=np.full(self.skips, weight, np.float32),
        )
        return EventLog.of(rows, np.zeros(self.skips, bool), action)

    def rank(self, guards: bool) -> int:
        """Rank of the item after the attack, from 1."""
        moment, log = self.moment, self.events(guards)
        votes, established = votes_of(log, moment.split.cut_ms)
        order = moment.ranking(
            moment.votes + votes, moment.established + established, QuarantineLimits()
        )
        return _rank(order, self.item)

    def row(self) -> Figures:
        moment = self.moment
        before = moment.ranking(moment.votes, moment.established, QuarantineLimits())
        return {
            "day": moment.day,
            "votes": round(float(moment.votes[self.item, -1]), 1),
            "rank_before": _rank(before, self.item),
            "rank": self.rank(guards=True),
            "rank_without_guards": self.rank(guards=False),
        }


def attack_with_skips(moments: Sequence[TrendMoment]) -> Figures:
    """A row per moment, and the most ranks that the item loses, with and without guards."""
    rows = [SkipAttack.of(moment).row() for moment in moments]
    return {
        "skips": SKIPS,
        "ranks_lost": max(row["rank"] - row["rank_before"] for row in rows),
        "ranks_lost_without_guards": max(
            row["rank_without_guards"] - row["rank_before"] for row in rows
        ),
        "rows": rows,
    }


def _rank(order: Int64Array, item: int) -> int:
    return int(np.flatnonzero(order == item)[0]) + 1
