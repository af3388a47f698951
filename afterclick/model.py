"""A published model as NumPy arrays: everything that candidates and features are computed from.

reads   artifact  item_ids, popularity, first_seen_ms, neighbour_items, neighbour_scores,
                  same_day_items, same_day_scores; optional: reach_items, reach_scores,
                  transition_items, transition_scores,
                  als_item_factors, content, content_words, content_word_vectors,
                  tower_history, tower_targets, tower_inputs, tower_positions, tower_norms,
                  tower_attention, tower_swiglu, ncf_history, ncf_targets, ncf_hidden,
                  ncf_layers
        manifest  parameters.als.alpha, parameters.als.reg, parameters.towers.ages,
                  parameters.ncf.ages

Row numbers of arrays are item indices (`item_index`), except in NOT_BY_ITEM. −1 pads neighbour
lists. An item unknown to ALS or without content has a row of zeros there. Items that came after the
training have indices ≥ n; their content vectors are computed from word vectors.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from afterclick.arrays import AnyArray, BoolArray, Float64Array, FloatArray, IntArray
from afterclick.artifact import Manifest, Throttle, load_array, no_throttle, read_manifest, verify
from afterclick.errors import BadArtifact
from afterclick.kernels import as_items, as_vector, products, tower_vector
from afterclick.ncf import NcfArrays
from afterclick.sequence_encoder import AGES_DAYS, AGES_MS, SequenceEncoder
from afterclick.transitions import TransitionGraph

_STEP = 2000
"""Rows per step of a long loop; other threads get the interpreter between two steps."""
_NEEDED = (
    "item_ids",
    "popularity",
    "first_seen_ms",
    "neighbour_items",
    "neighbour_scores",
    "same_day_items",
    "same_day_scores",
)
ENCODER_ARRAYS = tuple(f"tower_{field.name}" for field in fields(SequenceEncoder))
"""Weights of the sequence model's block."""
_NCF = ("history", "targets", "hidden", "layers")
"""Attributes of NcfArrays that are files, with `ncf_` before them."""
NCF_ARRAYS = tuple(f"ncf_{name}" for name in _NCF)
_OPTIONAL = (
    "reach_items",
    "reach_scores",
    "transition_items",
    "transition_scores",
    "als_item_factors",
    "content",
    "content_words",
    "content_word_vectors",
    "tower_history",
    "tower_targets",
    *ENCODER_ARRAYS,
    *NCF_ARRAYS,
)
_OF_PARTS = (
    "content_words",
    "content_word_vectors",
    "tower_history",
    "tower_targets",
    *ENCODER_ARRAYS,
    *NCF_ARRAYS,
)
"""Arrays of `Model.words`, `Model.towers` and `Model.ncf`."""
_ATTRIBUTES = {
    "same_day_items": "co_purchase_items",
    "same_day_scores": "co_purchase_scores",
    "reach_items": "random_walk_items",
    "reach_scores": "random_walk_scores",
    "als_item_factors": "factors",
}
"""File → attribute of Model, where the names differ."""
_INDEX_ARRAYS = ("neighbour_items", "same_day_items", "reach_items", "transition_items")
_INDICES = ("neighbour_items", "co_purchase_items", "random_walk_items", "transition_items")
_NUMBERS = (
    "popularity",
    "neighbour_scores",
    "co_purchase_scores",
    "random_walk_scores",
    "transition_scores",
    "factors",
    "content",
)
NOT_BY_ITEM = ("content_words", "content_word_vectors", *ENCODER_ARRAYS, "ncf_layers")
"""Arrays whose rows are not items."""
_WEIGHTED_HISTORY = 10
"""Newest items of a history that a user tower without an encoder reads."""
UNKNOWN_BIAS = -100.0
"""The bias of an item that the towers did not learn: below every other score."""
_WORD = re.compile(r"\b\w\w+\b")
"""As scikit-learn's TfidfVectorizer splits lower-case text."""


def text_of(title: str | None, categories: Iterable[str]) -> str:
    """Title and categories of an item as one line; empty where both are unknown."""
    return ". ".join(filter(None, [title, ", ".join(categories)]))


