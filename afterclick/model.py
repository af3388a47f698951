"""A published model as NumPy arrays: what candidates and features are computed from.

reads   artifact  item_ids, popularity, first_seen_ms, neighbour_items, neighbour_scores, same_day_items,
                  same_day_scores; where there: reach_items, reach_scores, als_item_factors, content,
                  content_words, content_word_vectors, tower_history, tower_targets
        manifest  parameters.als.alpha, parameters.als.reg, parameters.towers.ages

Rows of every array are items, but of those of words; a row number is an `item_index`. `−1` pads neighbour
lists. An item that ALS or content knows nothing of has a row of zeros there. Items that appeared later have
indices ≥ n; what they say of themselves is looked up in the vectors of words.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from afterclick.arrays import FloatArray, IntArray
from afterclick.artifact import Manifest, Throttle, load_array, no_throttle, read_manifest, verify
from afterclick.content import ItemContent, WordVectors, fit_together
from afterclick.errors import BadArtifact
from afterclick.towers import AGES_DAYS, TowerArrays

_STEP = 2000
_NEEDED = (
    "item_ids",
    "popularity",
    "first_seen_ms",
    "neighbour_items",
    "neighbour_scores",
    "same_day_items",
    "same_day_scores",
)
_OPTIONAL = (
    "reach_items",
    "reach_scores",
    "als_item_factors",
    "content",
    "content_words",
    "content_word_vectors",
    "tower_history",
    "tower_targets",
)
OF_WORDS = ("content_words", "content_word_vectors")
"""Arrays whose rows are words."""


@dataclass(frozen=True, eq=False)
class Model:
    """The arrays of one artifact. Share it between threads freely; change nothing in it."""

    version: str
    item_ids: NDArray[np.str_]
    """(n,)"""
    popularity: FloatArray
    """(n,) interactions of positive weight in training."""
    first_seen_ms: NDArray[np.float64]
    """(n,) event time of the item's first interaction; NaN where it has none."""
    neighbour_items: IntArray
    """(n, K) items bought by the same users, nearest first."""
    neighbour_scores: FloatArray
    """(n, K) cosine of the two items' user sets."""
    same_day_items: IntArray
    """(n, K) items reviewed by the same users on the same day."""
    same_day_scores: FloatArray
    """(n, K)"""
    factors: FloatArray | None = None
    """(n, k) ALS item factors."""
    content: FloatArray | None = None
    """(n, d) embeddings of title and categories, of length 1 or 0."""
    als_alpha: float = 1.0
    als_reg: float = 0.1
    reach_items: IntArray | None = None
    """(n, K) items that a walk of one or two steps over both kinds of neighbours leads to."""
    reach_scores: FloatArray | None = None
    """(n, K) how often, with weight on what is popular."""
    towers: TowerArrays | None = None
    """What the two towers have learned."""
    words: WordVectors | None = None
    """What each word adds to `content`: gives items that come later theirs."""
    index: dict[str, int] = field(init=False)
    """item_id → item_index."""
    log_popularity: FloatArray = field(init=False)
    """(n,) log2 of one more than `popularity`."""
    gram: NDArray[np.float64] | None = field(init=False)
    """(k, k) Yᵀ Y of the item factors, for fold-in."""
    spectrum: tuple[NDArray[np.float64], NDArray[np.float64]] | None = field(init=False)
    """(k,) eigenvalues and (k, k) eigenvectors of `gram`: for a cheap fold-in of few items."""
    norms: FloatArray | None = field(init=False)
    """(n,) lengths of the item factors; 0 where ALS does not know the item."""
    item_content: ItemContent | None = field(init=False)
    """`content` as it is looked up."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "index", _index(self.item_ids))
        object.__setattr__(self, "log_popularity", np.log2(1.0 + self.popularity))
        gram = spectrum = norms = None
        if self.factors is not None:
            gram = _gram(self.factors)
            spectrum = tuple(np.linalg.eigh(gram)) if np.isfinite(gram).all() else None
            norms = np.sqrt(np.einsum("ij,ij->i", self.factors, self.factors))
        object.__setattr__(self, "gram", gram)
        object.__setattr__(self, "spectrum", spectrum)
        object.__setattr__(self, "norms", norms)
        content = None if self.content is None else ItemContent.of(self.content)
        object.__setattr__(self, "item_content", content)

    def __len__(self) -> int:
        return len(self.item_ids)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays by the names of their files in an artifact."""
        found = {name: getattr(self, name) for name in _NEEDED}
        if self.reach_items is not None and self.reach_scores is not None:
            found |= {"reach_items": self.reach_items, "reach_scores": self.reach_scores}
        if self.factors is not None:
            found["als_item_factors"] = self.factors
        if self.content is not None:
            found["content"] = self.content
        if self.words is not None:
            found |= {"content_words": self.words.words, "content_word_vectors": self.words.vectors}
        if self.towers is not None:
            found |= {"tower_history": self.towers.history, "tower_targets": self.towers.targets}
        return found

    def save(self, folder: Path) -> None:
        """Write the arrays into an artifact's folder (inside the `fill` of artifact.write)."""
        for name, array in self.arrays().items():
            np.save(folder / f"{name}.npy", array, allow_pickle=False)

    def parameters(self) -> dict[str, Any]:
        """What belongs into the manifest's `parameters`."""
        found: dict[str, Any] = {"als": {"alpha": self.als_alpha, "reg": self.als_reg}}
        if self.towers is not None:
            found["towers"] = {"ages": self.towers.ages.tolist()}
        return found


