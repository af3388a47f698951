"""Follow published models: fetch, verify and load them in a thread, then swap them whole.

reads   topic     models
        artifact  every file named in its manifest
        s3        <bucket>/<prefix>/<version>/*
writes  folder    <cache>/<version>-<start of the manifest's hash>, whole or not at all

Experiments may use other models than the serving one; these are loaded too, up to a limit.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import structlog
from confluent_kafka import Message

from afterclick import events, model
from afterclick.artifact import MANIFEST, Manifest, Throttle, no_throttle, read_manifest
from afterclick.errors import AfterclickError, BadArtifact, BadEvent, Unavailable
from afterclick.events import ModelEvent, ModelPublished
from afterclick.features import warm_up
from afterclick.io.background import BackgroundLoop
from afterclick.model import Model
from afterclick.ranking import FormulaRanker, Ranker
from afterclick.retrieval import Search
from afterclick.tree_ranker import load_ranker
from serving.state.ann_search import content_search, index_search
from serving.state.live_transitions import LearnedEvents

log = structlog.get_logger()
LOAD_LIMIT_S = 900.0
"""Fetching and loading a model takes minutes at most."""
MAX_PUBLISHED = 1000
"""Published models whose locations and hashes are kept, newest ones."""
LOADING_CPU_SHARE = 0.25
"""Share of a core, at most, for loading a model while another one serves."""
RETRY_S = 30.0
"""How often a model that could not be fetched is retried."""
MAX_EXTRA_MODELS = 2
"""Models loaded for experiments, at most: each takes as much memory as the serving one."""
MAX_FETCHED = 8
"""Fetched models on disk: the serving one, those of experiments, and some to roll back to."""
UNFINISHED_S = 86_400.0
"""Age from which an unfinished fetch is deleted."""
_STAGING = ".fetching-"


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model ready to serve: its arrays, ranker and searches."""

    version: str
    model: Model | None
    ranker: Ranker
    als_search: Search | None = None
    tower_search: Search | None = None
    content_search: Search | None = None
    ncf_search: Search | None = None
    """By NCF's product."""
    learned: LearnedEvents = field(default_factory=LearnedEvents)
    """The events that live counts leave out."""


def no_model() -> LoadedModel:
    """Served before the first model is published."""
    return LoadedModel("", None, FormulaRanker())


class CpuThrottle:
    """Limits the calling thread to a share of a core: `yield_` sleeps in proportion to its work."""

    def __init__(self, share: float = LOADING_CPU_SHARE) -> None:
        self._pause = (1 - share) / share
        self._spent_s = time.thread_time()

    def yield_(self) -> None:
        spent_s = time.thread_time()
        time.sleep(self._pause * (spent_s - self._spent_s))
        self._spent_s = spent_s


def folder_of(
    uri: str, cache: Path, manifest_sha256: str | None = None, client: Any = None
) -> Path:
    """The folder of a published artifact: a path, a file:// URI, or an s3:// URI fetched once.

    The caller verifies its files against the manifest. Raises Unavailable, and BadArtifact for a
    damaged artifact or one on S3 whose hash is not known.
    """
    parts = urlsplit(uri)
    if parts.scheme != "s3":
        return Path(unquote(parts.path)) if parts.scheme == "file" else Path(uri)
    if manifest_sha256 is None:
        raise BadArtifact(
            f"{uri}: was never published, so its hash is not known; publish it with "
            "`afterclick models promote`, or use another version"
        )
    prefix = parts.path.strip("/")
    target = cache / f"{prefix.rsplit('/', 1)[-1]}-{manifest_sha256[:12]}"
    if not target.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        _make_room(cache)
        _Fetch(parts.netloc, prefix, client or _s3_client()).into(target, manifest_sha256)
    return target


def _s3_client() -> Any:
    import boto3

    return boto3.client("s3")


