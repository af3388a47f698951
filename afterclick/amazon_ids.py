"""Tell users from items in Amazon's ratings files, which have no header.

The collection of 2014 has the user first, that of 2018 the item.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_PRODUCT = re.compile(r"B[0-9A-Z]{9}|[0-9]{9}[0-9X]")
"""An Amazon product id (ASIN or ISBN)."""
_REVIEWER = re.compile(r"A[0-9A-Z]{11,}")
"""An Amazon user id."""


def user_and_item(rows: Sequence[Sequence[str]]) -> tuple[int, int] | None:
    """The columns (0 or 1) of user and item, by how most ids of these rows look; None if neither.

    `rows`: the first fields of some lines.
    """
    for user, item in ((0, 1), (1, 0)):
        users = sum(bool(_REVIEWER.fullmatch(row[user])) for row in rows)
        items = sum(bool(_PRODUCT.fullmatch(row[item])) for row in rows)
        if users + items > len(rows):
            return user, item
    return None
