"""Every setting, with its default. Only entry points read AFTERCLICK_*, by `Settings()`.

Two underscores separate section and name: AFTERCLICK_KAFKA__BOOTSTRAP=localhost:9092.
"""

from __future__ import annotations

import os
import re
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import urlencode, urlsplit

import orjson
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FilePath,
    IPvAnyNetwork,
    SecretStr,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from afterclick.errors import Unavailable
from afterclick.events import Action
from afterclick.redis_keys import Keys
from afterclick.signals import Signals
from afterclick.topics import DAY_MS, Topics

KAFKA_JARS: Final = "kafka-4.3.1"
"""Folder of the jar cache with Kafka itself."""
SPARK_JARS: Final = "spark-4.2.0"
"""Folder of the jar cache with Spark's Kafka connector."""


def jar_cache() -> Path:
    """The jar cache, shared by all checkouts on this machine, in XDG's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "afterclick" / "jars"


Stars = Annotated[int, Field(ge=1, le=5)]
Weight = Annotated[float, Field(allow_inf_nan=False)]


class _Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,  # passwords
        use_attribute_docstrings=True,
    )


class ServerSection(_Section):
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(ge=0, le=65535)
    """Port to listen on."""
    max_header_bytes: int = Field(65_536, ge=1024)
    """Targets, headers and trailers of a request that are larger get 431."""
    header_s: float = Field(10.0, gt=0)
    """How long a client may take to send the headers of a request; then the connection closes."""
    body_s: float = Field(10.0, gt=0)
    """How long a client may take to send the body of a request; then it gets 408 or the connection
    closes."""
    max_connections: int = Field(8192, ge=0)
    """Open connections, WebSockets included; the excess gets 503. 0: no limit."""
    max_connections_per_address: int = Field(1024, ge=0)
    """The same per address; 0: no limit, as behind a proxy that the server does not know."""

    @property
    def url(self) -> str:
        """Where processes on this machine reach the server."""
        host = "127.0.0.1" if self.host in {"0.0.0.0", "::"} else self.host
        return f"http://{host}:{self.port}"


def _retention_ms(days: float) -> int:
    return round(days * DAY_MS) if days else -1


def _require_both(section: str, cert_file: Path | None, key_file: Path | None) -> None:
    if (cert_file is None) != (key_file is None):
        raise ValueError(f"a client certificate needs {section}__CERT_FILE and {section}__KEY_FILE")


class KafkaSettings(_Section):
    bootstrap: str = "127.0.0.1:9092"
    """Brokers, host:port, comma-separated."""
    prefix: str = ""
    """Prefix of every topic name, to share a cluster."""
    partitions: int = Field(4, ge=1, le=1024)
    """Partitions of a new topic."""
    replication: int = Field(1, ge=1)
    """Replicas of each partition of a new topic."""
    retention_days: float = Field(90.0, ge=0)
    """Retention of new topics with interactions, in days since an event was appended; 0: unlimited.
    The event archive keeps the events longer."""
    dlq_days: float = Field(30.0, ge=0)
    """Retention of new topics with dead letters, in days; 0: unlimited."""
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    """`SSL`: TLS; `SASL_…`: user name and password."""
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"
    """How user name and password are checked."""
    username: str | None = None
    """User name for SASL."""
    password: SecretStr | None = None
    """Password for SASL."""
    ca_file: FilePath | None = None
    """PEM file with the certificates to trust; default: the system's."""
    cert_file: FilePath | None = None
    """PEM file with the client certificate, where the brokers ask for one."""
    key_file: FilePath | None = None
    """PEM file (PKCS #8) with the key of the client certificate."""

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        if self.uses_sasl and not (self.username and self.password):
            raise ValueError(
                f"{self.security_protocol} needs AFTERCLICK_KAFKA__USERNAME and "
                "AFTERCLICK_KAFKA__PASSWORD"
            )
        if not self.uses_sasl and (self.username or self.password):
            raise ValueError(
                "user name and password need AFTERCLICK_KAFKA__SECURITY_PROTOCOL=SASL_SSL"
            )
        if not self.uses_tls and (self.ca_file or self.cert_file or self.key_file):
            raise ValueError(
                "certificates need AFTERCLICK_KAFKA__SECURITY_PROTOCOL=SASL_SSL or SSL"
            )
        _require_both("AFTERCLICK_KAFKA", self.cert_file, self.key_file)
        return self

    @property
    def uses_sasl(self) -> bool:
        return self.security_protocol.startswith("SASL_")

    @property
    def uses_tls(self) -> bool:
        return self.security_protocol.endswith("SSL")

    @property
    def topics(self) -> Topics:
        return Topics(
            self.prefix,
            self.partitions,
            interactions_ms=_retention_ms(self.retention_days),
            dead_letters_ms=_retention_ms(self.dlq_days),
        )