@dataclass(frozen=True)
class _Fetch:
    """Copies one artifact from S3."""

    bucket: str
    prefix: str
    client: Any

    def into(self, target: Path, manifest_sha256: str) -> None:
        from botocore.exceptions import BotoCoreError, ClientError

        staging = Path(tempfile.mkdtemp(prefix=_STAGING, dir=target.parent))
        try:
            self._download(MANIFEST, staging)
            for name in read_manifest(staging, manifest_sha256).files:
                self._download(name, staging)
            staging.rename(target)
        except (BotoCoreError, ClientError, OSError) as error:
            if not target.is_dir():  # else another process has fetched it meanwhile
                uri = f"s3://{self.bucket}/{self.prefix}"
                raise Unavailable(f"{uri}: cannot be fetched: {error}") from None
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def _download(self, name: str, folder: Path) -> None:
        self.client.download_file(self.bucket, f"{self.prefix}/{name}", str(folder / name))


def _make_room(cache: Path) -> None:
    """Delete all but the newest models, and old unfinished fetches."""
    fetched: dict[Path, float] = {}
    for folder in cache.iterdir():
        with suppress(FileNotFoundError):  # deleted by another process
            fetched[folder] = folder.stat().st_mtime
    newest = sorted(fetched, key=lambda folder: -fetched[folder])
    models = [folder for folder in newest if not folder.name.startswith(_STAGING)]
    oldest = time.time() - UNFINISHED_S
    unfinished = [f for f in newest if f.name.startswith(_STAGING) and fetched[f] < oldest]
    for folder in (*models[MAX_FETCHED - 1 :], *unfinished):
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class ModelStore:
    """Where models are, and how they are loaded."""

    root: str
    """Folder or s3:// prefix with one model per version."""
    cache: Path
    """Folder for models fetched from S3."""
    fetch: Callable[[str, Path, str | None], Path] = folder_of
    throttle: Callable[[], Throttle] = field(default=lambda: CpuThrottle().yield_)
    """Slows loading down while another model serves."""
    retry_s: float = RETRY_S
    mapped: bool = False
    """Several processes load the same models and share their arrays."""


