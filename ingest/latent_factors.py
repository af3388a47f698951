"""Latent factors of items: a part of taste that no title, brand or category shows. Pure.

Drawn factors depend on the item id and a seed alone, so they are independent of everything else
that is known about an item. The generated shop uses them (`ingest/generate.py`): its purchases
reflect them, its catalogue does not. For another dataset they can be fitted to its reviews
(`ingest/co_reviews.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from statistics import NormalDist

import numpy as np

from afterclick.arrays import Float64Array

DIMENSIONS = 4
LATENT_STRENGTH = 2.0
"""Standard deviation over items of the latent part of a shopper's liking."""
SHOP_SEED = 7
"""Seed of the factors of generated shops."""
_NORMAL = NormalDist()
Factors = tuple[float, ...]
"""(DIMENSIONS,)"""


def gauss(seed: int, *parts: str) -> float:
    """A standard normal draw that depends on its arguments alone."""
    text = "\0".join((str(seed), *parts))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return _NORMAL.inv_cdf((int.from_bytes(digest) + 1) / (2**64 + 1))


@lru_cache(maxsize=100_000)
def drawn_factors(item_id: str) -> Factors:
    """The factors of an item of a generated shop, N(0, 1) each."""
    return tuple(gauss(SHOP_SEED, "latent", item_id, str(n)) for n in range(DIMENSIONS))


def of_length_one(vector: Float64Array) -> Float64Array:
    """(DIMENSIONS,) a shopper's factors: the direction of a normal draw."""
    length = float((vector**2).sum()) ** 0.5
    return np.asarray(vector / max(length, 1e-12))


@dataclass(frozen=True)
class LatentTaste:
    """The factors of all items, and how much they matter."""

    strength: float = LATENT_STRENGTH
    """Multiplies the inner product with a shopper's factors of length 1; 0 switches it off."""
    fitted: Mapping[str, Factors] | None = field(default=None, repr=False)
    """Fitted factors by item id; items without any have no latent part. None: drawn factors."""

    def liking(self, shopper: Factors, item_id: str) -> float:
        """The latent part of a shopper's liking of an item."""
        item = drawn_factors(item_id) if self.fitted is None else self.fitted.get(item_id, ())
        return self.strength * sum(a * b for a, b in zip(shopper, item, strict=False))