class RedisSettings(_Section):
    url: str = "redis://127.0.0.1:6379/0"
    """Redis URL, as redis-py accepts it: redis://user:password@host:6379/0; `rediss`: TLS."""
    ca_file: FilePath | None = None
    """PEM file with the certificates to trust; default: the system's."""
    cert_file: FilePath | None = None
    """PEM file with the client certificate, where Redis asks for one."""
    key_file: FilePath | None = None
    """PEM file with the key of the client certificate."""
    cluster: bool = False
    """The URL is a node of a Redis Cluster. The stream refuses it: its state would not be exact."""
    prefix: str = ""
    """Prefix of every key, to share a server."""
    timeout_s: float = Field(0.25, gt=0)
    """Time limit for a Redis read on the request path; after that the list is `degraded`."""

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        if self._tls_files and not self.url.startswith("rediss://"):
            raise ValueError("certificates need a URL with TLS: AFTERCLICK_REDIS__URL=rediss://…")
        _require_both("AFTERCLICK_REDIS", self.cert_file, self.key_file)
        return self

    @property
    def client_url(self) -> str:
        """The URL with the files for TLS as its options, as every client gets it."""
        if not self._tls_files:
            return self.url
        return f"{self.url}{'&' if urlsplit(self.url).query else '?'}{urlencode(self._tls_files)}"

    @property
    def _tls_files(self) -> dict[str, str]:
        files = {
            "ssl_ca_certs": self.ca_file,
            "ssl_certfile": self.cert_file,
            "ssl_keyfile": self.key_file,
        }
        return {name: str(path) for name, path in files.items() if path is not None}

    @property
    def keys(self) -> Keys:
        return Keys(self.prefix)