class ModelFeed:
    """Loads the newest published model and calls `use`; a damaged one is rejected.

    A model that cannot be fetched is retried until a newer one is published. `use_in_experiments`
    gets all models that experiments use, from the published ones or from the store.
    """

    def __init__(
        self,
        use: Callable[[LoadedModel], None],
        use_in_experiments: Callable[[Mapping[str, LoadedModel]], None],
        store: ModelStore,
    ) -> None:
        self._use, self._use_in_experiments, self._store = use, use_in_experiments, store
        self._requested: tuple[str, ...] = ()
        self._extra: dict[str, LoadedModel] = {}
        self._next: deque[ModelPublished] = deque(maxlen=1)
        self._failed: ModelPublished | None = None
        self._retry = False
        self.version: str | None = None
        """The serving version."""
        self.rejected: dict[str, str] = {}
        """Version → why it is not served."""
        self.published: deque[ModelPublished] = deque(maxlen=MAX_PUBLISHED)
        self._loop = BackgroundLoop("model-loader", self._refresh, limit_s=LOAD_LIMIT_S)
        self.start, self.stop = self._loop.start, self._loop.stop
        self.heartbeat = self._loop.heartbeat

    @property
    def in_use(self) -> list[str]:
        """The serving version, and those that experiments name."""
        return [version for version in (self.version, *self._requested) if version]

    def request(self, versions: Sequence[str]) -> None:
        """Load these for experiments; versions beyond `MAX_EXTRA_MODELS` are ignored."""
        self._requested = tuple(versions)
        self._loop.wake()

    def unavailable_reason(self, version: str) -> str:
        """Why an experiment's model is not used."""
        if version in self.rejected:
            return "it cannot be loaded; `refused_models` of /health/ready gives the reason"
        if version in self._requested[MAX_EXTRA_MODELS:]:
            return f"at most {MAX_EXTRA_MODELS} models are loaded for experiments"
        return "it is not loaded yet"

    def read(self, messages: Sequence[Message]) -> None:
        """Schedule the newest model of these records; older ones are skipped."""
        for message in messages:
            if message.value() is None:
                continue
            try:
                event = events.decode(message.value())
            except BadEvent as error:
                log.warning("invalid model event", offset=message.offset(), error=str(error))
                continue
            if isinstance(event, ModelEvent):
                self._next.append(event.data)
                self.published.append(event.data)
                self._loop.wake()

    def load(self, version: str, uri: str, sha256: str | None) -> LoadedModel | None:
        """Fetch and load a model; None if it is rejected, see `rejected`."""
        began = time.monotonic()
        throttle = self._store.throttle() if self.version else no_throttle
        try:
            folder = self._store.fetch(uri, self._store.cache, sha256)
            loaded = load(folder, sha256, throttle, mapped=self._store.mapped)
        except AfterclickError as error:
            self._retry |= isinstance(error, Unavailable)
            self.rejected[version] = str(error)
            log.error("model rejected; the old one stays", version=version, error=str(error))
            return None
        except Exception:
            self.rejected[version] = "cannot be loaded"
            log.exception("model rejected; the old one stays", version=version)
            return None
        self.rejected.pop(version, None)
        log.info("model loaded", version=loaded.version, seconds=round(time.monotonic() - began, 3))
        return loaded

    def _refresh(self) -> float | None:
        """Load what is new. Returns the seconds until a retry; None without one."""
        published = self._next.pop() if self._next else self._failed
        self._failed, self._retry = None, False
        if published is not None:
            loaded = self.load(published.version, published.uri, published.manifest_sha256)
            if self._retry:
                self._failed = published
            if loaded is not None:
                self.version = loaded.version
                self._use(loaded)
        if not self._loop.stopping:
            self._refresh_extra()
        return self._store.retry_s if self._retry else None

    def _refresh_extra(self) -> None:
        """Load the models of experiments; drop those no longer used."""
        versions = [v for v in self._requested[:MAX_EXTRA_MODELS] if v != self.version]
        extra = {version: self._extra[version] for version in versions if version in self._extra}
        for version in versions:
            if version not in extra:
                uri, sha256 = self._location(version)
                if (loaded := self.load(version, uri, sha256)) is not None:
                    extra[version] = loaded
        if extra != self._extra:
            self._extra = extra
            self._use_in_experiments(extra)

    def _location(self, version: str) -> tuple[str, str | None]:
        """The URI of a version, and its manifest's hash if it was published."""
        for published in reversed(self.published):
            if published.version == version:
                return published.uri, published.manifest_sha256
        return f"{self._store.root}/{version}", None


def load(
    folder: Path,
    manifest_sha256: str | None,
    throttle: Throttle = no_throttle,
    *,
    mapped: bool = False,
) -> LoadedModel:
    """A verified artifact, ready to serve. Raises BadArtifact."""
    warm_up()  # a few seconds, until the machine code is on disk
    arrays, manifest = model.load(folder, manifest_sha256, throttle, mapped=mapped)
    als = tower = content = ncf = None
    if arrays.factors is not None:
        als = index_search(folder / "index.faiss", arrays.factors, arrays.rated, mapped=mapped)
        throttle()
    if arrays.towers is not None:
        towers = arrays.towers
        tower = index_search(folder / "towers.faiss", towers.targets, towers.known, mapped=mapped)
        throttle()
    if arrays.ncf is not None:
        targets, known = arrays.ncf.targets, arrays.ncf.known
        ncf = index_search(folder / "ncf.faiss", targets, known, mapped=mapped)
        throttle()
    if arrays.content is not None:
        content = content_search(arrays.content, folder / "content.faiss", mapped=mapped)
        throttle()
    ranker, learned = load_ranker(folder), learned_events(manifest)
    return LoadedModel(manifest.version, arrays, ranker, als, tower, content, ncf, learned)


def learned_events(manifest: Manifest) -> LearnedEvents:
    """The events that a model has learned: by log positions, by event time in older artifacts.

    All, if neither is known: no event counts twice.
    """
    newest_ms = manifest.lineage.get("newest_ms")
    if newest_ms is None:
        try:
            newest_ms = datetime.fromisoformat(manifest.created).timestamp() * 1000
        except ValueError:
            newest_ms = math.inf
    return LearnedEvents(manifest.lineage.get("positions") or {}, float(newest_ms) + 1)
