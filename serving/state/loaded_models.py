"""Follow published models: verify, load in a thread, hand over whole. Beside the newest, what arms ask for.

reads   topic     models
        artifact  every file named in its manifest
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import structlog
from confluent_kafka import Message

from afterclick import events, model
from afterclick.artifact import MANIFEST, Throttle, no_throttle, read_manifest
from afterclick.errors import AfterclickError, BadEvent, Unavailable
from afterclick.events import ModelEvent, ModelPublished
from afterclick.model import Model
from afterclick.retrieval import Search
from serving.state.ann_search import content_search, index_search
from serving.state.loaded_ranker import FormulaRanker, Ranker, load_ranker

log = structlog.get_logger()
Loaded = Callable[["LoadedModel"], None]
REMEMBERED = 20
"""Published models that are remembered, to show."""
SHARE = 0.25
"""Of a core, at most, for loading a model while another one serves."""
AGAIN_S = 30.0
"""How often a model is asked for again that could not be fetched."""
BESIDE = 2
"""Models that are loaded beside the newest, at most: each costs its arrays once more."""


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model ready to serve: its arrays, its ranker, its searches."""

    version: str
    model: Model | None
    ranker: Ranker
    als_search: Search | None = None
    tower_search: Search | None = None
    content_search: Search | None = None


@dataclass(frozen=True)
class ModelStore:
    """Where models lie."""

    kept: str
    """Folder or s3:// prefix with a model per version."""
    cache: Path
    """Where what lies on S3 is fetched to."""


def no_model() -> LoadedModel:
    """What is served before the first model is published."""
    return LoadedModel("", None, FormulaRanker())


class ModelFeed:
    """Loads the newest published model and calls `use` with it. A damaged one leaves the old one in place.

    One that cannot be fetched is asked for again, until it can or a newer one is published.
    Models that arms of experiments want are looked for among those published, then where models are kept,
    and handed to `use_in_experiments`, all of them each time.
    """

    def __init__(
        self,
        use: Loaded,
        use_in_experiments: Callable[[Mapping[str, LoadedModel]], None],
        store: ModelStore,
    ):
        self._use, self._use_in_experiments, self._store = use, use_in_experiments, store
        self._wanted: tuple[str, ...] = ()
        self._beside: dict[str, LoadedModel] = {}
        self._coming: deque[ModelPublished] = deque(maxlen=1)
        self._missed: ModelPublished | None = None
        self._again = False
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

    def want(self, versions: Sequence[str]) -> None:
        """Have these loaded beside the newest, the first ones where there are too many."""
        self._wanted = tuple(versions)
        self._wake.set()

    def why_not(self, version: str) -> str:
        """Why lists are not made by a version that an arm asks for."""
        if version in self.refused:
            return "it cannot be loaded; `refused_models` of /health/ready says why"
        if version in self._wanted[BESIDE:]:
            return f"no more than {BESIDE} models are loaded beside the one that serves"
        return "it is not loaded yet"

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
                self._coming.append(event.data)
                self.published.append(event.data)
                self._wake.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wake.wait(AGAIN_S if self._again else None)
            self._wake.clear()
            published = self._coming.pop() if self._coming else self._missed
            self._missed, self._again = None, False
            if published is not None and not self._stop.is_set():
                loaded = self._load(published.version, published.uri, published.manifest_sha256)
                if self._again:
                    self._missed = published
                if loaded is not None:
                    self.version = loaded.version
                    self._use(loaded)
            if not self._stop.is_set():
                self._load_beside()

    def _load_beside(self) -> None:
        """Load what arms ask for and nobody serves yet; let go of what none asks for."""
        wanted = [version for version in self._wanted[:BESIDE] if version != self.version]
        beside = {version: self._beside[version] for version in wanted if version in self._beside}
        for version in wanted:
            if version not in beside:
                uri, sha256 = self._place(version)
                if (loaded := self._load(version, uri, sha256)) is not None:
                    beside[version] = loaded
        if beside != self._beside:
            self._beside = beside
            self._use_in_experiments(beside)

    def _place(self, version: str) -> tuple[str, str | None]:
        """Where a version lies, and its manifest's hash where it was published lately."""
        for published in self.published:
            if published.version == version:
                return published.uri, published.manifest_sha256
        return f"{self._store.kept}/{version}", None

    def _load(self, version: str, uri: str, sha256: str | None) -> LoadedModel | None:
        """A model, or None: then `refused` says why."""
        began = time.monotonic()
        rest = Pace(SHARE).rest if self.version else no_throttle
        try:
            loaded = load(folder_of(uri, self._store.cache, sha256), sha256, rest)
        except AfterclickError as error:
            self._again |= isinstance(error, Unavailable)
            self.refused[version] = str(error)
            log.error("model refused; the old one stays", version=version, error=str(error))
            return None
        except Exception:
            self.refused[version] = "cannot be loaded"
            log.exception("model refused; the old one stays", version=version)
            return None
        self.refused.pop(version, None)
        log.info("model loaded", version=loaded.version, seconds=round(time.monotonic() - began, 3))
        return loaded