@dataclass(frozen=True, eq=False)
class WordVectors:
    """The contribution of each word to a text's content vector (training/models/content.py)."""

    words: NDArray[np.str_]
    """(V,) in lower case, without repeats and stop words"""
    vectors: FloatArray
    """(V, d)"""
    index: dict[str, int] = field(init=False)
    """word → row"""

    def __post_init__(self) -> None:
        index = {word: row for row, word in enumerate(self.words.tolist())}
        object.__setattr__(self, "index", index)

    def vector(self, text: str) -> FloatArray:
        """(d,) unit(Σ (1 + ln tf) · vectors[word]); zeros where no word is known."""
        times = Counter(word for word in _WORD.findall(text.lower()) if word in self.index)
        rows = np.array([self.index[word] for word in times], np.intp)
        weights = 1.0 + np.log(np.array(list(times.values()), np.float32))
        total = weights @ self.vectors[rows]
        length = np.linalg.norm(total)
        return np.asarray(total / length if length > 0 else total, np.float32)


def fit_together(words: AnyArray, vectors: AnyArray, content: AnyArray | None) -> bool:
    """Whether words (V,) are strings, and their vectors (V, d) as wide as the content (n, d)."""
    strings = words.dtype.kind == "U" and words.ndim == 1
    return strings and content is not None and vectors.shape == (len(words), content.shape[1])


@dataclass(frozen=True, eq=False)
class ItemContent:
    """Content vectors of a model's items and of new items (unknown to the model), by item index."""

    vectors: FloatArray
    """(n, d) of the model's items, of length 1 or 0"""
    described: BoolArray
    """(n,) whether each of them has content"""
    new: FloatArray
    """(m - n, d) of the new items; (0, d) without any"""
    known: BoolArray = field(init=False)
    """(m + 1,) whether an item has content; the last element stands for any index beyond"""

    def __post_init__(self) -> None:
        every = np.concatenate([self.described, self.new.any(axis=1), [False]])
        object.__setattr__(self, "known", every)

    @classmethod
    def of(cls, vectors: FloatArray) -> ItemContent:
        """Of the model's items (n, d) alone."""
        return cls(vectors, np.asarray(vectors.any(axis=1)), vectors[:0])

    def with_new(self, vectors: FloatArray) -> ItemContent:
        """With new items (m - n, d) after the model's."""
        return ItemContent(self.vectors, self.described, vectors)

    def has(self, items: IntArray) -> BoolArray:
        """(len(items),) whether each has content."""
        return self.known.take(items, mode="clip")

    def row(self, item: int) -> FloatArray | None:
        """(d,) the vector of one item; None without content."""
        if not self.known.take(item, mode="clip"):
            return None
        n = len(self.vectors)
        vector: FloatArray = self.vectors[item] if item < n else self.new[item - n]
        return vector

    def rows(self, items: IntArray) -> FloatArray:
        """(len(items), d) their vectors; zeros for items without content."""
        n = len(self.vectors)
        if items.max(initial=-1) < n:
            return self.vectors.take(items, axis=0)
        vectors = self.vectors.take(items, axis=0, mode="clip")
        after = np.flatnonzero(items >= n)
        vectors[after] = 0.0
        after = after[items[after] < n + len(self.new)]
        vectors[after] = self.new[items[after] - n]
        return vectors


def _no_ages() -> FloatArray:
    return np.ones(len(AGES_DAYS) + 1, np.float32)