class StreamSettings(_Section):
    trigger: Literal["micro-batch", "real-time"] = "real-time"
    """Spark's trigger; `real-time` takes milliseconds and drains a backlog in micro-batches."""
    batch_events: int = Field(50_000, ge=1)
    """Maximum events in a micro-batch."""
    history_length: int = Field(200, ge=1)
    """Interactions in a user's history, newest first."""
    ledger_length: int = Field(4096, ge=1)
    """Event ids kept per user to detect duplicates."""
    weights: dict[Action, Weight] = {
        Action.REVIEW: 2.0,
        Action.PURCHASE: 3.0,
        Action.BASKET: 2.0,
        Action.LIKE: 2.0,
        Action.CLICK: 1.0,
        Action.VIEW: 0.25,
        Action.SKIP: -1.0,
        Action.UNDO: 0.0,
    }
    """Weight of a user's newest event of an action in an item's trend; above 0 the action is
    positive. Every event of positive weight also adds to popularity, also if undone later. Actions
    not named keep their default; after a change run `rebuild`."""
    star_weights: dict[Stars, Weight] = {1: -1.0, 2: -0.5, 3: 0.5, 4: 2.0, 5: 2.0}
    """Weight of a review with 1 to 5 stars; one without has the weight of the action `review`.
    A rating is rounded half up to whole stars, at least one. Stars not named keep their default;
    after a change run `rebuild`."""
    reactions: tuple[Action, ...] = (Action.CLICK, Action.LIKE, Action.BASKET, Action.PURCHASE)
    """Actions on a shown item that count as a success of its list: in the counts of lists, and as
    rewards of `off-policy`. After a change run `rebuild`."""
    conversions: tuple[Action, ...] = (Action.PURCHASE,)
    """Actions that experiments count as conversions, beside clicks."""
    established_days: float = Field(7.0, ge=0)
    """Days from the first event until a user is established; after a change run `rebuild`. Events
    of a replay count from their event time, others from when they reached the log."""
    max_voted_items: int = Field(10_000, ge=1)
    """Items that a user can vote on. Events on further items are interactions, but change neither
    trends nor the number of unique users; after a change run `rebuild`."""
    session_ttl_days: float = Field(30.0, gt=0)
    """Days without an event after which a visitor's session (`session:ID`) is deleted: history,
    votes, ledger and SQL rows; counts and trends stay. After a change run `rebuild`."""
    user_ttl_days: float = Field(730.0, gt=0)
    """The same for users, and for the users of experiments that ended so long ago."""
    unknown_item_days: float = Field(30.0, gt=0)
    """Days after the newest event on an item that is not in the catalogue until its counts and
    trends are deleted. Nothing is deleted without a catalogue or with `serving.unknown_items`."""
    max_unknown_items: int = Field(100_000, ge=1)
    """Such items in each partition; beyond it those with the oldest events are deleted sooner."""
    archive_seconds: float = Field(5.0, gt=0)
    """Interval of the archive query, which appends the events to the archive."""
    archive_days: int = Field(1095, ge=1)
    """Retention of the archive, in days since an event reached the log."""
    impression_ttl_days: float = Field(2.0, gt=0, le=30)
    """Days between a list and a reaction to it, measured between their times of arrival in the log,
    beyond which the reaction does not count for the list. Lists are kept in Redis that long, and a
    day. After a change run `rebuild`."""
    exposure_days: int = Field(90, ge=1)
    """Days for which the counts of lists shown and of reactions to them are kept."""
    master: str = "local[*]"
    """Spark master."""
    handover_s: float = Field(1800.0, ge=5)
    """Real-time: duration of a query before the hand-over to the next one."""
    realtime_lag: int = Field(5_000, ge=1)
    """Real-time: a lag above this is drained in micro-batches first."""
    memory: str = "768m"
    """Memory of the Spark driver."""
    ahead_s: float = Field(86_400.0, gt=0)
    """Events dated further ahead of their arrival are dead letters."""
    lease_s: float = Field(10.0, ge=1)
    """Duration of the lease on the state: how long after a crash another machine can start."""
    stall_s: float = Field(10.0, gt=0)
    """Time without progress, with records waiting, after which a partition is stalled: the stream
    restarts its query, then sets the record aside as a dead letter."""
    fence: bool = True
    """For fault tests: off starts from Spark's checkpoint, without fence and gap checks."""
    fault: str | None = None
    """For fault tests: `between-steps:<n>` kills a worker in its n-th chunk, between the two steps;
    `no-dead-letters` makes a malformed record fail the query; `freeze:<user>` makes a worker wait
    at the events of a user; `freeze-archive:<file>` freezes the archive once; with `-unwatched`
    nothing notices it; `archived:<n>` kills a worker after its n-th append to the archive;
    `between-joins:<file>` kills one once, between the two steps of lists and reactions."""

    @field_validator("weights", "star_weights")
    @classmethod
    def _with_defaults(cls, given: dict[Any, float], info: ValidationInfo) -> dict[Any, float]:
        complete: dict[Any, float] = cls.model_fields[info.field_name or ""].default | given
        if complete.get(Action.UNDO):
            raise ValueError("an undo cancels other actions: its weight must be 0")
        return complete

    @cached_property
    def signals(self) -> Signals:
        """The weights of events."""
        reactions, conversions = frozenset(self.reactions), frozenset(self.conversions)
        return Signals(self.weights, self.star_weights, reactions, conversions)

    @property
    def archive_stall_s(self) -> float:
        """Time without a commit, with records waiting, after which the archive is stalled."""
        return 12 * self.stall_s + 2 * self.archive_seconds


