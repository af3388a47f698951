"""Every setting, with its default. Read from AFTERCLICK_* by entry points only: `Settings()`.

Nested names are joined with two underscores: AFTERCLICK_KAFKA__BOOTSTRAP=localhost:9092.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

import orjson
from pydantic import BaseModel, ConfigDict, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from afterclick.errors import Unavailable
from afterclick.events import Action
from afterclick.redis_keys import Keys
from afterclick.topics import Topics

KAFKA_JARS: Final = "kafka-4.3.1"
"""Folder of the jar cache with Kafka itself."""
SPARK_JARS: Final = "spark-4.2.0"
"""Folder of the jar cache with what Spark needs to read and write Kafka."""


def jar_cache() -> Path:
    """Where jars are kept for every checkout on this machine: XDG's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "afterclick" / "jars"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class KafkaSettings(_Section):
    bootstrap: str = "127.0.0.1:9092"
    """Brokers, host:port, comma-separated."""
    prefix: str = ""
    """Put before every topic name, to share a cluster."""
    partitions: int = Field(4, ge=1, le=1024)
    """Partitions of a topic when it is created."""
    replication: int = Field(1, ge=1)
    """Copies of each partition when a topic is created."""

    @property
    def topics(self) -> Topics:
        return Topics(self.prefix, self.partitions)


class RedisSettings(_Section):
    url: str = "redis://127.0.0.1:6379/0"
    """Any URL redis-py understands."""
    cluster: bool = False
    """The URL is a node of a Redis Cluster."""
    prefix: str = ""
    """Put before every key, to share a server."""
    timeout_s: float = Field(0.25, gt=0)
    """How long a request of the API waits for Redis before it answers without."""

    @property
    def keys(self) -> Keys:
        return Keys(self.prefix)


class StreamSettings(_Section):
    trigger: Literal["micro-batch", "real-time"] = "real-time"
    """How Spark runs the live query: `real-time` in milliseconds (a backlog is drained first)."""
    batch_events: int = Field(50_000, ge=1)
    """Most events in one micro-batch."""
    history_length: int = Field(200, ge=1)
    """Interactions kept per user."""
    ledger_length: int = Field(4096, ge=1)
    """Event ids remembered per user, to know a resent event again."""
    weights: dict[Action, float] = {
        Action.REVIEW: 2.0,
        Action.PURCHASE: 3.0,
        Action.BASKET: 2.0,
        Action.LIKE: 2.0,
        Action.CLICK: 1.0,
        Action.VIEW: 0.25,
        Action.SKIP: -1.0,
        Action.UNDO: 0.0,
    }
    """What a user's newest such event adds to an item's trend. A positive weight also counts, each time, as
    popularity. Undone or not."""
    established_days: float = Field(7.0, ge=0)
    """Days after their first event from which a user's votes vouch for an item. Another value: `rebuild`."""
    archive_seconds: float = Field(5.0, gt=0)
    """How often the archive query writes the Parquet log."""
    master: str = "local[*]"
    """Spark master."""
    handover_s: float = Field(1800.0, ge=5)
    """Real-time: how long one query runs before the next one takes over."""
    realtime_lag: int = Field(5_000, ge=1)
    """Real-time: with more events than this to catch up with, they are drained in micro-batches first."""
    memory: str = "768m"
    """Memory of the Spark driver."""
    ahead_s: float = Field(86_400.0, gt=0)
    """An event dated further ahead of its arrival in the log is a dead letter: it would drown every trend."""
    lease_s: float = Field(10.0, ge=1)
    """How long a stream job that has died keeps its state locked against a job on another machine."""
    fence: bool = True
    """Off only in the control of a fault test: positions from Spark's checkpoint, no fence, gaps ignored."""
    fault: str | None = None
    """Set by fault tests alone: `between-steps:<n>` kills a worker in its n-th chunk, between the steps;
    `no-dead-letters` lets a record that cannot be read fail the query."""


