"""Content of the items that came after a model, in time for the next snapshot: it knows their words already."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from afterclick.content import FloatArray, WordVectors, text_of
from serving.feeds.catalogue import Catalogue
from serving.feeds.model_feed import LoadedModel
from serving.ranking.searches import with_late


class LateContent:
    """What all items say of themselves, as one model reads it. For the thread that builds snapshots."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._texts: list[str] = []
        self._vectors: FloatArray | None = None
        self._seen = (-1, -1)
        self.content = loaded.model.item_content if loaded.model else None
        self.search = loaded.content_search

    def follow(self, ids: Sequence[str], catalogue: Catalogue) -> None:
        """Read the texts that are new or have changed. `ids` are those of all items, the model's first."""
        model, search = self._loaded.model, self._loaded.content_search
        seen = (catalogue.version, len(ids))
        if model is None or model.words is None or model.item_content is None or search is None:
            return
        if seen == self._seen:
            return
        self._seen = seen
        items = (catalogue.items.get(item_id) for item_id in ids[len(model) :])
        texts = [text_of(item.title, item.categories) if item else "" for item in items]
        if texts != self._texts:
            late = self._read(texts, model.words)
            self.content = model.item_content.with_late(late)
            self.search = with_late(search, late, len(model))

    def _read(self, texts: list[str], words: WordVectors) -> FloatArray:
        """(len(texts), d) anew, of which only the rows of other texts than before are computed."""
        late = np.zeros((len(texts), words.vectors.shape[1]), np.float32)
        if self._vectors is not None:
            late[: len(self._vectors)] = self._vectors
        for row, text in enumerate(texts):
            if row >= len(self._texts) or text != self._texts[row]:
                late[row] = words.vector(text)
        self._texts, self._vectors = texts, late
        return late
