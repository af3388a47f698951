"""Follow published models: verify, load in a thread, hand over whole.

reads   topic     models
        artifact  every file named in its manifest
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog
from confluent_kafka import Message

from afterclick import events, model
from afterclick.candidates import Search
from afterclick.errors import AfterclickError, BadEvent
from afterclick.events import ModelEvent, ModelPublished
from afterclick.model import Model
from serving.feeds.fetch import folder_of
from serving.ranking.ranker import FormulaRanker, Ranker, load_ranker
from serving.ranking.searches import content_search, index_search

log = structlog.get_logger()
Loaded = Callable[["LoadedModel"], None]
REMEMBERED = 20
"""Published models that are remembered, to show."""


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model ready to serve: its arrays, its ranker, its searches."""

    version: str
    model: Model | None
    ranker: Ranker
    als_search: Search | None = None
    tower_search: Search | None = None
    content_search: Search | None = None


def no_model() -> LoadedModel:
    """What is served before the first model is published."""
    return LoadedModel("", None, FormulaRanker())


class ModelFeed:
    """Loads the newest published model and calls `use` with it. A damaged one leaves the old one in place."""

    def __init__(self, use: Loaded, cache: Path) -> None:
        self._use, self._cache = use, cache
        self._newest: ModelPublished | None = None
        self._wake, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="model-loader", daemon=True)
        self.version: str | None = None
        self.refused: dict[str, str] = {}
        self.published: deque[ModelPublished] = deque(maxlen=REMEMBERED)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._wake.set()
        self._thread.join(3.0)

    def read(self, messages: Sequence[Message]) -> None:
        """Remember the last model among these records; an older one that waits is skipped."""
        for message in messages:
            if message.value() is None:
                continue
            try:
                event = events.decode(message.value())
            except BadEvent as error:
                log.warning("no valid model event", offset=message.offset(), error=str(error))
                continue
            if isinstance(event, ModelEvent):
                self._newest = event.data
                self.published.append(event.data)
                self._wake.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wake.wait()
            self._wake.clear()
            published, self._newest = self._newest, None
            if published is not None and not self._stop.is_set():
                self._load(published)

    def _load(self, published: ModelPublished) -> None:
        began = time.monotonic()
        try:
            folder = folder_of(published.uri, self._cache, published.manifest_sha256)
            loaded = load(folder, published.manifest_sha256)
        except AfterclickError as error:
            self.refused[published.version] = str(error)
            log.error("model refused; the old one stays", version=published.version, error=str(error))
            return
        except Exception:
            self.refused[published.version] = "cannot be loaded"
            log.exception("model refused; the old one stays", version=published.version)
            return
        self.version = loaded.version
        self._use(loaded)
        log.info("model loaded", version=loaded.version, seconds=round(time.monotonic() - began, 3))


def load(folder: Path, manifest_sha256: str | None) -> LoadedModel:
    """An artifact, checked and ready. Raises BadArtifact."""
    arrays, manifest = model.load(folder, manifest_sha256)
    als = index_search(folder / "index.faiss", arrays.factors) if arrays.factors is not None else None
    towers = index_search(folder / "towers.faiss", arrays.towers.targets) if arrays.towers else None
    content = content_search(arrays.content, folder / "content.faiss") if arrays.content is not None else None
    return LoadedModel(manifest.version, arrays, load_ranker(folder), als, towers, content)