class TrainingSettings(_Section):
    master: str = "local[2]"
    """Spark master."""
    memory: str = "3g"
    """Memory of the Spark driver."""
    mlflow_uri: str | None = None
    """MLflow tracking store: http://server, postgresql://user:password@host/name; by default SQLite."""
    mlflow_files: str | None = None
    """Where the files of a new MLflow experiment lie: a folder, or s3://bucket/prefix. By default the home
    folder, or what the server says where `mlflow_uri` names one."""
    store: str | None = None
    """Where published models are copied to, for the API to read: s3://bucket/prefix. None: nowhere."""
    seed: int = 42
    """Seed of everything random."""
    rank: int = Field(64, ge=1)
    """ALS: latent factors."""
    reg: float = Field(1.0, gt=0)
    """ALS: regularisation (Spark's regParam)."""
    alpha: float = Field(3.0, gt=0)
    """ALS: confidence of an interaction (Spark's alpha)."""
    iterations: int = Field(10, ge=1)
    """ALS: passes."""
    core: int = Field(5, ge=1)
    """ETL: the k of the k-core, interactions that each of its users and items has at least."""
    least_reviews: int = Field(5, ge=1)
    """Items with fewer interactions are not served by the models."""
    content: str = Field("tfidf", pattern=r"^(tfidf|sbert(:.+)?)$")
    """How titles and categories become vectors: `tfidf`, with SVD in a second, or `sbert`, Sentence-BERT in
    minutes; `sbert:NAME` is any such model by its name or folder.
    Items that come later get theirs at once, from what the training learned of words."""
    tower_epochs: int = Field(3, ge=0)
    """Two towers: passes over the interactions; 0 leaves them out of the model."""
    holdout: float = Field(0.08, gt=0, lt=0.5)
    """Share of the newest interactions that champion and challenger are compared on."""
    questions: int = Field(800, ge=10)
    """Most questions of one protocol in that comparison."""
    ranker_cuts: int = Field(1, ge=1)
    """Past cuts the ranker learns from; each costs one more fit."""
    ranker_questions: int = Field(6000, ge=100)
    """Most questions of one cut that the ranker learns from."""
    longest_hours: float = Field(12.0, gt=0)
    """A scheduled training that takes longer is ended, and the next one may begin."""


ApiScope = Literal["recommend", "feedback", "admin"]