class TrainingSettings(_Section):
    master: str = "local[2]"
    """Spark master."""
    memory: str = "3g"
    """Memory of the Spark driver."""
    mlflow_uri: str | None = None
    """MLflow tracking store: http://server or postgresql://…; default: SQLite in the home."""
    mlflow_files: str | None = None
    """Artifact location of a new MLflow experiment: a folder or s3://bucket/prefix. Default: the
    home folder; with a tracking server, its own location."""
    store: str | None = None
    """Upload published models to s3://bucket/prefix, for other machines; default: no upload."""
    keep_models: int = Field(3, ge=0)
    """Published models to keep besides champion, previous champion, anchor and those that an API
    has used within a week; older ones are deleted after a publication."""
    run_days: int = Field(365, ge=1)
    """Retention of MLflow runs, in days; the model files of a run go with its model."""
    preset: Literal["fast", "full"] = "full"
    """Model preset: `full` trains the ranker on five past cuts, `fast` on one."""
    seed: int = 42
    """Random seed."""
    rank: int = Field(64, ge=1)
    """ALS: latent factors."""
    reg: float = Field(1.0, gt=0)
    """ALS: regularisation (Spark's regParam)."""
    alpha: float = Field(3.0, gt=0)
    """ALS: confidence of an interaction (Spark's alpha)."""
    iterations: int = Field(10, ge=1)
    """ALS: iterations."""
    core: int = Field(5, ge=1)
    """ETL: k of the k-core, the minimum interactions of each user and item."""
    min_interactions: int = Field(5, ge=1)
    """Minimum interactions of an item in the models."""
    content: str = Field("tfidf", pattern=r"^(tfidf|sbert(:.+)?)$")
    """Content vectors of title and categories: `tfidf` (with SVD, in a second) or `sbert`
    (Sentence-BERT, in minutes; `sbert:NAME` chooses the model). New items get theirs from word
    vectors."""
    tower_epochs: int | None = Field(None, ge=0)
    """Sequence model: maximum epochs; 0 leaves it out. Default: the preset's."""
    tower_seconds: float = Field(600.0, gt=0)
    """Sequence model: time budget of one fit; no epoch starts that would end later, and none
    goes on beyond it."""
    tower_warm_start: bool = False
    """Sequence model: item vectors begin as those of the champion, where it knows the item."""
    ncf_epochs: int | None = Field(None, ge=0)
    """NCF: epochs; 0 leaves it out. Default: the preset's."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where neural models are trained: `auto` takes CUDA if there is a device. Only on a CPU does a
    seed decide every number."""
    holdout: float = Field(0.08, gt=0, lt=0.5)
    """Share of the newest interactions held out to compare champion and challenger."""
    holdout_queries: int = Field(20_000, ge=10)
    """Maximum queries per protocol in that comparison; 3 to 7 ms each for each compared model."""
    gate_margin: float = Field(0.05, gt=0, lt=1)
    """A challenger passes if its loss against champion and trends, relative to their mean, is
    below this with a confidence of 95 %."""
    anchor_margin: float = Field(0.08, gt=0, lt=1)
    """The same against the anchor, the last model that was better than the anchor before it, so
    that small losses do not add up."""
    when_undecided: Literal["promote", "keep"] = "promote"
    """What happens to a challenger with too few queries for a decision: `promote` it unless it is
    shown to be worse, or `keep` the champion."""
    ranker_cuts: int | None = Field(None, ge=1)
    """Past cuts to train the ranker on; each costs one more fit. Default: the preset's."""
    ranker_queries: int | None = Field(None, ge=100)
    """Maximum queries per cut to train the ranker on. Default: the preset's."""
    ranker_horizon_days: int = Field(45, ge=1)
    """Longest period of a past cut that the ranker's queries come from; at most a third of the
    log's time and a quarter of its rows."""
    max_hours: float = Field(12.0, gt=0)
    """Time limit of a scheduled training; a longer one is killed."""


ApiScope = Literal["recommend", "feedback", "admin"]