@dataclass(frozen=True, eq=False)
class TowerArrays:
    """User and item vectors of the neural model; an item's logit is their inner product."""

    history: FloatArray
    """(n, d) input of the user tower for an item of the history; zeros where unknown"""
    targets: FloatArray
    """(n, d + 1) item vectors, scaled by the temperature; the last column is the item's bias"""
    ages: FloatArray = field(default_factory=_no_ages)
    """(len(AGES_DAYS) + 1,) without an encoder: weight of an item of the history by its age"""
    encoder: SequenceEncoder | None = None
    """None in artifacts of earlier versions: the user's vector is a weighted sum"""
    known: BoolArray = field(init=False)
    """(n,) items that have a vector"""

    def __post_init__(self) -> None:
        for name in ("history", "targets", "ages"):
            object.__setattr__(self, name, as_vector(getattr(self, name)))
        object.__setattr__(self, "known", self.targets[:, -1] > UNKNOWN_BIAS)

    def user(
        self, items: IntArray, weights: FloatArray, times_ms: Float64Array, now_ms: float
    ) -> FloatArray | None:
        """(d + 1,) a unit vector and a one (for the bias) from a history, newest first.

        None where no item of the history is known.
        """
        newest = slice(_WEIGHTED_HISTORY if self.encoder is None else None)
        times = np.ascontiguousarray(times_ms[newest], np.float64)
        past = as_items(items[newest]), as_vector(weights[newest]), times
        if self.encoder is None:
            user = tower_vector(self.history, (AGES_MS, self.ages), past, float(now_ms))
        else:
            user = self.encoder.user((self.history, self.known), past, float(now_ms))
        return user if len(user) else None

    def logits(self, users: FloatArray, items: IntArray) -> FloatArray:
        """(len(items),) logits of items for a user (d + 1,); (u, len(items)) for users (u, d + 1).

        NaN for items without a vector.
        """
        queries = as_vector(np.atleast_2d(users))
        logits = np.empty((len(queries), len(items)), np.float32)
        out = logits, np.arange(len(queries), dtype=np.int32)
        products((self.targets, self.targets[:0]), self.known, as_items(items), queries, out)
        return logits if users.ndim > 1 else logits[0]