class Pace:
    """Lets one thread compute for a share of the time: `rest` sleeps for what it has computed since."""

    def __init__(self, share: float) -> None:
        self._pause = (1 - share) / share
        self._spent_s = time.thread_time()

    def rest(self) -> None:
        spent = time.thread_time()
        time.sleep(self._pause * (spent - self._spent_s))
        self._spent_s = spent


def load(folder: Path, manifest_sha256: str | None, rest: Throttle = no_throttle) -> LoadedModel:
    """An artifact, checked and ready. Raises BadArtifact."""
    arrays, manifest = model.load(folder, manifest_sha256, rest)
    als = (
        index_search(folder / "index.faiss", arrays.factors) if arrays.factors is not None else None
    )
    rest()
    towers = index_search(folder / "towers.faiss", arrays.towers.targets) if arrays.towers else None
    rest()
    content = (
        content_search(arrays.content, folder / "content.faiss")
        if arrays.content is not None
        else None
    )
    rest()
    return LoadedModel(manifest.version, arrays, load_ranker(folder), als, towers, content)


KEEP = 8
"""Models that are kept here: the one that serves, those of arms, some to go back to."""
UNFINISHED_S = 86_400.0
_STAGING = ".fetching-"


def folder_of(uri: str, cache: Path, manifest_sha256: str | None = None) -> Path:
    """The folder of a published artifact: a path, a file:// URI, or what lies on S3, fetched once.

    What it holds is not checked here: the caller loads it against the manifest's hash. Raises Unavailable,
    BadArtifact.
    """
    parts = urlsplit(uri)
    if parts.scheme == "s3":
        return _fetched(parts.netloc, parts.path.strip("/"), cache, manifest_sha256)
    return Path(unquote(parts.path)) if parts.scheme == "file" else Path(uri)


def _fetched(bucket: str, prefix: str, cache: Path, manifest_sha256: str | None) -> Path:
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    target = cache / f"{prefix.rsplit('/', 1)[-1]}-{(manifest_sha256 or 'any')[:12]}"
    if target.is_dir():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    _make_room(cache)
    staging = Path(tempfile.mkdtemp(prefix=_STAGING, dir=cache))
    client: Any = boto3.client("s3")
    try:
        client.download_file(bucket, f"{prefix}/{MANIFEST}", str(staging / MANIFEST))
        for name in read_manifest(staging, manifest_sha256).files:
            client.download_file(bucket, f"{prefix}/{name}", str(staging / name))
        staging.rename(target)
    except (BotoCoreError, ClientError, OSError) as error:
        if target.is_dir():  # another process of this machine was faster
            return target
        raise Unavailable(f"s3://{bucket}/{prefix}: cannot be fetched: {error}") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


def _make_room(cache: Path) -> None:
    """Leave the models fetched last, and no fetch that ended early."""
    fetched: dict[Path, float] = {}
    for folder in cache.iterdir():
        with suppress(FileNotFoundError):  # another process has just finished with it
            fetched[folder] = folder.stat().st_mtime
    newest = sorted(fetched, key=lambda folder: -fetched[folder])
    whole = [folder for folder in newest if not folder.name.startswith(_STAGING)]
    old = [
        folder
        for folder in newest
        if folder not in whole and time.time() - fetched[folder] > UNFINISHED_S
    ]
    for folder in (*whole[KEEP - 1 :], *old):
        shutil.rmtree(folder, ignore_errors=True)