class ApiKey(_Section):
    """One key: the SHA-256 of it, and what it may do. `admin` may do everything."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    scopes: tuple[ApiScope, ...] = ("recommend", "feedback")


class ServingSettings(_Section):
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(8000, ge=0, le=65535)
    """Port to listen on."""
    list_length: int = Field(10, ge=1, le=200)
    """Items in a list when the request does not say."""
    shed_after_ms: float = Field(50.0, gt=0)
    """Shed load from personal lists that have waited longer than this, for the event loop or for Redis: rank
    fewer candidates and set `reduced`."""
    cache_ttl_s: float = Field(30.0, ge=0)
    """How long the personal list of a user without new events may be served from the cache; 0: not at all."""
    after_s: float = Field(0.3, gt=0, le=10)
    """How long a request with `after=` waits for its event; then it answers with `fresh: false`."""
    max_body_bytes: int = 65_536
    """Larger request bodies get 413."""
    keys: dict[str, ApiKey] = {}
    """API keys by name, as JSON (`afterclick api-key add --setting`), beside those in SQL. Without any,
    a token secret or `open`: loopback only."""
    open: bool = False
    """Answer without keys on any address, /admin left out: only behind a gateway that checks."""
    limit: str | None = None
    """Requests per caller (a token's user, a key, else an address), as in 600/minute; more get 429."""
    limit_shared: bool = False
    """Count them in Redis, for all processes together; else each process counts its own."""
    token_secret: str | None = Field(None, min_length=32)
    """Signs users' tokens (JWT, HS256), for browsers; at least 32 characters. Without it there are none."""
    origins: tuple[str, ...] = ()
    """Web origins whose pages may call the API and open WebSockets, besides the API's own."""
    database: str | None = None
    """SQL database, as in postgresql://user:password@host/name; by default SQLite in the home folder."""
    request_log_days: float = Field(1.0, ge=0)
    """How long the request log keeps a row; 0 writes none."""
    quarantine_max_ratio: float = Field(4.0, ge=0)
    """An item with more than this many times the votes that its established users stand for is in quarantine:
    new accounts' votes do not count. 0: none ever is, nor are new accounts held to their usual share."""
    quarantine_allowance: float = Field(20.0, ge=0)
    """Votes (in weight, decayed) that an item, and new accounts together, may have besides."""

    @property
    def url(self) -> str:
        """Where processes on this machine reach the API."""
        return _local_url(self.host, self.port)


class ConsoleSettings(_Section):
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(8090, ge=0, le=65535)
    """Port to listen on."""
    fault_injection: bool = False
    """Allow an administrator to kill the stream job, pause Redis and resend events: for demonstrations only."""
    redis_pause_s: float = Field(3.0, gt=0, le=60)
    """Fault injection: how long Redis is paused."""

    @property
    def url(self) -> str:
        """Where processes on this machine reach the console."""
        return _local_url(self.host, self.port)


def _local_url(host: str, port: int) -> str:
    return f"http://{'127.0.0.1' if host in {'0.0.0.0', '::'} else host}:{port}"


class UiSettings(_Section):
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(8080, ge=0, le=65535)
    """Port to listen on."""
    api_url: str = "http://127.0.0.1:8000"
    """URL of the API."""
    console_url: str = "http://127.0.0.1:8090"
    """URL of the admin console."""
    api_key: str | None = None
    """API key that the pages, the simulator and the control commands present to API and console."""
    admin: bool | None = None
    """Show the admin panels on the dashboard; by default only if the pages listen on loopback."""

    @property
    def url(self) -> str:
        """Where processes on this machine reach the pages."""
        return _local_url(self.host, self.port)

    @property
    def shows_admin(self) -> bool:
        """Whether the dashboard has the admin panels."""
        return self.host in {"127.0.0.1", "::1", "localhost"} if self.admin is None else self.admin


class Settings(BaseSettings):
    """All settings of one process."""

    model_config = SettingsConfigDict(
        env_prefix="AFTERCLICK_",
        env_nested_delimiter="__",
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
    )

    home: Path = Path(".afterclick")
    """Everything that is kept on this machine: Kafka and Redis data, the log, artifacts, MLflow."""
    jars: Path = Field(default_factory=jar_cache)
    """The cache of jars (Kafka, Spark's connector), filled by `make setup`."""
    archive_uri: str | None = None
    """Where the Parquet log lies (a folder or s3a://); by default in the home folder."""
    kafka: KafkaSettings = KafkaSettings()
    redis: RedisSettings = RedisSettings()
    stream: StreamSettings = StreamSettings()
    training: TrainingSettings = TrainingSettings()
    serving: ServingSettings = ServingSettings()
    console: ConsoleSettings = ConsoleSettings()
    ui: UiSettings = UiSettings()

    def environment(self) -> dict[str, str]:
        """What differs from the defaults, as AFTERCLICK_* variables: gives a child these settings."""
        variables: dict[str, str] = {}
        for name, value in self.model_dump(mode="json", exclude_defaults=True).items():
            if isinstance(getattr(self, name), _Section):
                variables |= {f"{name}__{leaf}": _variable(v) for leaf, v in value.items()}
            else:
                variables[name] = _variable(value)
        return {f"AFTERCLICK_{name.upper()}": value for name, value in variables.items()}

    @property
    def archive(self) -> str:
        """Where the Parquet log lies."""
        return self.archive_uri or str(self.home / "log")

    @property
    def artifacts(self) -> Path:
        """Where model artifacts lie, a folder per version."""
        return self.home / "artifacts"

    @property
    def mlflow(self) -> str:
        """The MLflow tracking URI."""
        given = self.training.mlflow_uri
        if given is None:
            return f"sqlite:///{self.home / 'mlflow.db'}"
        return re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", given)

    @property
    def mlflow_files(self) -> str | None:
        """Where the files of a new MLflow experiment lie, as a URI; None: MLflow's server decides."""
        given = self.training.mlflow_files
        if not given and self.mlflow.startswith(("http://", "https://")):
            return None
        if given and urlsplit(given).scheme:
            return given
        return Path(given or self.home / "mlflow").expanduser().absolute().as_uri()

    @property
    def database(self) -> str:
        """The URL of the SQL database."""
        return self.serving.database or f"sqlite:///{self.home / 'serving.db'}"

    @property
    def spark_jars(self) -> str:
        """What `spark.jars` has to be for Spark to speak Kafka. Raises Unavailable before `make setup`."""
        jars = sorted((self.jars / SPARK_JARS).glob("*.jar"))
        if not jars:
            raise Unavailable(f"no Spark connector in {self.jars / SPARK_JARS}: run `make setup`")
        return ",".join(str(jar) for jar in jars)


def _variable(value: object) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()