@dataclass(frozen=True, eq=False)
class Model:
    """The arrays of one artifact. Immutable, so that threads may share it."""

    version: str
    item_ids: NDArray[np.str_]
    """(n,)"""
    popularity: FloatArray
    """(n,) interactions of positive weight in training."""
    first_seen_ms: Float64Array
    """(n,) event time of the item's first interaction; NaN without one."""
    neighbour_items: IntArray
    """(n, K) items with the same users, most similar first."""
    neighbour_scores: FloatArray
    """(n, K) cosine of the two items' user sets."""
    co_purchase_items: IntArray
    """(n, K) items that the same users interacted with on the same day."""
    co_purchase_scores: FloatArray
    """(n, K)"""
    factors: FloatArray | None = None
    """(n, k) ALS item factors."""
    content: FloatArray | None = None
    """(n, d) embeddings of title and categories, of length 1 or 0."""
    als_alpha: float = 1.0
    als_reg: float = 0.1
    random_walk_items: IntArray | None = None
    """(n, K) items reached by a random walk over both kinds of neighbours (RP3β)."""
    random_walk_scores: FloatArray | None = None
    """(n, K) visits by the walk, weighted by popularity."""
    transition_items: IntArray | None = None
    """(n, K) items that users took after an item, best first."""
    transition_scores: FloatArray | None = None
    """(n, K) how often, by distance: see training/models/transition_graph.py."""
    towers: TowerArrays | None = None
    words: WordVectors | None = None
    """Computes `content` of new items."""
    ncf: NcfArrays | None = None
    resolution_ms: float = 1.0
    """Resolution of the event times in training: a millisecond, or a day."""
    phase_ms: float = 0.0
    """Event times in training are multiples of the resolution plus this."""
    index: dict[str, int] = field(init=False)
    """item_id → item_index."""
    log_popularity: FloatArray = field(init=False)
    """(n,) log2(1 + popularity); NaN without interactions."""
    gram: Float64Array | None = field(init=False)
    """(k, k) Yᵀ Y of the item factors, for fold-in."""
    spectrum: tuple[Float64Array, Float64Array] | None = field(init=False)
    """(k,) eigenvalues and (k, k) eigenvectors of `gram`, for fold-in of short histories."""
    norms: FloatArray | None = field(init=False)
    """(n,) norms of the item factors; 0 for items unknown to ALS."""
    rated: BoolArray | None = field(init=False)
    """(n,) whether ALS knows an item."""
    item_content: ItemContent | None = field(init=False)
    """Lookup of `content`."""

    def __post_init__(self) -> None:
        for names, convert in ((_INDICES, as_items), (_NUMBERS, as_vector)):
            for name in names:
                if (array := getattr(self, name)) is not None:
                    object.__setattr__(self, name, convert(array))
        object.__setattr__(self, "index", _index(self.item_ids))
        known = np.where(self.popularity > 0, self.popularity, np.float32(np.nan))
        object.__setattr__(self, "log_popularity", np.log2(1.0 + known))
        gram = spectrum = norms = None
        if self.factors is not None:
            gram = _gram(self.factors)
            finite = np.isfinite(gram).all()
            spectrum = tuple(map(np.ascontiguousarray, np.linalg.eigh(gram))) if finite else None
            norms = np.sqrt(np.einsum("ij,ij->i", self.factors, self.factors))
        object.__setattr__(self, "gram", gram)
        object.__setattr__(self, "spectrum", spectrum)
        object.__setattr__(self, "norms", norms)
        object.__setattr__(self, "rated", None if norms is None else norms > 0)
        content = None if self.content is None else ItemContent.of(self.content)
        object.__setattr__(self, "item_content", content)

    def __len__(self) -> int:
        return len(self.item_ids)

    def at_resolution(self, times_ms: Float64Array | float) -> Float64Array:
        """Event times (n,) rounded down to the resolution of training."""
        steps = np.floor((times_ms - self.phase_ms) / self.resolution_ms)
        return np.asarray(steps * self.resolution_ms + self.phase_ms)

    @cached_property
    def transitions(self) -> TransitionGraph | None:
        """The transition graph; None without one."""
        if self.transition_items is None or self.transition_scores is None:
            return None
        return TransitionGraph(self.transition_items, self.transition_scores)

    @cached_property
    def first_seen_rounded_ms(self) -> Float64Array:
        """(n,) `first_seen_ms` at the model's resolution."""
        return self.at_resolution(self.first_seen_ms)

    def arrays(self) -> dict[str, AnyArray]:
        """The arrays by their file names in an artifact."""
        files = (*_NEEDED, *(name for name in _OPTIONAL if name not in _OF_PARTS))
        every = {name: getattr(self, _ATTRIBUTES.get(name, name)) for name in files}
        arrays = {name: array for name, array in every.items() if array is not None}
        if self.words is not None:
            arrays |= {
                "content_words": self.words.words,
                "content_word_vectors": self.words.vectors,
            }
        if self.towers is not None:
            arrays |= {"tower_history": self.towers.history, "tower_targets": self.towers.targets}
            if (encoder := self.towers.encoder) is not None:
                arrays |= {f"tower_{name}": array for name, array in encoder.arrays().items()}
        if self.ncf is not None:
            arrays |= {f"ncf_{name}": getattr(self.ncf, name) for name in _NCF}
        return arrays

    def save(self, folder: Path) -> None:
        """Write the arrays into an artifact's folder, within the `fill` of `artifact.write`."""
        for name, array in self.arrays().items():
            np.save(folder / f"{name}.npy", array, allow_pickle=False)

    def parameters(self) -> dict[str, Any]:
        """The manifest's `parameters`."""
        parameters: dict[str, Any] = {
            "als": {"alpha": self.als_alpha, "reg": self.als_reg},
            "times": {"resolution_ms": self.resolution_ms, "phase_ms": self.phase_ms},
        }
        if self.towers is not None:
            parameters["towers"] = {"ages": self.towers.ages.tolist()}
        if self.ncf is not None:
            parameters["ncf"] = {"ages": self.ncf.ages.tolist()}
        return parameters


def _gram(factors: FloatArray) -> Float64Array:
    """Yᵀ Y in double precision, a block of rows at a time to save memory."""
    gram = np.zeros((factors.shape[1], factors.shape[1]))
    for start in range(0, len(factors), _STEP):
        block = factors[start : start + _STEP].astype(np.float64)
        gram += block.T @ block
    return gram


def _index(item_ids: NDArray[np.str_]) -> dict[str, int]:
    """item_id → row."""
    index: dict[str, int] = {}
    for start in range(0, len(item_ids), _STEP):
        index.update(zip(item_ids[start : start + _STEP].tolist(), count(start), strict=False))
    return index


