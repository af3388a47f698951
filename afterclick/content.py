"""Content vectors: what items say of themselves, also those that came after the model. NumPy only.

training/content.py learns them. The vector of a text is the unit-length sum of the vectors of its words, so
that an item has one as soon as its title is known.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from afterclick.arrays import FloatArray, IntArray

_WORD = re.compile(r"\b\w\w+\b")
"""As scikit-learn's TfidfVectorizer takes texts apart, once they are in lower case."""


def text_of(title: str | None, categories: Iterable[str]) -> str:
    """Title and categories of an item in one line, empty where nothing is known."""
    return ". ".join(filter(None, [title, ", ".join(categories)]))


@dataclass(frozen=True, eq=False)
class WordVectors:
    """What each word adds to the content vector of a text."""

    words: NDArray[np.str_]
    """(V,) in lower case, each once; stop words are not among them"""
    vectors: FloatArray
    """(V, d)"""
    index: dict[str, int] = field(init=False)
    """word → row"""

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "index", {word: row for row, word in enumerate(self.words.tolist())}
        )

    def vector(self, text: str) -> FloatArray:
        """(d,) float32 of length 1, or 0 where no word is known: unit(Σ (1 + ln tf) · vectors[word])."""
        times = Counter(word for word in _WORD.findall(text.lower()) if word in self.index)
        rows = np.array([self.index[word] for word in times], np.intp)
        weights = 1.0 + np.log(np.array(list(times.values()), np.float32))
        total = weights @ self.vectors[rows]
        length = np.linalg.norm(total)
        return np.asarray(total / length if length > 0 else total, np.float32)


def fit_together(words: NDArray[Any], vectors: NDArray[Any], content: NDArray[Any] | None) -> bool:
    """Whether words (V,) are strings, and their vectors (V, d) as wide as the content (n, d) of items."""
    strings = words.dtype.kind == "U" and words.ndim == 1
    return strings and content is not None and vectors.shape == (len(words), content.shape[1])


@dataclass(frozen=True, eq=False)
class ItemContent:
    """Content of the items of a model and of those that came after it, by item index."""

    vectors: FloatArray
    """(n, d) of the model's items, of length 1 or 0"""
    described: NDArray[np.bool_]
    """(n,) whether each of them has content"""
    late: FloatArray
    """(m - n, d) of the items that came after the model; (0, d) where there are none"""
    _described: NDArray[np.bool_] = field(init=False)
    """(m + 1,) of all items; the last stands for any index beyond"""

    def __post_init__(self) -> None:
        every = np.concatenate([self.described, self.late.any(axis=1), [False]])
        object.__setattr__(self, "_described", every)

    @classmethod
    def of(cls, vectors: FloatArray) -> ItemContent:
        """Of the model's items (n, d) alone."""
        return cls(vectors, np.asarray(vectors.any(axis=1)), vectors[:0])

    def with_late(self, late: FloatArray) -> ItemContent:
        """With these items (m − n, d) after the model's."""
        return ItemContent(self.vectors, self.described, late)

    def has(self, items: IntArray) -> NDArray[np.bool_]:
        """(len(items),) whether each has content."""
        return self._described.take(items, mode="clip")

    def row(self, item: int) -> FloatArray | None:
        """(d,) the vector of one item; None where nothing is known of it."""
        if not self._described.take(item, mode="clip"):
            return None
        late = item - len(self.vectors)
        found: FloatArray = self.vectors[item] if late < 0 else self.late[late]
        return found

    def rows(self, items: IntArray) -> FloatArray:
        """(len(items), d) their vectors; zeros for an item of which nothing is known."""
        n = len(self.vectors)
        if items.max(initial=-1) < n:
            return self.vectors.take(items, axis=0)
        found = self.vectors.take(items, axis=0, mode="clip")
        after = np.flatnonzero(items >= n)
        found[after] = 0.0
        after = after[items[after] < n + len(self.late)]
        found[after] = self.late[items[after] - n]
        return found