class ApiKey(_Section):
    """The SHA-256 of a key and its scopes; `admin` includes all scopes."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    scopes: tuple[ApiScope, ...] = ("recommend", "feedback")


class ServingSettings(ServerSection):
    port: int = Field(8000, ge=0, le=65535)
    """Port to listen on."""
    workers: int = Field(1, ge=1, le=64)
    """Processes that serve the port together; at most one per core pays. More than one need Redis
    for the rate limit."""
    list_length: int = Field(10, ge=1, le=200)
    """Items in a list without `n`."""
    shed_after_ms: float = Field(50.0, gt=0)
    """Load shedding: personal lists that waited longer, for the event loop or Redis, rank fewer
    candidates and set `reduced`."""
    cache_ttl_s: float = Field(30.0, ge=0)
    """Time to live of a personal list in the cache; 0 disables the cache."""
    after_s: float = Field(0.3, gt=0, le=10)
    """Time limit for `after=` to wait for its event; after that the list has `fresh: false`."""
    dislike_weight: float = Field(2.0, ge=0, le=100)
    """Penalty for items similar to what the user skipped or rated low lately, in standard
    deviations of the scores of the list; 0 turns it off."""
    repeat_purchase_days: dict[str, float] = {}
    """Days after which a bought item may be shown again, by category, as JSON: {"Coffee": 30}.
    Items of other categories are not shown again."""
    frequency_cap: int = Field(0, ge=0, le=100)
    """Times that a user is shown an item within a day, at most; 0: no limit. Each process counts
    the lists that it sent."""
    max_event_age_s: float = Field(86_400.0, ge=0)
    """Oldest `time` of feedback; a key with the scope `admin` may send older events."""
    max_body_bytes: int = 65_536
    """Larger request bodies get 413."""
    max_feedback_bytes: int = Field(524_288, le=1_048_576)
    """The same of feedback, which may be a list of events, if it is more."""
    idle_s: int = Field(75, ge=1)
    """How long a connection may be idle between two requests: longer than a proxy keeps it, so
    that none uses one that is being closed."""
    max_websockets: int = Field(4096, ge=0)
    """Open WebSockets; the excess gets 503. 0: no limit."""
    max_websockets_per_address: int = Field(1024, ge=0)
    """Open WebSockets per address, such as that of the dashboard's process; the excess gets 429.
    0: no limit."""
    max_websockets_per_user: int = Field(16, ge=0)
    """Open WebSockets per user; the excess gets 429. 0: no limit."""
    keys: dict[str, ApiKey] = {}
    """API keys by name, as JSON (`afterclick api-key add --setting`), in addition to those in SQL.
    Without any key, token secret or `open` the API listens on loopback only."""
    require_keys: bool = False
    """Require a key or token also while no key exists, as on a new or restored database."""
    open: bool = False
    """Accept requests without keys, except /admin: only behind an authenticating gateway, whose
    `Host` must be loopback or one of `allowed_hosts`."""
    allowed_hosts: tuple[str, ...] = ()
    """Host names, besides loopback, under which an API with `open` answers without keys."""
    limit: str | None = None
    """Rate limit per token user, key or address, e.g. 600/minute; the excess gets 429."""
    limit_shared: bool = False
    """Count requests in Redis for all processes together, instead of per process."""
    proxies: tuple[IPvAnyNetwork, ...] = ()
    """Addresses or networks of reverse proxies, e.g. ["10.0.0.0/8"]. Only from these, the client's
    address is taken from X-Forwarded-For; every other client counts by the address it connects
    from. Connections of a proxy count in total only."""
    token_secret: str | None = Field(None, min_length=32)
    """Secret of browser users' tokens (JWT, HS256), 32 characters or more; default: none."""
    token_secret_previous: str | None = Field(None, min_length=32)
    """The secret before it, with which tokens are accepted too, but no longer signed."""
    origins: tuple[str, ...] = ()
    """Web origins allowed to call the API and open WebSockets, in addition to the API's own."""
    database: str | None = None
    """SQL database (postgresql://user:password@host/name); default: SQLite in the home."""
    request_log_days: float = Field(1.0, ge=0)
    """Retention of the request log in days; 0 disables it."""
    request_log_rows: int = Field(1_000_000, ge=1000)
    """Rows of the request log; the oldest are deleted first. A row has at most 1.3 KB."""
    unknown_items: bool = False
    """Show items that are not in the catalogue, once there is one. By default events on them are
    recorded, but no list, badge or dashboard shows them. Without a catalogue all are shown."""
    quarantine_max_ratio: float = Field(4.0, ge=0)
    """Quarantine an item with more votes than this multiple of what its established users support;
    the votes of new accounts then do not count. 0 disables all limits on new accounts."""
    quarantine_allowance: float = Field(20.0, ge=0)
    """Votes (decayed weight) allowed on top, per item and for all new accounts together."""