def load(
    folder: Path,
    manifest_sha256: str | None = None,
    throttle: Throttle = no_throttle,
    *,
    mapped: bool = False,
) -> tuple[Model, Manifest]:
    """The model of an artifact; every hash is checked first. Raises BadArtifact.

    `mapped`: processes that load the same artifact share its arrays (`artifact.load_array`).
    """
    manifest = read_manifest(folder, manifest_sha256)
    verify(folder, manifest, throttle)
    names = [*_NEEDED, *(n for n in _OPTIONAL if f"{n}.npy" in manifest.files)]
    arrays = {name: load_array(folder, name, throttle, mapped=mapped) for name in names}
    _check(folder, arrays)
    als, times = (manifest.parameters.get(name, {}) for name in ("als", "times"))
    towers, ncf = _towers(folder, arrays, manifest), _ncf(folder, arrays, manifest)
    words = _words(folder, arrays)
    model = Model(
        version=manifest.version,
        towers=towers,
        words=words,
        ncf=ncf,
        als_alpha=float(als.get("alpha", 1.0)),
        als_reg=float(als.get("reg", 0.1)),
        resolution_ms=float(times.get("resolution_ms", 1.0)),
        phase_ms=float(times.get("phase_ms", 0.0)),
        **{_ATTRIBUTES.get(name, name): array for name, array in arrays.items()},
    )
    return model, manifest


def _towers(folder: Path, arrays: dict[str, AnyArray], manifest: Manifest) -> TowerArrays | None:
    """Remove the towers' arrays from `arrays`; None where the artifact has none."""
    history, targets = arrays.pop("tower_history", None), arrays.pop("tower_targets", None)
    weights = [array for name in ENCODER_ARRAYS if (array := arrays.pop(name, None)) is not None]
    if history is None or targets is None:
        return None
    ages = np.array(manifest.parameters.get("towers", {}).get("ages", []), np.float32)
    if len(ages) != len(AGES_DAYS) + 1 or targets.shape[1] != history.shape[1] + 1:
        raise BadArtifact(f"{folder}: arrays of the two towers differ in shape; train again")
    if not weights:
        return TowerArrays(history, targets, ages)
    try:
        encoder = SequenceEncoder(*weights)
    except (TypeError, ValueError) as error:
        raise BadArtifact(
            f"{folder}: weights of the sequence model: {error}; train again"
        ) from None
    if encoder.inputs.shape[1] != history.shape[1]:
        raise BadArtifact(f"{folder}: arrays of the sequence model differ in width; train again")
    return TowerArrays(history, targets, ages, encoder)


def _ncf(folder: Path, arrays: dict[str, AnyArray], manifest: Manifest) -> NcfArrays | None:
    """Remove the arrays of NCF from `arrays`; None where the artifact has none."""
    found = {name: arrays.pop(f"ncf_{name}", None) for name in _NCF}
    present = {name: array for name, array in found.items() if array is not None}
    if len(present) < len(_NCF):
        return None
    ages = np.array(manifest.parameters.get("ncf", {}).get("ages", []), np.float32)
    ncf = NcfArrays(**present, ages=ages)
    if not ncf.consistent:
        raise BadArtifact(f"{folder}: arrays of NCF differ in shape; train again")
    return ncf


def _words(folder: Path, arrays: dict[str, AnyArray]) -> WordVectors | None:
    """Remove the arrays of words from `arrays`; None where the artifact has none."""
    words, vectors = arrays.pop("content_words", None), arrays.pop("content_word_vectors", None)
    if words is None or vectors is None:
        return None
    if not fit_together(words, vectors, arrays.get("content")):
        raise BadArtifact(f"{folder}: arrays of words and of content differ in shape; train again")
    return WordVectors(words, vectors)


def _check(folder: Path, arrays: dict[str, AnyArray]) -> None:
    rows = len(arrays["item_ids"])
    for name, array in arrays.items():
        if len(array) != rows and name not in NOT_BY_ITEM:
            raise BadArtifact(f"{folder / name}.npy: {len(array)} rows, item_ids has {rows}")
        if name != "first_seen_ms" and array.dtype.kind == "f" and not np.isfinite(array).all():
            raise BadArtifact(f"{folder / name}.npy: contains NaN or infinity")
        if name in _INDEX_ARRAYS and array.size and not -1 <= array.min() <= array.max() < rows:
            raise BadArtifact(f"{folder / name}.npy: an index is out of range")
