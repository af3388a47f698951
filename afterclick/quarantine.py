"""Items pushed by new accounts: found, and left with what established users say of them.

In a shop as it is, established users cast about the same share of the votes of every popular item. Where new
accounts cast many more than that on one item, it is pushed, or cannot be told from one that is. As long as it
lasts only the votes of established users count for it, times what makes up for the new ones of an ordinary
item: so an item that is wrongly suspected keeps about the trend it has earned.

Accounts that push one item vote for others, too, to look like anybody. No item shows that, but their number
does: where new accounts together cast more votes of a half-life than they usually do, they are counted as if
they had cast the usual number, and in an item's heat that half-life counts for less beside longer ones, which
remember the time before.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from afterclick.arrays import Float64Array
from afterclick.trends import TREND_MIX

ESTABLISHED_DAYS = 7.0
_ACTIVE = 20.0
"""Decayed weight by the longest half-life from which on an item's share is looked at."""
_FEWEST = 20
"""So many active items make a shop whose usual share is known."""
_DOUBT = 2
"""Power of the trust in a half-life that its weight in the heat is multiplied by."""


@dataclass(frozen=True)
class QuarantineLimits:
    """How much new accounts may do."""

    slack: float = 4.0
    """An item may have this many times the votes that its established users stand for; 0: no bound."""
    free: float = 20.0
    """And this weight of votes more, whoever casts them: items begin with nobody."""


@dataclass(frozen=True)
class LimitedTrends:
    """The trends of the catalogue as they may be used."""

    values: Float64Array
    """(m, H) decayed sums: of suspected items what established users stand for, of all as `trust` has it"""
    held: NDArray[np.bool_]
    """(m,) items in quarantine"""
    kept: Float64Array
    """(m,) how much of the longest half-life, which forgets a push last, is left"""
    share: float
    """The established users' usual share of the votes on an item; 0 where it is not known yet."""
    trust: Float64Array
    """(H,) what a new account's vote counts: 1 where they cast no more than they usually do, or where that is
    not known"""

    @property
    def weights(self) -> Float64Array:
        """(H,) what each half-life counts for in an item's heat."""
        return TREND_MIX * self.trust**_DOUBT


def guard(
    votes: Float64Array,
    established: Float64Array,
    bounds: QuarantineLimits,
    lifted: NDArray[np.intp] | None = None,
) -> LimitedTrends:
    """Hold back the items whose votes, by any half-life, exceed what their established users support.

    `votes` and `established` (m, H): the decayed sums of all votes and of established users' alone. `lifted`:
    rows that an administrator vouches for.
    """
    share = usual_share(votes, established)
    if share == 0.0 or bounds.slack == 0.0:
        full = np.ones(votes.shape[1])
        return LimitedTrends(votes, np.zeros(len(votes), bool), np.ones(len(votes)), share, full)
    vouched = np.maximum(established, 0.0)  # who skips an item votes against it
    supported = vouched / share
    over = votes > bounds.slack * supported + bounds.free
    if lifted is not None:
        over[lifted] = False
    values = np.where(over, supported, votes)
    kept = np.divide(values[:, -1], votes[:, -1], out=np.ones(len(votes)), where=over[:, -1])
    new = np.maximum(values - vouched, 0.0)
    if lifted is not None:
        new[lifted] = 0.0
    trust = _trust(new.sum(axis=0), vouched.sum(axis=0), share, bounds)
    if (trust < 1.0).any():
        values = values - new * (1.0 - trust)
    return LimitedTrends(values, np.asarray(over.any(axis=1)), kept, share, trust)


def _trust(
    new: Float64Array, established: Float64Array, share: float, bounds: QuarantineLimits
) -> Float64Array:
    """(H,) from the sums of all items by new accounts and by established users."""
    usual = established * (1.0 - share) / share + bounds.free
    return np.divide(usual, new, out=np.ones_like(new), where=new > usual)


def usual_share(votes: Float64Array, established: Float64Array) -> float:
    """The median, over the active items, of the share that established users have in the longest half-life.

    A median, and of months: who wants to move it has to vote on half of the shop for weeks.
    """
    active = votes[:, -1] >= _ACTIVE
    if active.sum() < _FEWEST:
        return 0.0
    return float(np.clip(np.median(established[active, -1] / votes[active, -1]), 0.0, 1.0))