class ConsoleSettings(ServerSection):
    port: int = Field(8090, ge=0, le=65535)
    """Port to listen on."""
    fault_injection: bool = False
    """Let administrators kill the stream job, pause Redis and resend events: for demos only."""
    redis_pause_s: float = Field(3.0, gt=0, le=60)
    """Fault injection: how long Redis is paused."""


class UiSettings(ServerSection):
    port: int = Field(8080, ge=0, le=65535)
    """Port to listen on."""
    api_url: str = "http://127.0.0.1:8000"
    """URL of the API."""
    console_url: str = "http://127.0.0.1:8090"
    """URL of the admin console."""
    api_key: str | None = None
    """API key that the pages, the simulator and the control commands present to API and console."""
    allowed_hosts: tuple[str, ...] = ()
    """Host names under which browsers may open the pages, besides loopback; needed to listen
    beyond loopback. Whoever reaches the pages acts with `api_key`."""
    admin: bool | None = None
    """Show the admin panels on the dashboard; by default only if the pages listen on loopback."""

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
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
    )

    home: Path = Path(".afterclick")
    """Home folder: Kafka and Redis data, the event archive, artifacts, MLflow."""
    jars: Path = Field(default_factory=jar_cache)
    """Jar cache (Kafka, Spark's connector), filled by `make setup`."""
    archive_uri: str | None = None
    """The event archive (a Delta table): a folder or s3://bucket/prefix; default: in the home
    folder."""
    kafka: KafkaSettings = KafkaSettings()
    redis: RedisSettings = RedisSettings()
    stream: StreamSettings = StreamSettings()
    training: TrainingSettings = TrainingSettings()
    serving: ServingSettings = ServingSettings()
    console: ConsoleSettings = ConsoleSettings()
    ui: UiSettings = UiSettings()

    def environment(self) -> dict[str, str]:
        """The AFTERCLICK_* variables of these settings for a child process, without defaults."""
        variables: dict[str, str] = {}
        for name, value in self.model_dump(mode="json", exclude_defaults=True).items():
            section = getattr(self, name)
            if isinstance(section, _Section):
                variables |= {
                    f"{name}__{leaf}": _variable(_revealed(getattr(section, leaf), v))
                    for leaf, v in value.items()
                }
            else:
                variables[name] = _variable(value)
        return {f"AFTERCLICK_{name.upper()}": value for name, value in variables.items()}

    @property
    def archive(self) -> str:
        """Location of the event archive."""
        return self.archive_uri or str(self.home / "log")

    @property
    def impression_archive(self) -> str:
        """Location of the archive of impressions, beside that of the events."""
        return f"{self.archive.rstrip('/')}-impressions"

    @property
    def artifacts(self) -> Path:
        """Folder of model artifacts, with a folder per version."""
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
        """The same as a URI; None: the tracking server's own location."""
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
        """Value of `spark.jars` (Kafka connector). Raises Unavailable before `make setup`."""
        jars = sorted((self.jars / SPARK_JARS).glob("*.jar"))
        if not jars:
            raise Unavailable(f"no Spark connector in {self.jars / SPARK_JARS}: run `make setup`")
        return ",".join(str(jar) for jar in jars)


def _revealed(value: object, dumped: object) -> object:
    """`dumped`, except for a secret, which JSON would show as asterisks."""
    return value.get_secret_value() if isinstance(value, SecretStr) else dumped


def _variable(value: object) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()