def _gram(factors: FloatArray) -> NDArray[np.float64]:
    """Yᵀ Y in double precision, a block of rows at a time: the whole of Y as doubles is never in memory."""
    gram = np.zeros((factors.shape[1], factors.shape[1]))
    for start in range(0, len(factors), _STEP):
        block = factors[start : start + _STEP].astype(np.float64)
        gram += block.T @ block
    return gram


def _index(item_ids: NDArray[np.str_]) -> dict[str, int]:
    """item_id → row. In steps, between which other threads get the interpreter."""
    index: dict[str, int] = {}
    for start in range(0, len(item_ids), _STEP):
        index.update(zip(item_ids[start : start + _STEP].tolist(), count(start), strict=False))
    return index


def load(
    folder: Path, manifest_sha256: str | None = None, rest: Throttle = no_throttle
) -> tuple[Model, Manifest]:
    """The model of an artifact, after every hash was checked. Raises BadArtifact."""
    manifest = read_manifest(folder, manifest_sha256)
    verify(folder, manifest, rest)
    names = [*_NEEDED, *(n for n in _OPTIONAL if f"{n}.npy" in manifest.files)]
    arrays = {name: load_array(folder, name, rest) for name in names}
    _check(folder, arrays)
    als = manifest.parameters.get("als", {})
    factors = arrays.pop("als_item_factors", None)
    towers = _towers(folder, arrays, manifest)
    words = _words(folder, arrays)
    model = Model(
        version=manifest.version,
        factors=factors,
        towers=towers,
        words=words,
        als_alpha=float(als.get("alpha", 1.0)),
        als_reg=float(als.get("reg", 0.1)),
        **arrays,
    )
    return model, manifest


def _towers(
    folder: Path, arrays: dict[str, NDArray[Any]], manifest: Manifest
) -> TowerArrays | None:
    """Takes the towers' arrays out of `arrays`; None where the artifact has none."""
    history, targets = arrays.pop("tower_history", None), arrays.pop("tower_targets", None)
    if history is None or targets is None:
        return None
    ages = np.array(manifest.parameters.get("towers", {}).get("ages", []), np.float32)
    if len(ages) != len(AGES_DAYS) + 1 or targets.shape[1] != history.shape[1] + 1:
        raise BadArtifact(f"{folder}: the towers' parts do not fit together; train again")
    return TowerArrays(history, targets, ages)


def _words(folder: Path, arrays: dict[str, NDArray[Any]]) -> WordVectors | None:
    """Takes the arrays of words out of `arrays`; None where the artifact has none, as older ones."""
    words, vectors = arrays.pop("content_words", None), arrays.pop("content_word_vectors", None)
    if words is None or vectors is None:
        return None
    if not fit_together(words, vectors, arrays.get("content")):
        raise BadArtifact(
            f"{folder}: words, their vectors and content do not fit together; train again"
        )
    return WordVectors(words, vectors)


def _check(folder: Path, arrays: dict[str, NDArray[Any]]) -> None:
    rows = len(arrays["item_ids"])
    for name, array in arrays.items():
        if len(array) != rows and name not in OF_WORDS:
            raise BadArtifact(f"{folder / name}.npy: {len(array)} rows, item_ids has {rows}")
    for name in _finite(arrays):
        if not np.isfinite(arrays[name]).all():
            raise BadArtifact(f"{folder / name}.npy: holds NaN or infinity")
    for name in ("neighbour_items", "same_day_items", "reach_items"):
        if (
            name in arrays
            and arrays[name].size
            and not (-1 <= arrays[name].min() <= arrays[name].max() < rows)
        ):
            raise BadArtifact(f"{folder / name}.npy: an index is out of range")


def _finite(arrays: dict[str, NDArray[Any]]) -> Iterable[str]:
    return (n for n in arrays if n != "first_seen_ms" and arrays[n].dtype.kind == "f")
